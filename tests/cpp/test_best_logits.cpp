// Steps and rounds that want no logits: their tokens are those of the whole rows, whoever computes which part.
#include "draft_run.h"
#include "sampling/best_logits.h"
#include "serial_workers.h"
#include "step_fixture.h"

#include "check.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <random>
#include <string>

using namespace mimo_rt;
using namespace fixture;

namespace {

/// Runs the same tokens again and again, all rows sampled.
struct Steps {
  static constexpr uint32_t kRows = 9;

  Steps(const Weights& weights_, const std::string& backend, uint32_t num_workers)
      : weights(weights_),
        plan(Plan::build(weights.config(), plan_options(num_workers, kRows, kRows))),
        executor(backend == "ref"
                     ? make_ref_executor(weights, nullptr, {&plan}, {.num_workers = num_workers}, false)
                     : make_cpu_executor(weights, nullptr, {&plan}, backend, {.num_workers = num_workers})),
        tokens(random_tokens(weights.config(), kRows, 5)),
        scratch(kRows * sampler_scratch_bytes(weights.config().vocab_size) / 8),
        params(kRows, {.temperature = 0.0f}) {}

  /// `num_best_logits` 0: with logits.
  std::vector<int32_t> run(uint32_t num_best_logits) {
    KvCache cache(weights.config(), {.max_context = 64, .max_step_tokens = kRows, .num_seqs = 1});
    cache.reserve(0, kRows);
    StepRows rows(tokens, 0, 0, kRows);
    std::vector<SampleRequest> requests(kRows);
    for (uint32_t r = 0; r < kRows; ++r) {
      requests[r].params = &params[r];
      requests[r].position = r + 1;
      requests[r].scratch = scratch.data() + r * scratch.size() / kRows;
    }
    std::vector<SampleResult> results(kRows);
    for (SampleResult& result : results) result.logprob = 3.0f, result.num_alternatives = 2;
    rows.input.sample = requests.data();
    rows.input.num_best_logits = num_best_logits;
    StepOutput output;
    output.sampled = results.data();
    executor->run(plan, cache, rows.input, output);
    CHECK_EQ(output.logits != nullptr, num_best_logits == 0);
    std::vector<int32_t> ids;
    for (const SampleResult& result : results) {
      CHECK(result.num_alternatives == 0 && result.logprob == 0.0f);
      ids.push_back(result.token_id);
    }
    return ids;
  }

  const Weights& weights;
  Plan plan;
  std::unique_ptr<Executor> executor;
  std::vector<int32_t> tokens;
  std::vector<uint64_t> scratch;
  std::vector<SamplingParams> params;  ///< [kRows]
};

/// Steps of ragged vocabularies, every backend and these numbers of workers.
template <typename Visit>
void for_each_setting(std::initializer_list<uint32_t> worker_counts, Visit visit) {
  for (const uint32_t vocab_size : {16u, 203u, 1000u}) {
    ModelConfig config = small_quantised();
    config.vocab_size = vocab_size;
    const Weights weights = Weights::synthetic(config, 3);
    std::vector<std::string> backends = runnable_cpu_backends();
    backends.push_back("ref");
    for (const std::string& backend : backends)
      for (const uint32_t num_workers : worker_counts) {
        Steps steps(weights, backend, num_workers);
        visit(steps);
      }
  }
}

/// The BF16 pairs of one row of the head.
template <typename Visit>
void for_each_pair(const PackedMatrix& head, uint32_t row, Visit visit) {
  auto* group = const_cast<uint8_t*>(head.row_group(row / kTileRows)) + row % kTileRows * 4;
  for (uint32_t k = 0; k < head.k; k += 2) visit(reinterpret_cast<uint16_t*>(group + uint64_t{k} / 2 * 64));
}

void copy_row(const PackedMatrix& head, uint32_t from, uint32_t to) {
  std::vector<uint16_t> codes;
  for_each_pair(head, from, [&](const uint16_t* pair) { codes.insert(codes.end(), pair, pair + 2); });
  size_t next = 0;
  for_each_pair(head, to, [&](uint16_t* pair) { pair[0] = codes[next++], pair[1] = codes[next++]; });
}

void fill_row(const PackedMatrix& head, uint32_t row, uint16_t code) {
  for_each_pair(head, row, [&](uint16_t* pair) { pair[0] = pair[1] = code; });
}

}  // namespace

