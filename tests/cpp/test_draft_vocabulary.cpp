// Drafts of a part of the vocabulary: what is read and refused, the rows of the head, proposals, and rounds that stay
// lossless however little the draft knows.
#include "check.h"
#include "draft_fixture.h"
#include "draft_run.h"
#include "round_fixture.h"
#include "sampler_reference.h"
#include "weights/pack.h"

#include <limits>

using namespace mimo_rt;
using namespace fixture;
using namespace sampler_reference;
using round_fixture::Logits;
using round_fixture::Toy;

namespace {

using Ids = std::vector<int32_t>;
constexpr float kNone = -std::numeric_limits<float>::infinity();

DraftConfig part_config() {
  DraftConfig config = small_draft();
  config.vocab_size = 90;
  config.draft_vocab_size = 5;
  return config;
}

/// d2t as it is stored, and loaded again.
Ids load_ids(const DraftConfig& config, const std::vector<int64_t>& d2t, DraftFiles files = {}) {
  const writer::TempDir dir;
  files.edit = [&](const std::string& name, std::string& bytes) {
    if (!name.ends_with("d2t")) return;
    std::memcpy(bytes.data(), d2t.data(), std::min(bytes.size(), d2t.size() * sizeof d2t[0]));
  };
  write_draft(dir, config, files);
  const DraftWeights weights = DraftWeights::load(dir.path(), config, {});
  return {weights.vocab_ids(), weights.vocab_ids() + config.draft_vocab_size};
}

DraftStyle with_vocabulary(DraftStyle style, uint32_t size) {
  style.draft.vocab_size = style.config.vocab_size;
  style.draft.draft_vocab_size = size;
  return style;
}

/// A row of a part of the vocabulary, and the same as a whole row.
struct Part {
  Ids ids;
  Logits logits, whole;
};

Part part_of(const Logits& logits, const Ids& ids) {
  Part part{ids, {}, Logits(logits.size(), kNone)};
  for (const int32_t id : ids) {
    part.logits.push_back(logits[size_t(id)]);
    part.whole[size_t(id)] = logits[size_t(id)];
  }
  return part;
}

LogitRow row_of(const Part& part) { return {part.logits.data(), uint32_t(part.ids.size()), part.ids.data()}; }
LogitRow whole_row_of(const Part& part) { return {part.whole.data(), uint32_t(part.whole.size())}; }

}  // namespace

TEST_CASE("d2t holds the distance from a draft's id to the token, under either spelling of names") {
  const DraftConfig config = part_config();
  CHECK(load_ids(config, {0, 0, 5, 47, 85}) == (Ids{0, 1, 7, 50, 89}));
  CHECK(load_ids(config, {3, 3, 3, 3, 3}, {"model.", false}) == (Ids{3, 4, 5, 6, 7}));
  DraftConfig all = config;
  all.vocab_size = 5;
  CHECK(load_ids(all, {0, 0, 0, 0, 0}) == (Ids{0, 1, 2, 3, 4}));
}

TEST_CASE("a d2t whose tokens do not ascend in the vocabulary is refused by its element") {
  const DraftConfig config = part_config();
  const int64_t most = std::numeric_limits<int64_t>::max(), least = std::numeric_limits<int64_t>::min();
  const auto refused = [&](const std::vector<int64_t>& d2t, const char* needle) {
    CHECK_THROWS(bad_format, needle, load_ids(config, d2t));
  };
  refused({0, 0, -1, 0, 0}, "tensor 'd2t' of 'dflash_draft_model-00002-of-00002.safetensors', element 2: expected 0..87");
  refused({0, 0, 0, -1, 0}, "element 3: expected 0..86");
  refused({-1, 0, 0, 0, 0}, "element 0: expected 0..89, so that the tokens i + d2t[i] ascend below vocab_size (90), got -1");
  refused({0, 0, 0, 0, 86}, "element 4: expected 0..85");
  refused({0, most, 0, 0, 0}, "element 1");
  refused({0, 0, least, 0, 0}, "element 2");
  refused({least, 0, 0, 0, 0}, "element 0");
  refused({85, 85, 85, 85, 86}, "element 4");
  CHECK(load_ids(config, {85, 85, 85, 85, 85}).back() == 89);
}

