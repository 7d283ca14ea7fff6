// The sampling kernels of the CUDA engine, their own source under the emulated GPU, against the
// CPU's sampler: equal tokens for equal logits, whatever the filters, in every schedule; and
// blocks of drafts against the CPU's rounds. native_cuda_sampling.cpp builds the same tests for a
// real GPU.
#include "sampling_fixture.h"

#include <cmath>
#include <numeric>

#if !defined(MIMO_RT_TEST_ON_GPU)
#include "planted_faults.h"
#endif

using namespace mimo_rt;
using namespace fixture;

namespace {

#if !defined(MIMO_RT_TEST_ON_GPU)
/// As the persistent kernel does it.
void sample_row_kernel(cuda::SampleParams params) {
  cuda::sample_row(*reinterpret_cast<cuda::DrawShared*>(ptx::dynamic_shared_memory()), params, 0);
}
#endif

/// One of everything, and mixtures.
std::vector<SamplingParams> settings() {
  return {
      {},
      {.temperature = 0.0f},
      {.temperature = 0.6f, .seed = 3},
      {.sample_top_k = 1},
      {.sample_top_k = 20, .seed = 5},
      {.sample_top_p = 0.9f},
      {.sample_top_p = 1e-6f},
      {.min_p = 0.05f},
      {.temperature = 2.0f, .sample_top_k = 50, .sample_top_p = 0.7f, .min_p = 0.01f, .seed = 9},
      {.temperature = 0.0f, .repetition_penalty = 1.3f, .logit_bias = {{1, 4.0f}, {4, -90.0f}}},
      {.sample_top_k = 7, .repetition_penalty = 0.8f, .logit_bias = {{0, 2.0f}, {3, 1.5f}}},
      {.temperature = 1e-3f, .sample_top_p = 0.5f},
      {.sample_top_p = 0.9999f},
      {.sample_top_p = 0.9999f, .min_p = 0.01f},
      {.min_p = 1e-6f},
  };
}

std::vector<int32_t> sample_on_cpu(const SampleCall& call) {
  std::vector<int32_t> tokens;
  std::vector<uint64_t> memory;
  for (uint32_t r = 0; r < call.num_rows; ++r) {
    SampleResult result;
    sample_token({call.row(r), call.vocab_size},
                 call.request(r, call.counts.empty() ? nullptr : call.counts.data(), memory),
                 result);
    tokens.push_back(result.token_id);
  }
  return tokens;
}

/// A block: drafts and what the target makes of them.
struct Block {
  SampleCall draft, target;
  bool is_drawn;  ///< drafts are drawn from their distribution, else best tokens

  Block(const SamplingParams& params, uint32_t num_rows, uint32_t vocab, bool drawn, uint32_t seed)
      : draft(params, num_rows - 1, vocab, Logits::normal, seed),
        target(params, num_rows, vocab, Logits::normal, seed),
        is_drawn(drawn && params.temperature > 0.0f) {
    std::mt19937 random(seed);  // the draft is often right, never quite
    std::normal_distribution<float> normal;
    for (uint32_t r = 0; r + 1 < num_rows; ++r)
      for (uint32_t i = 0; i < vocab; ++i)
        draft.logits.at(r, i) = target.logits.at(r, i) + 1.5f * normal(random);
    for (SampleCall* call : {&draft, &target}) {
      call->masked = {2, 5};
      call->num_masked_rows = seed % 3;
      call->sequence_id = 77;
    }
  }

  /// Tokens of the kernels: the drafts confirmed, then the one after them.
  std::vector<int32_t> run_kernels(const Launch& launch = {}) {
    cuda::SampleParams draft_params = draft.kernel_params();
    draft_params.role = cuda::SampleRole::draft;
    if (!is_drawn) draft_params.rules.temperature = 0.0f;
    run(draft_params, launch);
    target.block.assign(1, 1);
    target.block.insert(target.block.end(), draft.tokens.begin(), draft.tokens.end() - 1);
    cuda::SampleParams target_params = target.kernel_params();
    if (is_drawn) target_params.proposals = draft.view();
    run(target_params, launch);
    KernelVector<uint32_t> accepted(1);
    KernelVector<int32_t> next(1);
    run({target.tokens.data(), target.block.data(), accepted.data(), next.data(), target.num_rows});
    std::vector<int32_t> tokens(target.block.begin() + 1, target.block.begin() + 1 + accepted[0]);
    tokens.push_back(next[0]);
    return tokens;
  }