TEST_CASE("tokens without logits equal those with logits: backends, workers, ragged vocabularies") {
  for_each_setting({1u, 2u, 3u, 5u}, [](Steps& steps) {
    const std::vector<int32_t> want = steps.run(0);
    CHECK(steps.run(1) == want && steps.run(0) == want && steps.run(1) == want);
    CHECK(std::adjacent_find(want.begin(), want.end(), std::not_equal_to<>()) != want.end());  // rows differ
  });
}

TEST_CASE("equal best logits: the lowest id, whichever task finds it") {
  const ModelConfig config = small_quantised();
  const Weights weights = Weights::synthetic(config, 3);
  const PackedMatrix& head = weights.lm_head();
  Steps one(weights, "cpu-generic", 1);
  const auto best = static_cast<uint32_t>(one.run(0)[0]);
  for (const uint32_t copy : {0u, best / 16 * 16, 15u, 120u, 202u}) {
    if (copy == best) continue;
    std::vector<uint16_t> kept;
    for_each_pair(head, copy, [&](const uint16_t* pair) { kept.insert(kept.end(), pair, pair + 2); });
    copy_row(head, best, copy);
    for (const uint32_t num_workers : {1u, 2u, 3u, 13u}) {
      Steps steps(weights, "cpu-generic", num_workers);
      const std::vector<int32_t> want = steps.run(0);
      CHECK_EQ(want[0], static_cast<int32_t>(std::min(best, copy)));
      CHECK(steps.run(1) == want);
    }
    size_t next = 0;
    for_each_pair(head, copy, [&](uint16_t* pair) { pair[0] = kept[next++], pair[1] = kept[next++]; });
  }
}

// The last worker has its own tiles first, then those of the first worker, from the last one on.
TEST_CASE("equal best logits in tiles that another worker has taken over: the lowest id, whichever comes first") {
  const ModelConfig config = small_quantised();  // 13 tiles
  const Weights weights = Weights::synthetic(config, 3);
  const PackedMatrix& head = weights.lm_head();
  const auto best = static_cast<uint32_t>(Steps(weights, "cpu-generic", 1).run(0)[0]);
  std::vector<uint32_t> copies = {5, 20, 37, 85, 101, 120, 190};
  std::erase(copies, best);
  for (const uint32_t id : copies) copy_row(head, best, id);
  while (!copies.empty()) {
    const int32_t lowest = static_cast<int32_t>(std::min(best, copies[0]));
    for (const uint32_t num_workers : {2u, 3u}) {
      Steps steps(weights, "cpu-generic", num_workers);
      steps.plan = with_small_parts(steps.plan);
      auto workers =
          std::make_unique<SerialWorkers>(weights, nullptr, std::vector<const Plan*>{&steps.plan}, "cpu-generic");
      const SerialWorkers& ran = *workers;
      steps.executor = std::move(workers);
      CHECK_EQ(steps.run(1)[0], lowest);
      const auto& first_tasks = steps.plan.tasks(0);
      for (uint32_t i = 0; i < first_tasks.size(); ++i)
        if (first_tasks[i].kind == TaskKind::lm_head) CHECK_EQ(ran.work(0, i).size, 0u);
    }
    fill_row(head, copies[0], 0);
    copies.erase(copies.begin());
  }
}

TEST_CASE("NaN, infinite and padded logits never win; no finite logit gives -1") {
  const ModelConfig config = small_quantised();  // 203 tokens: the last tile has 5 rows of padding
  const Weights weights = Weights::synthetic(config, 3);
  const PackedMatrix& head = weights.lm_head();
  constexpr uint16_t kNan = 0x7fc0, kHuge = 0x7f7f;  // the sum of many huge ones is infinite or NaN
  for (uint32_t row = 0; row < config.vocab_size; ++row)
    if (row % 3) fill_row(head, row, row % 3 == 1 ? kNan : kHuge);
  for (const uint32_t num_workers : {1u, 2u, 4u}) {
    Steps steps(weights, "cpu-generic", num_workers);
    const std::vector<int32_t> want = steps.run(0);
    CHECK(steps.run(1) == want);
    for (const int32_t id : want) CHECK(id >= 0 && id % 3 == 0);
  }
  for (uint32_t row = 0; row < config.vocab_size; ++row) fill_row(head, row, kNan);
  Steps steps(weights, "cpu-generic", 3);
  for (const int32_t id : steps.run(1)) CHECK_EQ(id, -1);  // padding would be 0 and finite
}