TEST_CASE("a d2t of another type or length, or without draft_vocab_size, is refused") {
  const DraftConfig config = part_config();
  CHECK_THROWS(shape_mismatch, "'d2t' of 'dflash_draft_model-00002-of-00002.safetensors': expected i64 [5], got i32 [5]",
               load_ids(config, {0, 0, 0, 0, 0}, {"", true, {{"d2t", DType::i32}}}));
  const writer::TempDir dir;
  write_draft(dir, config);
  DraftConfig other = config;
  other.draft_vocab_size = 6;
  CHECK_THROWS(shape_mismatch, "expected i64 [6], got i64 [5]", DraftWeights::load(dir.path(), other, {}));
  other.draft_vocab_size = 0;
  CHECK_THROWS(bad_format, "'d2t'", DraftWeights::load(dir.path(), other, {}));
  write_draft(dir, other);
  CHECK_THROWS(missing_tensor, "'d2t'", DraftWeights::load(dir.path(), config, {}));
  CHECK_THROWS(invalid_argument, "expected at most vocab_size (3), got 5", [&] {
    other = config;
    other.vocab_size = 3;
    DraftWeights::synthetic(other, 1);
  }());
}

TEST_CASE("the head of a part is a copy of the target's rows, counted as the draft's memory") {
  for (const DraftStyle& style : draft_styles(4)) {
    const DraftModel whole(style.draft.draft_vocab_size ? with_vocabulary(style, 0) : style);
    CHECK(whole.draft.lm_head().data == whole.weights.lm_head().data && !whole.draft.vocab_ids());
    for (const uint32_t size : {1u, 16u, 17u, style.config.vocab_size}) {
      const DraftModel part(with_vocabulary(style, size));
      const PackedMatrix& head = part.draft.lm_head();
      CHECK_EQ(head.rows, (size + 15) / 16 * 16);
      for (uint32_t i = 0; i < head.rows; ++i) {
        const std::vector<std::byte> codes = unpack_row(head, i).codes;
        if (i >= size) CHECK(codes == std::vector<std::byte>(codes.size()));
        else CHECK(codes == unpack_row(part.weights.lm_head(), uint32_t(part.draft.vocab_ids()[i])).codes);
      }
      const uint64_t more = part.draft.packed_bytes() - whole.draft.packed_bytes();
      CHECK(more >= head.bytes() && more < head.bytes() + (2u << 20));
      CHECK(size == 1 || part.draft.vocab_ids()[size - 1] > part.draft.vocab_ids()[size - 2]);
    }
  }
}

TEST_CASE("drafts for another target, and drafts that are not bound, are refused") {
  const DraftStyle style = with_vocabulary(draft_styles(4)[0], 7);
  DraftModel model(style);
  DraftConfig larger = style.draft;
  larger.vocab_size = 8 * style.config.vocab_size;
  DraftWeights beyond = DraftWeights::synthetic(larger, 1);
  CHECK_THROWS(shape_mismatch, "d2t: expected tokens below the model's vocab_size", beyond.bind(model.weights));
  const DraftWeights unbound = DraftWeights::synthetic(style.draft, 6);
  DraftWeights other = DraftWeights::synthetic(with_vocabulary(style, 20).draft, 6);
  other.bind(model.weights);
  for (const std::string& backend : {std::string("ref"), runnable_cpu_backends().back()}) {
    DraftRun run(model.weights, model.draft, {.backend = backend});
    const std::vector<const Plan*> plans = {&run.round_plan};
    ExecutorOptions options;
    options.num_workers = 2;
    const auto make = [&](const DraftWeights& draft) {
      if (backend == "ref") make_ref_executor(model.weights, &draft, plans, options, false);
      else make_cpu_executor(model.weights, &draft, plans, backend, options);
    };
    make(model.draft);
    CHECK_THROWS(invalid_argument, "lm_head for 7 tokens as in the plan, got 0 rows", make(unbound));
    CHECK_THROWS(invalid_argument, "lm_head for 7 tokens as in the plan, got 32 rows", make(other));
  }
}

