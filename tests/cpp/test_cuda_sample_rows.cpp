// The tokens of a step's rows as the persistent kernel's tasks cut the work: shares of the slices of all rows, and the last
// to be done with a row draws it. Against the kernels that sample a call (test_cuda_sampling.cpp compares those with the
// CPU), for any number of shares and blocks, in random schedules. native_cuda_sample_rows.cpp builds the same tests for a
// real GPU.
#include "sampling_fixture.h"

#include <deque>

#if !defined(MIMO_RT_TEST_ON_GPU)
#include "planted_faults.h"
#endif

using namespace mimo_rt;
using namespace fixture;

namespace {

/// The rows of one call, as in a round, or of several with one row each, as in a step.
class SampledStep {
 public:
  explicit SampledStep(std::deque<SampleCall>& calls)
      : calls_(calls), num_rows_(1, calls.size() == 1 ? calls[0].num_rows : static_cast<uint32_t>(calls.size())) {
    for (SampleCall& call : calls) {
      const std::vector<int32_t> tokens = call.sample();
      right_.insert(right_.end(), tokens.begin(), tokens.end());
      params_.push_back(call.kernel_params());
    }
    rows_[0] = {params_.data(), num_rows_.data(), arrived_.data(), calls.size() != 1};
  }
  const std::vector<int32_t>& right() const { return right_; }

#if !defined(MIMO_RT_TEST_ON_GPU)
  /// @return an error text, or ""
  std::string try_run(const emulation::LaunchOptions& options) {
    forget();
    return emulation::launch(options, cuda::sample_rows_kernel, launch_params()).error;
  }
#endif
  std::vector<int32_t> run(const Launch& launch) {
    forget();
    fixture::run(launch_params(), launch);
    for (const uint32_t count : arrived_) CHECK_EQ(count, 0u);  // as the next step wants them
    return tokens();
  }
  std::vector<int32_t> tokens() const {
    std::vector<int32_t> tokens;
    for (const SampleCall& call : calls_) tokens.insert(tokens.end(), call.tokens.begin(), call.tokens.end() - 1);
    return tokens;
  }

 private:
  cuda::SampleRowsParams launch_params() const { return {rows_.data(), num_rows_[0]}; }

  /// Nothing of an earlier run may help.
  void forget() {
    for (SampleCall& call : calls_) std::fill(call.tokens.begin(), call.tokens.end(), -77);
    for (const cuda::SampleParams& p : params_) {
      const uint32_t num_slices = p.num_rows * cuda::num_slices_of(p.vocab_size);
      std::fill_n(p.scratch.weights, p.num_rows * p.vocab_size, uint64_t{1});
      std::fill_n(p.scratch.slice_sums, num_slices, uint64_t{0});
      std::fill_n(p.scratch.near_counts, num_slices, 0u);
    }
  }

  std::deque<SampleCall>& calls_;
  const KernelVector<uint32_t> num_rows_;  // [1]
  std::vector<int32_t> right_;
  KernelVector<cuda::SampleParams> params_;
  KernelVector<uint32_t> arrived_ = KernelVector<uint32_t>(8);
  KernelVector<cuda::SampledRows> rows_ = KernelVector<cuda::SampledRows>(1);
};

std::vector<SamplingParams> settings() {
  return {{.seed = 1},
          {.temperature = 0.0f},
          {.temperature = 1.5f, .sample_top_k = 40, .sample_top_p = 0.8f, .seed = 2},
          {.sample_top_p = 0.95f, .seed = 3},
          {.min_p = 0.02f, .repetition_penalty = 1.3f, .seed = 4, .logit_bias = {{1, 4.0f}, {700, 3.0f}}}};
}

}  // namespace

TEST_CASE("any number of blocks draws the tokens of a round's call, in every schedule") {
  for (const SamplingParams& params : settings()) {
    std::deque<SampleCall> calls;
    calls.emplace_back(params, 3, 1300, Logits::normal, 11);
    calls[0].block = {3, 5, 700};
    SampledStep step(calls);
    for (const uint32_t num_blocks : {1u, 2u, 5u, 9u, 10u})  // fewer than rows, as many as slices, and more
      for (uint64_t seed = 0; seed <= 2; ++seed)
        CHECK(step.run({.num_blocks = num_blocks, .seed = seed}) == step.right());
  }
}

TEST_CASE("rows with rules of their own count apart, whoever comes last") {
  std::deque<SampleCall> calls;
  for (const SamplingParams& params : settings()) calls.emplace_back(params, 1, 1300, Logits::normal, params.seed + 20);
  SampledStep step(calls);
  for (const uint32_t num_blocks : {1u, 2u, 4u})
    for (uint64_t seed = 1; seed <= 3; ++seed)
      CHECK(step.run({.num_blocks = num_blocks, .seed = seed}) == step.right());
  calls[3].logits.at(0, 77) = 50.0f;  // the comparison sees one logit of one row
  (void)calls[3].sample();  // its best scores
  CHECK(step.run({.num_blocks = 2}) != step.right());
}

#if !defined(MIMO_RT_TEST_ON_GPU)
TEST_CASE("every barrier that is left out is found") {
  std::deque<SampleCall> calls;
  calls.emplace_back(SamplingParams{.sample_top_p = 0.9f}, 1, 8000, Logits::normal, 31);
  SampledStep step(calls);
  const KnownLaunch launch{draw_options({.num_blocks = 2}),
                           [&](const emulation::LaunchOptions& options) { return step.try_run(options); },
                           [&] { return step.tokens() == step.right(); }};
  launch.expect_seen(emulation::Skip::named_barrier, {0, 1});  // before the share counts itself in; of who draws
}

TEST_CASE("a share that counts itself in without order looks right: only ThreadSanitizer finds it") {
  std::deque<SampleCall> calls;
  calls.emplace_back(SamplingParams{.sample_top_p = 0.9f}, 1, 1300, Logits::normal, 31);
  SampledStep step(calls);
  emulation::LaunchOptions options = draw_options({.num_blocks = 2});
  options.skip = emulation::Skip::count_order;
  CHECK(step.try_run(options).empty());
  CHECK(step.tokens() == step.right());
}
#endif

CHECK_MAIN()