  /// The same as the tasks of a round do it (engine/round.cpp).
  std::vector<int32_t> run_on_cpu() const {
    KernelVector<uint32_t> counts = target.counts;
    const uint32_t* some_counts = counts.empty() ? nullptr : counts.data();
    std::vector<std::vector<uint64_t>> memory(target.num_rows + 1);
    std::vector<Proposal> proposals(target.num_rows);
    for (uint32_t r = 1; r < target.num_rows; ++r) {
      const SampleRequest request = draft.request(r - 1, some_counts, memory[r]);
      if (is_drawn)
        proposals[r] = draw_draft({draft.row(r - 1), draft.vocab_size}, request, r);
      else
        proposals[r].token_id =
            std::max(best_token({draft.row(r - 1), draft.vocab_size}, request), 0);
    }
    std::vector<int32_t> tokens;
    for (uint32_t r = 0;; ++r) {
      const SampleRequest request = target.request(r, some_counts, memory[0]);
      SampleResult result;
      bool confirmed = false;
      if (r + 1 < target.num_rows && is_drawn) {
        confirmed = verify_draft({target.row(r), target.vocab_size}, request, r + 1,
                                 proposals[r + 1], result);
      } else {
        sample_token({target.row(r), target.vocab_size}, request, result);
        confirmed = r + 1 < target.num_rows && result.token_id == proposals[r + 1].token_id;
      }
      tokens.push_back(result.token_id);
      if (!confirmed) return tokens;
      if (!counts.empty()) ++counts[static_cast<size_t>(result.token_id)];
    }
  }
};

}  // namespace

TEST_CASE("tokens are those of the CPU's sampler, whatever the filters") {
  uint32_t seed = 0, num_tokens = 0, num_equal_to_another_seed = 0;
  for (const Logits kind :
       {Logits::normal, Logits::coarse, Logits::peaked, Logits::equal, Logits::broken, Logits::none})
    for (const uint32_t vocab : {1u, 5u, 300u, 4099u})
      for (const SamplingParams& params : settings()) {
        if (vocab == 4099 && kind == Logits::none) continue;
        SampleCall call(params, vocab == 4099 ? 2 : 4, vocab, kind, ++seed);
        call.masked = {0, 4};
        call.num_masked_rows = seed % 4 == 0 && vocab > 1 ? 2 : 0;
        const std::vector<int32_t> expected = sample_on_cpu(call), tokens = call.sample();
        CHECK(tokens == expected);
        if (params.temperature == 0.0f || kind == Logits::none || kind == Logits::peaked || vocab < 300) continue;
        ++call.params.seed;
        const std::vector<int32_t> others = call.sample();
        for (uint32_t r = 0; r < call.num_rows; ++r)
          num_equal_to_another_seed += others[r] == expected[r];
        num_tokens += call.num_rows;
      }
  CHECK(num_equal_to_another_seed < num_tokens / 2);
}

TEST_CASE("a row of the model's vocabulary has the CPU's tokens, most of them behind the first 256 slices") {
  constexpr uint32_t kVocab = 152576, kBehind = 256 * cuda::kSliceTokens;
  uint32_t num_behind = 0, num_calls = 0;
  for (const SamplingParams& params : settings()) {
    SampleCall call(params, 1, kVocab, Logits::normal, ++num_calls);
    for (uint32_t id = kBehind; id < kVocab; ++id) call.logits.at(0, id) += 8.0f;
    const std::vector<int32_t> expected = sample_on_cpu(call), tokens = call.sample({.num_blocks = 3});
    CHECK(tokens == expected);
    num_behind += expected[0] >= static_cast<int32_t>(kBehind);
  }
  CHECK(num_behind > num_calls / 2);
}