TEST_CASE("logits of a part are bit-equal to those of the whole vocabulary") {
  const DraftStyle style = draft_styles(5)[0];
  const uint32_t vocab = style.config.vocab_size;
  std::vector<std::string> backends = runnable_cpu_backends();
  backends.push_back("ref");
  for (const std::string& backend : backends) {
    const auto logits = [&](uint32_t size, uint32_t num_workers) {
      const DraftModel model(with_vocabulary(style, size));
      DraftRun run(model.weights, model.draft, {.backend = backend, .num_workers = num_workers});
      run.feed(random_tokens(style.config, 27, 3));
      run.begin_rounds(7);
      run.state->max_rounds = 1;
      run.state->begin();
      run.run_rounds();
      return run.draft_logits();
    };
    const std::vector<float> whole = logits(0, 2);
    for (const uint32_t size : {1u, 33u, vocab})
      for (const uint32_t num_workers : {1u, 3u}) {
        const std::vector<float> part = logits(size, num_workers);
        std::vector<float> expected;
        for (uint32_t row = 0; row < 4; ++row)
          for (uint32_t i = 0; i < size; ++i) expected.push_back(whole[row * vocab + i * vocab / size]);
        CHECK(bit_equal(part, expected));
      }
  }
}

TEST_CASE("rounds emit the tokens of plain steps, whether the draft knows one token or all") {
  for (const DraftStyle& base : draft_styles(4)) {
    const uint32_t vocab = base.config.vocab_size;
    for (const std::string& backend : runnable_cpu_backends()) {
      std::vector<int32_t> plain;
      for (const uint32_t size : {0u, 1u, 2u, vocab / 2, vocab}) {
        const DraftModel model(with_vocabulary(base, size));
        DraftRun run(model.weights, model.draft, {.backend = backend, .num_workers = 2});
        const std::vector<int32_t> prompt = random_tokens(base.config, 27, 3);
        const int32_t anchor = run.feed(prompt);
        if (plain.empty()) {
          plain = run.decode_steps(prompt, anchor, 30);
          continue;
        }
        CHECK(run.decode_rounds(anchor, 30) == plain);
        CHECK(run.width.stats().num_draft_tokens > 0);
        const Ids ids(model.draft.vocab_ids(), model.draft.vocab_ids() + size);
        for (uint32_t row = 1; row < 4; ++row)  // what the last round proposed
          CHECK(std::binary_search(ids.begin(), ids.end(), run.state->block[row]));
      }
    }
  }
}

TEST_CASE("proposals from a part equal those from a whole row without the other tokens") {
  constexpr uint32_t kVocab = 300;  // of so few tokens the weights have equal units
  std::mt19937 random(3);
  std::vector<Candidate> part_scratch(kVocab), whole_scratch(kVocab), p_scratch(kVocab);
  uint32_t num_accepted = 0, num_outside = 0;
  for (uint32_t i = 0; i < 600; ++i) {
    Ids ids;
    const uint32_t keep = 1 + i % 7;  // of 7
    while (ids.empty())
      for (uint32_t id = 0; id < kVocab; ++id)
        if (random() % 7 < keep) ids.push_back(int32_t(id));
    if (i % 11 == 0) ids = {int32_t(random() % kVocab)};
    Part part = part_of(random_logits(kVocab, 3, i), ids);
    if (i % 13 == 0) part.logits[0] = part.whole[size_t(ids[0])] = std::nanf("");
    SamplingParams params = sampling(0.9f, i % 3 ? 0 : 20, i % 4 ? 1 : 0.9f, i % 5 ? 0 : 0.02f, i % 7 < 3 ? 1.3f : 1);
    std::vector<uint32_t> counts(kVocab);
    Ids masked;
    for (uint32_t id = 0; id < kVocab; ++id) {
      counts[id] = random() % 3 == 0;
      if (random() % 20 == 0) masked.push_back(int32_t(id));
      if (random() % 20 == 0) params.logit_bias.push_back({int32_t(id), float(int(random() % 9) - 4)});
    }
    if (i % 6 == 0) params.logit_bias.clear();
    SampleRequest request{.params = &params, .token_counts = counts.data(), .masked_ids = masked.data(),
                          .num_masked_ids = uint32_t(masked.size()), .position = i};
    CHECK_EQ(best_token(row_of(part), request), best_token(whole_row_of(part), request));
    request.scratch = part_scratch.data();
    const Proposal got = draw_draft(row_of(part), request, 1);
    request.scratch = whole_scratch.data();
    const Proposal expected = draw_draft(whole_row_of(part), request, 1);
    CHECK_EQ(got.token_id, expected.token_id);
    CHECK_EQ(got.total, expected.total);
    request.scratch = p_scratch.data();
    const Logits target = random_logits(kVocab, 3, i + 1000 * (i % 2));
    SampleResult from_part, from_whole;
    const bool accepted = verify_draft({target.data(), kVocab}, request, 1, got, from_part);
    CHECK_EQ(verify_draft({target.data(), kVocab}, request, 1, expected, from_whole), accepted);
    CHECK_EQ(from_part.token_id, from_whole.token_id);
    num_accepted += accepted;
    num_outside += !std::binary_search(ids.begin(), ids.end(), from_part.token_id);
  }
  CHECK(num_accepted > 100 && num_outside > 100);
}

