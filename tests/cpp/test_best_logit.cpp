// Steps that want no logits: their tokens are those of the whole rows, whoever computes which part.
#include "serial_workers.h"
#include "step_fixture.h"

#include "check.h"

#include <algorithm>
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
        executor(backend == "ref" ? make_ref_executor(weights, nullptr, {&plan}, {.num_workers = num_workers}, false)
                                  : make_cpu_executor(weights, nullptr, {&plan}, backend, {.num_workers = num_workers})),
        tokens(random_tokens(weights.config(), kRows, 5)),
        scratch(kRows * sampler_scratch_bytes(weights.config().vocab_size) / 8) {}

  std::vector<int32_t> run(bool wants_logits) {
    KvCache cache(weights.config(), {.max_context = 64, .max_step_tokens = kRows, .num_seqs = 1});
    cache.reserve(0, kRows);
    StepRows rows(tokens, 0, 0, kRows);
    std::vector<SampleRequest> requests(kRows);
    for (uint32_t r = 0; r < kRows; ++r) {
      requests[r].params = &params;
      requests[r].scratch = scratch.data() + r * scratch.size() / kRows;
    }
    std::vector<SampleResult> results(kRows);
    for (SampleResult& result : results) result.logprob = 3.0f, result.num_alternatives = 2;
    rows.input.sample = requests.data();
    rows.input.wants_logits = wants_logits;
    StepOutput output;
    output.sampled = results.data();
    executor->run(plan, cache, rows.input, output);
    CHECK_EQ(output.logits != nullptr, wants_logits);
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
  SamplingParams params{.temperature = 0.0f};
};

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
  for (uint32_t vocab_size : {16u, 203u, 1000u}) {
    ModelConfig config = small_quantised();
    config.vocab_size = vocab_size;
    const Weights weights = Weights::synthetic(config, 3);
    std::vector<std::string> backends = runnable_cpu_backends();
    backends.push_back("ref");
    for (const std::string& backend : backends)
      for (const uint32_t num_workers : {1u, 2u, 3u, 5u}) {
        Steps steps(weights, backend, num_workers);
        const std::vector<int32_t> want = steps.run(true);
        CHECK(steps.run(false) == want && steps.run(true) == want && steps.run(false) == want);
        CHECK(std::adjacent_find(want.begin(), want.end(), std::not_equal_to<>()) != want.end());  // rows differ
      }
  }
}

TEST_CASE("equal best logits: the lowest id, whichever task finds it") {
  const ModelConfig config = small_quantised();
  const Weights weights = Weights::synthetic(config, 3);
  const PackedMatrix& head = weights.lm_head();
  Steps one(weights, "cpu-generic", 1);
  const auto best = static_cast<uint32_t>(one.run(true)[0]);
  for (const uint32_t copy : {0u, best / 16 * 16, 15u, 120u, 202u}) {
    if (copy == best) continue;
    std::vector<uint16_t> kept;
    for_each_pair(head, copy, [&](const uint16_t* pair) { kept.insert(kept.end(), pair, pair + 2); });
    copy_row(head, best, copy);
    for (const uint32_t num_workers : {1u, 2u, 3u, 13u}) {
      Steps steps(weights, "cpu-generic", num_workers);
      const std::vector<int32_t> want = steps.run(true);
      CHECK_EQ(want[0], static_cast<int32_t>(std::min(best, copy)));
      CHECK(steps.run(false) == want);
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
  const auto best = static_cast<uint32_t>(Steps(weights, "cpu-generic", 1).run(true)[0]);
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
      CHECK_EQ(steps.run(false)[0], lowest);
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
    const std::vector<int32_t> want = steps.run(true);
    CHECK(steps.run(false) == want);
    for (const int32_t id : want) CHECK(id >= 0 && id % 3 == 0);
  }
  for (uint32_t row = 0; row < config.vocab_size; ++row) fill_row(head, row, kNan);
  Steps steps(weights, "cpu-generic", 3);
  for (const int32_t id : steps.run(false)) CHECK_EQ(id, -1);  // padding would be 0 and finite
}

TEST_CASE("what takes more than the best logit is refused without logits") {
  const Weights weights = Weights::synthetic(small_quantised(), 3);
  Steps steps(weights, "cpu-generic", 2);
  const auto refused = [&](SamplingParams params) {
    steps.params = std::move(params);
    CHECK_THROWS(invalid_argument, "sample[0]: expected a request for the best logit alone", steps.run(false));
  };
  refused({.temperature = 0.5f});
  refused({.temperature = 0.0f, .want_logprob = true});
  refused({.temperature = 0.0f, .num_logprobs = 1});
  refused({.temperature = 0.0f, .logit_bias = {{3, 1.0f}}});
  steps.params = {.temperature = 0.0f};
  CHECK(steps.run(false) == steps.run(true));  // nothing was left behind
  SampleRequest request{.params = &steps.params};
  CHECK(takes_best_logit(request));
  const int32_t masked = 0;
  request.masked_ids = &masked, request.num_masked_ids = 1;
  CHECK(!takes_best_logit(request));
  std::vector<uint32_t> counts(1);
  SamplingParams penalised{.temperature = 0.0f, .repetition_penalty = 1.2f};
  CHECK(!takes_best_logit({.params = &penalised, .token_counts = counts.data()}));
}

CHECK_MAIN()