TEST_CASE("tokens at the edge of those near the best are filtered as the CPU filters them") {
  constexpr uint32_t kVocab = 4099, kRows = 4, kNumSlices = (kVocab + cuda::kSliceTokens - 1) / cuda::kSliceTokens;
  // Weights around 2^-15, where min_p ends within the list, and exponents around that at which the list itself ends.
  const float edges[] = {-10.39f, -10.4f, std::nextafter(-11.0f, 0.0f), -11.0f, std::nextafter(-11.0f, -12.0f)};
  uint32_t num_near = 0, num_at_edges = 0, seed = 0;
  for (uint32_t id = 0; id < kVocab; ++id) num_near += id == 7 || id % 5 < 3;
  std::vector<SamplingParams> wanted;
  for (const int32_t more : {-1, 0, 1}) wanted.push_back({.sample_top_k = num_near + more});
  for (const float min_p : {0x1p-15f, std::nextafter(0x1p-15f, 0.0f), std::nextafter(0x1p-15f, 1.0f)})
    wanted.push_back({.min_p = min_p});
  for (const float top_p : {0.95f, 0.97f}) wanted.push_back({.sample_top_p = top_p, .min_p = 0x1p-15f});
  for (SamplingParams& params : wanted)
    for (uint32_t repeat = 0; repeat < 8; ++repeat) {
      params.seed = ++seed;
      SampleCall call(params, kRows, kVocab, Logits::normal, seed);
      for (uint32_t r = 0; r < kRows; ++r)
        for (uint32_t id = 0; id < kVocab; ++id) call.logits.at(r, id) = id == 7 ? 0.0f : edges[id % 5];
      const std::vector<int32_t> expected = sample_on_cpu(call), tokens = call.sample();
      CHECK(tokens == expected);
      for (const int32_t token : tokens) num_at_edges += token != 7;
      const uint32_t* counts = call.view().near_counts;
      CHECK_EQ(std::accumulate(counts, counts + kNumSlices, 0u), num_near);
    }
  CHECK(num_at_edges > 5);
}

TEST_CASE("blocks of drafts give the tokens of the CPU's rounds, best drafts and drawn ones") {
  uint32_t seed = 0, num_accepted = 0, num_rejected = 0;
  for (const bool is_drawn : {false, true})
    for (const SamplingParams& params : settings())
      for (uint32_t repeat = 1; repeat < 6; ++repeat) {
        Block block(params, 1 + repeat, repeat == 5 ? 2100 : 24, is_drawn, ++seed);
        const std::vector<int32_t> expected = block.run_on_cpu(), tokens = block.run_kernels();
        CHECK(tokens == expected);
        num_accepted += static_cast<uint32_t>(tokens.size()) - 1;
        num_rejected += tokens.size() < block.target.num_rows;
      }
  CHECK(num_accepted > 30);  // both happen often
  CHECK(num_rejected > 30);
}

TEST_CASE("a draft without a finite logit proposes token 0, which the target may confirm") {
  for (const bool is_drawn : {false, true}) {
    Block block({}, 3, 9, is_drawn, 4);
    for (uint32_t i = 0; i < 9; ++i) block.draft.logits.at(0, i) = NAN;
    block.target.logits.at(0, 0) = 30.0f;
    const std::vector<int32_t> tokens = block.run_kernels();
    CHECK_EQ(tokens[0], 0);
    CHECK(tokens.size() > 1);
    CHECK(tokens == block.run_on_cpu());
  }
}

TEST_CASE("the schedule and the number of blocks do not change a token") {
  const SamplingParams params{.temperature = 1.5f, .sample_top_k = 40, .sample_top_p = 0.8f};
  for (const bool is_drawn : {false, true}) {
    Block block(params, 3, 2500, is_drawn, 3);
    const std::vector<int32_t> expected = block.run_kernels();
    for (uint64_t seed = 1; seed <= 4; ++seed)
      CHECK(block.run_kernels({.num_blocks = static_cast<uint32_t>(1 + seed), .seed = seed}) ==
            expected);
  }
}