// Level as in test_speculative_sampling.cpp: 1e-3 over the number of tests, fixed seeds.
TEST_CASE("tokens follow the target though the draft knows one token, none that is likely, or not the best") {
  constexpr uint32_t kVocab = 8, kRounds = 20'000;
  constexpr double kLevel = 1e-3 / 60;
  const Logits target = {1.2f, -0.3f, 0.8f, 2.0f, -1.5f, 0.1f, 1.1f, -0.4f}, draft = {2, 0, 1, 3, 0.5f, 0.7f, 0, 1};
  SamplingParams bias = sampling(0.9f, 5, 0.95f, 0, 1.4f);
  bias.logit_bias = {{1, 1.5f}, {3, -1.0f}};
  const std::vector<Setting> settings = {{target, sampling(1)},
                                         {target, sampling(1.1f, 4)},
                                         {target, sampling(1, 0, 0.8f)},
                                         {target, bias, {1, 0, 2, 1, 0, 0, 0, 3}, {0}}};
  const Ids vocabularies[] = {{3}, {4}, {0}, {1, 4, 7}, {0, 1, 2, 4, 5, 6, 7}};
  for (const Setting& setting : settings)
    for (const Ids& ids : vocabularies)
      for (const auto proposal : {DraftOptions::Proposal::argmax, DraftOptions::Proposal::sampled}) {
        const Part part = part_of(draft, ids);
        const Toy toy{kVocab, [&](int32_t, uint32_t) { return setting.logits; },
                      [&](int32_t, uint32_t, uint32_t) { return part.logits; }, part.ids.data()};
        round_fixture::Start start;
        start.params = setting.params;
        start.counts = setting.counts;
        start.stop_ids = setting.masked;
        start.min_tokens = start.max_tokens = 100;
        round_fixture::Rounds rounds(toy, start, {.mode = DraftOptions::Mode::fixed, .proposal = proposal}, 2);
        rounds.state->max_rounds = 1;
        std::vector<double> seen(kVocab);
        for (uint32_t i = 0; i < kRounds; ++i) {
          rounds.state->position = rounds.state->num_context = i;
          rounds.state->num_output = 1;
          rounds.output.counts = setting.counts;
          rounds.output.tokens.clear();
          rounds.run();
          ++seen[size_t(rounds.output.tokens[0].token_id)];
        }
        CHECK(p_value(seen, enumerate(setting)) > kLevel);
        // Control: as if the tokens that the draft does not know could not come.
        Setting wrong = setting;
        wrong.logits = part_of(setting.logits, ids).whole;
        if (!setting.masked.empty() && ids == Ids{0}) continue;  // nothing is left
        CHECK(p_value(seen, enumerate(wrong)) < 1e-9);
      }
}

CHECK_MAIN()