// Every row has its own setting, greedy ones among them, and draws from as many as the most demanding one needs.
TEST_CASE("tokens drawn among the best logits equal those with logits: backends, workers, ragged vocabularies") {
  uint32_t num_other = 0;
  for_each_setting({1u, 2u, 5u}, [&](Steps& steps) {
    for (uint64_t seed = 0; seed < 6; ++seed) {
      uint32_t r = 0;
      for (const uint32_t top_k : {1u, 2u, 7u, 40u, 64u, 5u, 64u, 3u, 20u}) {
        SamplingParams& params = steps.params[r++];
        params = {.temperature = r % 4 ? 0.4f * float(r) : 0.0f, .sample_top_k = top_k, .seed = seed};
        if (r % 3 == 1) params.sample_top_p = 0.9f;
        if (r % 5 == 2) params.min_p = 0.05f;
      }
      const std::vector<int32_t> want = steps.run(0);
      CHECK(steps.run(64) == want && steps.run(0) == want);
      num_other += want != std::vector<int32_t>(want.size(), want[0]);
    }
  });
  CHECK(num_other > 0);
}

TEST_CASE("the k best of a row: those of a full sort, ties by id, whatever the order of its parts") {
  std::mt19937 random(7);
  uint32_t num_ties_that_matter = 0;
  for (uint32_t round = 0; round < 300; ++round) {
    std::vector<float> logits(1 + random() % 700);
    for (float& logit : logits) logit = float(random() % 60) - 30.0f;  // many equal ones
    for (uint32_t i = 0; i < logits.size() / 8; ++i) {
      constexpr float kBad[] = {NAN, HUGE_VALF, -HUGE_VALF, -0.0f};
      logits[random() % logits.size()] = kBad[random() % 4];
    }
    const uint32_t k = 1 + random() % kMaxBestLogits;
    std::vector<BestLogit> sorted;
    for (uint32_t i = 0; i < logits.size(); ++i)
      if (std::isfinite(logits[i])) sorted.push_back({logits[i], int32_t(i)});
    std::sort(sorted.begin(), sorted.end(), is_better);
    if (sorted.size() > k) {
      num_ties_that_matter += sorted[k - 1].logit == sorted[k].logit;
      sorted.resize(k);
    }
    // Parts of any length, in any order, kept by one of three and then put together.
    std::vector<std::pair<uint32_t, uint32_t>> parts;
    for (uint32_t begin = 0; begin < logits.size();) {
      const uint32_t end = std::min(uint32_t(logits.size()), begin + 1 + uint32_t(random() % 150));
      parts.emplace_back(begin, end);
      begin = end;
    }
    std::shuffle(parts.begin(), parts.end(), random);
    BestLogits kept[3], best;
    for (BestLogits& one : kept) one.begin(k);
    for (const auto& [begin, end] : parts) kept[random() % 3].add(&logits[begin], end - begin, int32_t(begin));
    best.begin(k);
    for (const BestLogits& one : kept) best.add(one);
    CHECK(std::ranges::equal(best.entries(), sorted, [](const BestLogit& a, const BestLogit& b) {
      return a.logit == b.logit && a.token_id == b.token_id;
    }));
  }
  CHECK(num_ties_that_matter > 50);  // a wrong rule for equal logits would be seen
}