TEST_CASE("arguments that the kernels cannot take are refused by name") {
  SampleCall call({.repetition_penalty = 1.1f, .logit_bias = {{0, 1.0f}}}, 2, 50, Logits::normal,
                  1);
  const cuda::SampleParams good = call.kernel_params();
  cuda::check_sample(good);
  const auto refused = check::refusal_of(good, cuda::check_sample);
  using P = cuda::SampleParams&;
  using enum ErrorCode;
  refused(capacity, "num_rows: expected 1 .. 64, got 65", [](P p) { p.num_rows = 65; });
  refused(unsupported_shape, "vocab_size: expected 1 .. 524288", [](P p) { p.vocab_size = 0; });
  refused(invalid_argument, "logits: expected an address", [](P p) { ++p.logits.data; });
  refused(invalid_argument, "logits.stride", [](P p) { p.logits.stride = 48; });
  refused(invalid_argument, "rules.temperature", [](P p) { p.rules.temperature = -1.0f; });
  refused(invalid_argument, "rules.temperature", [](P p) { p.rules.temperature = NAN; });
  refused(invalid_argument, "rules.top_p", [](P p) { p.rules.top_p = 0.0f; });
  refused(invalid_argument, "rules.min_p", [](P p) { p.rules.min_p = 1.0f; });
  refused(invalid_argument, "rules.repetition_penalty",
          [](P p) { p.rules.repetition_penalty = 0.0f; });
  refused(invalid_argument, "rules.token_counts", [](P p) { p.rules.token_counts = nullptr; });
  refused(invalid_argument, "rules.biases", [](P p) { p.rules.biases = nullptr; });
  refused(invalid_argument, "position", [](P p) { p.position = nullptr; });
  refused(invalid_argument, "tokens", [](P p) { p.tokens = nullptr; });
  refused(invalid_argument, "scratch.weights", [](P p) { p.scratch = {}; });
  refused(invalid_argument, "masked_ids", [](P p) { p.num_masked_ids = 1; });
  refused(invalid_argument, "block: expected memory, got null",
          [](P p) { p.proposals = p.scratch; });
  const int32_t block[2] = {};
  refused(invalid_argument, "block: expected null, the role is draft", [&](P p) {
    p.role = cuda::SampleRole::draft;
    p.block = block;
  });
  refused(invalid_argument, "proposals: expected null", [](P p) {
    p.role = cuda::SampleRole::draft;
    p.proposals = p.scratch;
  });
  const cuda::SampledRows rows;
  CHECK_THROWS(capacity, "[cuda.sample_rows] num_rows: expected 1 .. 64, got 65", cuda::check_sample_rows({&rows, 65}));
  CHECK_THROWS(invalid_argument, "rows: expected memory, got null", cuda::check_sample_rows({nullptr, 2}));
  CHECK_THROWS(invalid_argument, "[cuda.accept] tokens",
               cuda::check_accept({.block = block, .num_rows = 2}));
}

#if !defined(MIMO_RT_TEST_ON_GPU)
TEST_CASE("every barrier that is left out is found") {
  // Of top-k: after the first digit's list; of the second digit's sums and of their use. (The first digit is the same
  // whatever is read; without the barriers of the counts and of the slices' places a list has no bounds.) Of top-p: of the
  // list that those of the slices become, which is summed up first.
  const std::pair<SamplingParams, std::vector<uint32_t>> cases[] = {
      {{.temperature = 1.5f, .sample_top_k = 40, .sample_top_p = 0.9f}, {11, 12, 13}},
      {{.temperature = 1.5f, .sample_top_p = 0.9f}, {5}}};
  for (const auto& [sampling, ordinals] : cases) {
    SampleCall call(sampling, 1, 2200, Logits::normal, 5);
    const std::vector<int32_t> expected = call.sample();
    const std::vector<uint64_t> filtered(call.scratch.begin(), call.scratch.begin() + 2200);
    const cuda::SampleParams params = call.kernel_params();
    run_emulated(cuda::sample_weigh_kernel, params, slice_options({}));
    std::fill_n(params.scratch.lists + 2200, 2 * 2200, 0u);  // a stale list names a token that exists
    const std::vector<uint64_t> weighed(call.scratch.begin(), call.scratch.end());
    const KnownLaunch launch{draw_options({.num_blocks = 1}),
                             [&](const emulation::LaunchOptions& options) {
                               std::copy(weighed.begin(), weighed.end(), call.scratch.begin());
                               return emulation::launch(options, cuda::sample_draw_kernel, params).error;
                             },
                             [&] {
                               return call.tokens[0] == expected[0] &&
                                      std::equal(filtered.begin(), filtered.end(), call.scratch.begin());
                             }};
    launch.expect_seen(emulation::Skip::named_barrier, ordinals);
  }
}

TEST_CASE("the barrier of a row that one block draws is missed when it is left out") {
  SampleCall call({.temperature = 1.5f}, 1, 2200, Logits::normal, 5);
  const int32_t expected = call.sample()[0];
  const cuda::SampleParams params = call.kernel_params();
  const KnownLaunch launch{draw_options({.num_blocks = 1}),
                           [&](const emulation::LaunchOptions& options) {
                             std::fill_n(params.scratch.slice_sums, cuda::num_slices_of(2200), uint64_t{0});
                             return emulation::launch(options, sample_row_kernel, params).error;
                           },
                           [&] { return call.tokens[0] == expected; }};
  launch.expect_seen(emulation::Skip::named_barrier, {0});
}
#endif

CHECK_MAIN()
