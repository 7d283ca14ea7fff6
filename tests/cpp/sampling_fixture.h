// Rows of logits for the CUDA sampling kernels, and the launches; the CPU's sampler says what must
// come out.
#pragma once

#if !defined(MIMO_RT_TEST_ON_GPU)
#define MIMO_RT_HOST_EMULATION
#include "cuda/device/tasks/sampling_kernels.cuh"
#include "emulation/schedule.h"
#endif

#include <mimo_rt/sampling.h>

#include "check.h"
#include "cuda/sampling.h"
#include "expert_fixture.h"
#include "sampling/speculative.h"

namespace fixture {

struct Launch {
  uint32_t num_blocks = 2;
  uint64_t seed = 0;
};

#if defined(MIMO_RT_TEST_ON_GPU)
inline void finish() {
  const cudaError_t status = cudaDeviceSynchronize();
  if (status != cudaSuccess) check::report(__FILE__, __LINE__, cudaGetErrorString(status));
  CHECK(status == cudaSuccess);
}
inline void run(const cuda::SampleParams& params, const Launch& launch) {
  cuda::launch_sample(params, {.num_blocks = launch.num_blocks});
  finish();
}
inline void run(const cuda::AcceptParams& params) {
  cuda::launch_accept(params);
  finish();
}
#else
/// @return an error text, or ""
template <typename Shared, typename Params>
std::string run_emulated(void (*kernel)(Params), const Params& params,
                         emulation::LaunchOptions options) {
  options.shared_bytes = sizeof(Shared);
  return emulation::launch(options, kernel, params).error;
}
inline emulation::LaunchOptions options_of(const Launch& launch) {
  emulation::LaunchOptions options;
  options.num_blocks = launch.num_blocks;
  options.num_threads = cuda::kComputeWarps * 32;
  options.seed = launch.seed;
  return options;
}
inline void expect_none(const std::string& error) {
  if (!error.empty()) check::report(__FILE__, __LINE__, error);
  CHECK(error.empty());
}
inline void run(const cuda::SampleParams& params, const Launch& launch) {
  cuda::check_sample(params);
  const emulation::LaunchOptions options = options_of(launch);
  using cuda::DrawShared, cuda::SliceShared;
  expect_none(run_emulated<SliceShared>(cuda::sample_best_kernel, params, options));
  if (params.rules.temperature != 0.0f)
    expect_none(run_emulated<SliceShared>(cuda::sample_weigh_kernel, params, options));
  expect_none(run_emulated<DrawShared>(cuda::sample_draw_kernel, params, options));
}
inline void run(const cuda::AcceptParams& params) {
  cuda::check_accept(params);
  emulation::LaunchOptions options;
  expect_none(run_emulated<uint32_t>(cuda::accept_kernel, params, options));
}
#endif

/// How rows of logits are drawn.
enum class Logits : uint8_t { normal, coarse, equal, broken, none };

inline void fill_logits(AlignedRows<float>& rows, uint32_t vocab_size, Logits kind,
                        uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  for (uint32_t r = 0; r < rows.rows; ++r)
    for (uint32_t i = 0; i < vocab_size; ++i) {
      float& x = rows.at(r, i);
      x = normal(random);
      if (kind == Logits::coarse) x = std::round(x);
      if (kind == Logits::equal) x = -0.5f;
      if (kind == Logits::none || (kind == Logits::broken && random() % 4 == 0))
        x = random() % 2 ? NAN : random() % 2 ? INFINITY : -INFINITY;
    }
}

/// Everything that a call of the kernels needs, made from what a request on the CPU is made from.
struct SampleCall {
  SamplingParams params;
  uint32_t num_rows, vocab_size;
  AlignedRows<float> logits;
  KernelVector<uint32_t> counts;
  KernelVector<int32_t> masked, block, tokens;
  KernelVector<TokenBias> biases;
  KernelVector<uint32_t> position;
  KernelVector<uint64_t> scratch;
  uint64_t sequence_id = 0;
  uint32_t num_masked_rows = 0;

  SampleCall(const SamplingParams& sampling, uint32_t rows, uint32_t vocab, Logits kind,
             uint32_t seed)
      : params(sampling),
        num_rows(rows),
        vocab_size(vocab),
        logits(rows, (vocab + 3) / 4 * 4, 1e30f),
        tokens(rows + 1, -77),
        position(1, seed * 10),
        scratch(cuda::SampleScratch::bytes(rows, vocab) / 8 + 1, ~uint64_t{0}) {
    fill_logits(logits, vocab, kind, seed);
    for (const TokenBias& bias : params.logit_bias) biases.push_back(bias);
    for (uint32_t id = 0; params.repetition_penalty != 1.0f && id < vocab; ++id)
      counts.push_back(id % 3 == seed % 3);
  }

  cuda::SampleScratch view() {
    return cuda::SampleScratch::view(reinterpret_cast<uint8_t*>(scratch.data()), num_rows,
                                     vocab_size);
  }
  cuda::SampleParams kernel_params() {
    cuda::SampleParams p;
    p.logits = {logits.data, logits.stride};
    p.rules = {.temperature = params.temperature,
               .top_k = params.sample_top_k,
               .top_p = params.sample_top_p,
               .min_p = params.min_p,
               .repetition_penalty = params.repetition_penalty,
               .seed = params.seed,
               .sequence_id = sequence_id,
               .token_counts = counts.empty() ? nullptr : counts.data(),
               .biases = biases.empty() ? nullptr : biases.data(),
               .num_biases = static_cast<uint32_t>(biases.size())};
    p.position = position.data();
    p.block = block.empty() ? nullptr : block.data();
    p.masked_ids = masked.empty() ? nullptr : masked.data();
    p.num_masked_ids = static_cast<uint32_t>(masked.size());
    p.num_masked_rows = num_masked_rows;
    p.scratch = view();
    p.tokens = tokens.data();
    p.num_rows = num_rows;
    p.vocab_size = vocab_size;
    return p;
  }
  /// The tokens of all rows.
  std::vector<int32_t> sample(const Launch& launch = {}) {
    run(kernel_params(), launch);
    CHECK_EQ(tokens[num_rows], -77);
    return {tokens.begin(), tokens.begin() + num_rows};
  }

  /// The same row as the CPU's sampler is asked for it. `memory`: its scratch.
  SampleRequest request(uint32_t row, const uint32_t* token_counts,
                        std::vector<uint64_t>& memory) const {
    memory.resize(sampler_scratch_bytes(vocab_size) / 8 + 2);
    SampleRequest request;
    request.params = &params;
    request.token_counts = token_counts;
    request.masked_ids = masked.data();
    request.num_masked_ids = row < num_masked_rows ? static_cast<uint32_t>(masked.size()) : 0;
    request.sequence_id = sequence_id;
    request.position = position[0] + row;
    request.scratch = memory.data();
    return request;
  }
  const float* row(uint32_t r) const { return &logits.at(r, 0); }
};

}  // namespace fixture