namespace {

/// A row with ties and its k best logits.
struct RowAndBest {
  RowAndBest(uint32_t vocab_size, uint32_t k, uint32_t seed) : logits(vocab_size) {
    std::mt19937 random(seed);
    for (float& logit : logits) logit = float(random() % 400) / 50.0f;
    best.begin(k);
    best.add(logits.data(), vocab_size, 0);
    best_row = {best, vocab_size};
  }
  LogitRow whole() const { return {logits.data(), uint32_t(logits.size())}; }

  std::vector<float> logits;
  BestLogits best;
  BestLogitRow best_row;
};

std::vector<SamplingParams> top_k_settings() {
  std::vector<SamplingParams> settings;
  for (const uint32_t top_k : {1u, 2u, 20u, 64u})
    for (const float temperature : {1e-30f, 0.7f, 3.0f})
      for (const auto& [top_p, min_p] : {std::pair{1.0f, 0.0f}, {0.8f, 0.0f}, {1.0f, 0.2f}, {0.95f, 0.02f}})
        settings.push_back({.temperature = temperature, .sample_top_k = top_k, .sample_top_p = top_p, .min_p = min_p});
  return settings;
}

}  // namespace

TEST_CASE("the k best logits give the candidates, weights and draws of the whole row") {
  uint32_t num_wrong_draws = 0, num_wrong_weights = 0;
  for (const uint32_t vocab_size : {40u, 1000u, 50'000u}) {
    std::vector<Candidate> whole_scratch(vocab_size), best_scratch(vocab_size);
    for (const SamplingParams& params : top_k_settings()) {
      SampleRequest request{.params = &params, .scratch = whole_scratch.data()};
      CHECK_EQ(num_best_logits(request), params.sample_top_k);
      const RowAndBest row(vocab_size, params.sample_top_k, 5), fewer(vocab_size, params.sample_top_k / 2 + 1, 5);
      LogitRow wrong_scale = row.best_row.row();
      wrong_scale.num_left_out = 0;
      const auto weights_of = [&](const LogitRow& logits) {
        request.scratch = best_scratch.data();
        CandidateSet set = weighed_candidates(logits, request);
        set.in_id_order = false;
        set.sort_by_id();
        std::vector<std::pair<uint32_t, uint64_t>> weights;
        for (const Candidate* c = set.first; c != set.last; ++c) weights.emplace_back(c->token_id, c->weight);
        return weights;
      };
      const auto want = weights_of(row.whole());
      CHECK(weights_of(row.best_row.row()) == want);
      num_wrong_weights += weights_of(wrong_scale) != want;
      const uint32_t num_draws = vocab_size > 1000 ? 5 : 40;
      for (uint32_t position = 0; position < num_draws; ++position) {
        request.position = position;
        SampleResult expected, got, other;
        sample_token(row.whole(), request, expected);
        sample_token(row.best_row.row(), request, got);
        sample_token(fewer.best_row.row(), request, other);
        CHECK_EQ(got.token_id, expected.token_id);
        num_wrong_draws += other.token_id != expected.token_id;
      }
    }
  }
  CHECK(num_wrong_draws > 0 && num_wrong_weights > 0);  // controls
}

TEST_CASE("verification with the k best logits accepts and draws as with the whole row") {
  constexpr uint32_t kVocab = 700;
  std::vector<Candidate> p_scratch(kVocab), q_scratch(kVocab);
  uint32_t num_accepted = 0, num_rejected = 0;
  for (const SamplingParams& params : top_k_settings()) {
    const RowAndBest row(kVocab, params.sample_top_k, 5);
    RowAndBest draft(kVocab, 1, 6);
    for (uint32_t i = 0; i < kVocab; ++i) draft.logits[i] = (draft.logits[i] + 3 * row.logits[i]) / 4;
    for (uint32_t i = 0; i < 40; ++i) {
      SampleRequest request{.params = &params, .sequence_id = 1, .position = i, .scratch = q_scratch.data()};
      const Proposal proposal = draw_draft(draft.whole(), request, 1 + i % 15);
      request.scratch = p_scratch.data();
      SampleResult expected, got;
      const bool accepted = verify_draft(row.whole(), request, 1 + i % 15, proposal, expected);
      CHECK_EQ(verify_draft(row.best_row.row(), request, 1 + i % 15, proposal, got), accepted);
      CHECK_EQ(got.token_id, expected.token_id);
      (accepted ? num_accepted : num_rejected) += 1;
    }
  }
  CHECK(num_accepted > 50 && num_rejected > 50);
}

// A request for logprobs is one for whole rows, and draws the same tokens.
TEST_CASE("rounds that draw among the best logits emit the tokens of rounds with logits, argmax and drawn drafts") {
  uint32_t num_runs = 0, num_others = 0;
  for (const DraftStyle& style : draft_styles(6)) {
    const DraftModel model(style);
    for (const std::string& backend : runnable_cpu_backends())
      for (const auto proposal : {DraftOptions::Proposal::argmax, DraftOptions::Proposal::sampled}) {
        const auto decode = [&](uint32_t num_logprobs, uint32_t num_workers, uint32_t top_k) {
          DraftRun run(model.weights, model.draft,
                       {.backend = backend,
                        .num_workers = num_workers,
                        .draft = {.mode = DraftOptions::Mode::fixed, .proposal = proposal},
                        .params = {.temperature = 2.0f, .sample_top_k = top_k, .sample_top_p = 0.95f, .seed = 3,
                                   .num_logprobs = num_logprobs}});
          run.feed(random_tokens(style.config, 27, 3));
          const std::vector<int32_t> tokens = run.decode_rounds(1, 24);
          CHECK(run.width.stats().num_drafted_rounds > 0);
          return tokens;
        };
        const std::vector<int32_t> want = decode(1, 1, 9);
        CHECK_EQ(want.size(), 24u);
        CHECK(decode(0, 1 + num_others % 3, 9) == want);
        num_others += decode(0, 1, 2) != want;
        ++num_runs;
      }
  }
  CHECK(2 * num_others > num_runs);  // control
}

TEST_CASE("what takes more than the best logits is refused without logits") {
  const Weights weights = Weights::synthetic(small_quantised(), 3);
  Steps steps(weights, "cpu-generic", 2);
  const auto refused = [&](SamplingParams params, uint32_t num_best_logits) {
    steps.params[0] = std::move(params);
    const std::string expected = "sample[0]: expected a request that needs no more than the " +
                                 std::to_string(num_best_logits) + " best logits";
    CHECK_THROWS(invalid_argument, expected.c_str(), steps.run(num_best_logits));
  };
  refused({.temperature = 0.5f}, 1);
  refused({.temperature = 0.5f}, 64);
  refused({.temperature = 0.5f, .sample_top_k = 5}, 4);
  refused({.temperature = 0.5f, .sample_top_k = 65}, 64);
  refused({.temperature = 0.5f, .sample_top_k = 5, .want_logprob = true}, 5);
  refused({.temperature = 0.0f, .want_logprob = true}, 1);
  refused({.temperature = 0.0f, .num_logprobs = 1}, 1);
  refused({.temperature = 0.0f, .logit_bias = {{3, 1.0f}}}, 1);
  steps.params[0] = {.temperature = 0.0f};
  CHECK_THROWS(invalid_argument, "num_best_logits: expected <= 64, got 65", steps.run(65));
  CHECK(steps.run(1) == steps.run(0));  // nothing was left behind
  SampleRequest request{.params = &steps.params[0]};
  CHECK_EQ(num_best_logits(request), 1u);
  const int32_t masked = 0;
  request.masked_ids = &masked, request.num_masked_ids = 1;
  CHECK_EQ(num_best_logits(request), 0u);
  std::vector<uint32_t> counts(1);
  const SamplingParams penalised{.temperature = 0.5f, .sample_top_k = 5, .repetition_penalty = 1.2f};
  CHECK_EQ(num_best_logits({.params = &penalised, .token_counts = counts.data()}), 0u);
  CHECK_EQ(num_best_logits({.params = &penalised}), 5u);  // nothing has occurred
  const SamplingParams most{.sample_top_k = kMaxBestLogits}, too_many{.sample_top_k = kMaxBestLogits + 1};
  CHECK_EQ(num_best_logits({.params = &most}), kMaxBestLogits);
  CHECK_EQ(num_best_logits({.params = &too_many}), 0u);
}

CHECK_MAIN()
