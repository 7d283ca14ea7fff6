// Rows of logits for the CUDA sampling kernels, and the launches; the CPU's sampler says what must
// come out.
#pragma once

#if !defined(MIMO_RT_TEST_ON_GPU)
#define MIMO_RT_HOST_EMULATION
#include "cuda/device/tasks/sampling_kernels.cuh"
#endif

#include <mimo_rt/sampling.h>

#include "cuda/sampling.h"
#include "expert_fixture.h"
#include "kernel_launch.h"
#include "sampling/speculative.h"

namespace fixture {

#if defined(MIMO_RT_TEST_ON_GPU)
inline void run(const cuda::SampleParams& params, const Launch& launch) {
  cuda::launch_sample(params, {.num_blocks = launch.num_blocks});
  finish();
}
inline void run(const cuda::SampleRowsParams& params, const Launch& launch) {
  cuda::launch_sample_rows(params, {.num_blocks = launch.num_blocks});
  finish();
}
inline void run(const cuda::AcceptParams& params) {
  cuda::launch_accept(params);
  finish();
}
#else
/// Of the kernels that share a row out in slices, and of the one that draws.
inline emulation::LaunchOptions slice_options(const Launch& launch) {
  return options_of(launch, cuda::kComputeWarps * 32, 0);
}
inline emulation::LaunchOptions draw_options(const Launch& launch) {
  return options_of(launch, cuda::kComputeWarps * 32, sizeof(cuda::DrawShared));
}
inline void run(const cuda::SampleParams& params, const Launch& launch) {
  cuda::check_sample(params);
  run_emulated(cuda::sample_best_kernel, params, slice_options(launch));
  if (params.rules.temperature != 0.0f)
    run_emulated(cuda::sample_weigh_kernel, params, slice_options(launch));
  run_emulated(cuda::sample_draw_kernel, params, draw_options(launch));
}
inline void run(const cuda::SampleRowsParams& params, const Launch& launch) {
  cuda::check_sample_rows(params);
  run_emulated(cuda::sample_rows_kernel, params, draw_options(launch));
}
inline void run(const cuda::AcceptParams& params) {
  cuda::check_accept(params);
  run_emulated(cuda::accept_kernel, params, options_of({.num_blocks = 1}, 32, 0));
}
#endif

/// How rows of logits are drawn.
/// peaked: one token is far ahead, and others that top-p 0.9999 needs are not near it.
enum class Logits : uint8_t { normal, coarse, peaked, equal, broken, none };

inline void fill_logits(AlignedRows<float>& rows, uint32_t vocab_size, Logits kind,
                        uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  for (uint32_t r = 0; r < rows.rows; ++r)
    for (uint32_t i = 0; i < vocab_size; ++i) {
      float& x = rows.at(r, i);
      x = normal(random);
      if (kind == Logits::coarse) x = std::round(x);
      if (kind == Logits::peaked) x = i == vocab_size / 2 ? 13.0f : 0.1f * x;
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
