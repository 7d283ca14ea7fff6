// Random routers for the CUDA kernels, launched, and what they must answer.
#pragma once

#if !defined(MIMO_RT_TEST_ON_GPU)
#define MIMO_RT_HOST_EMULATION
#include "cuda/device/tasks/router_kernels.cuh"
#endif

#include "cuda/router.h"
#include "expert_fixture.h"
#include "kernel_launch.h"

namespace fixture {

#if defined(MIMO_RT_TEST_ON_GPU)
inline void run(const cuda::RouterLogitsParams& params, const Launch& launch) {
  cuda::launch_router_logits(params, {.num_blocks = launch.num_blocks});
  finish();
}
inline void run(const cuda::SelectExpertsParams& params, const Launch&) {
  cuda::launch_select_experts(params);
  finish();
}
#else
inline emulation::LaunchOptions options_of(const cuda::RouterLogitsParams&, const Launch& launch) {
  return options_of(launch, cuda::kBlockThreads, sizeof(cuda::RouterShared));
}
inline emulation::LaunchOptions options_of(const cuda::SelectExpertsParams&,
                                           const Launch& launch) {
  return options_of({.num_blocks = 1, .seed = launch.seed}, cuda::kComputeWarps * 32,
                    sizeof(cuda::SelectShared));
}
inline auto kernel_of(const cuda::RouterLogitsParams& params) {
  return cuda::router_logits_kernel(params);
}
inline auto kernel_of(const cuda::SelectExpertsParams&) { return cuda::select_experts_kernel; }

template <typename Params>
void run(const Params& params, const Launch& launch) {
  if constexpr (std::is_same_v<Params, cuda::RouterLogitsParams>)
    cuda::check_router_logits(params);
  else
    cuda::check_select_experts(params);
  run_emulated(kernel_of(params), params, options_of(params, launch));
}
#endif

/// The matrix of a router and rows for it.
struct Router {
  cuda::RouterFormat format;
  uint32_t num_experts, hidden_size, num_tokens;
  AlignedRows<float> f32;
  AlignedRows<bf16_t> bf16, x;

  /// `is_exact`: small integers.
  Router(cuda::RouterFormat router_format, uint32_t experts, uint32_t hidden, uint32_t tokens,
         uint32_t seed, bool is_exact = false)
      : format(router_format),
        num_experts(experts),
        hidden_size(hidden),
        num_tokens(tokens),
        f32(experts, hidden, 0.0f),
        bf16(experts, hidden, 0),
        x(tokens, hidden + 8, 0x7fc1) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    const auto draw = [&] {
      return is_exact ? static_cast<float>(random() % 9) - 4.0f : normal(random);
    };
    for (uint32_t e = 0; e < experts; ++e)
      for (uint32_t k = 0; k < hidden; ++k) {
        f32.at(e, k) = draw() / 16;
        bf16.at(e, k) = f32_to_bf16(f32.at(e, k));
        if (format == cuda::RouterFormat::bf16) f32.at(e, k) = bf16_to_f32(bf16.at(e, k));
      }
    for (uint32_t t = 0; t < tokens; ++t)
      for (uint32_t k = 0; k < hidden; ++k) x.at(t, k) = f32_to_bf16(draw());
  }

  cuda::RouterLogitsParams params(AlignedRows<float>& logits) const {
    cuda::RouterLogitsParams p;
    p.weights = format == cuda::RouterFormat::f32 ? reinterpret_cast<const uint8_t*>(f32.data)
                                                  : reinterpret_cast<const uint8_t*>(bf16.data);
    p.x = {x.data, x.stride};
    p.logits = {logits.data, logits.stride};
    p.format = format;
    p.num_tokens = num_tokens;
    p.num_experts = num_experts;
    p.hidden_size = hidden_size;
    return p;
  }
  Product dot(uint32_t token, uint32_t expert) const {
    Product product;
    for (uint32_t k = 0; k < hidden_size; ++k) {
      const double p = double{f32.at(expert, k)} * double{bf16_to_f32(x.at(token, k))};
      product.value += p;
      product.magnitude += std::abs(p);
    }
    return product;
  }
};

/// logits[num_tokens, num_experts]; columns and rows beyond must stay.
inline std::vector<float> route_logits(const Router& router, const Launch& launch = {}) {
  AlignedRows<float> out(router.num_tokens + 1, (router.num_experts + 7) / 4 * 4, -77.0f);
  run(router.params(out), launch);
  std::vector<float> logits;
  for (uint32_t t = 0; t <= router.num_tokens; ++t)
    for (uint32_t e = 0; e < out.stride; ++e) {
      if (t < router.num_tokens && e < router.num_experts)
        logits.push_back(out.at(t, e));
      else
        CHECK_EQ(out.at(t, e), -77.0f);
    }
  return logits;
}

/// A choice to make.
struct Selection {
  uint32_t num_tokens, num_experts, experts_per_token;
  bool has_bias = true, is_normalised = true;
  float factor = 1.0f;
  AlignedRows<float> logits;
  KernelVector<float> bias;
  // Behind the route there is room for what a planted fault writes: its indices are 16 bits.
  static constexpr uint32_t kMargin = 1 << 17;
  KernelVector<uint32_t> words;

  /// Logits and biases are coarse, so that there are ties and no near misses.
  Selection(uint32_t tokens, uint32_t experts, uint32_t chosen, uint32_t seed)
      : num_tokens(tokens),
        num_experts(experts),
        experts_per_token(chosen),
        logits(tokens, (experts + 3) / 4 * 4, NAN),
        words(num_words() + kMargin) {
    std::mt19937 random(seed);
    for (uint32_t e = 0; e < experts; ++e) bias.push_back(0.25f * static_cast<float>(random() % 3));
    for (uint32_t t = 0; t < tokens; ++t)
      for (uint32_t e = 0; e < experts; ++e)
        logits.at(t, e) = static_cast<float>(random() % 33) / 4 - 5.0f;
  }

  uint64_t num_words() const {
    return RouteTable::bytes(num_experts, num_tokens * experts_per_token) / 4;
  }

  cuda::SelectExpertsParams params() {
    cuda::SelectExpertsParams p;
    std::fill(words.begin(), words.end(), 0xdeadbeefu);
    p.logits = {logits.data, logits.stride};
    p.bias = has_bias ? bias.data() : nullptr;
    p.route = RouteTable::view(reinterpret_cast<uint8_t*>(words.data()), num_experts,
                               num_tokens * experts_per_token);
    p.num_tokens = num_tokens;
    p.num_experts = num_experts;
    p.experts_per_token = experts_per_token;
    p.norm_topk_prob = is_normalised;
    p.routed_scaling_factor = factor;
    return p;
  }

  /// The experts of a token, ascending, and their weights in float64.
  std::vector<std::pair<uint32_t, double>> reference(uint32_t token) const {
    std::vector<double> sigma(num_experts), score(num_experts);
    std::vector<uint32_t> order(num_experts);
    for (uint32_t e = 0; e < num_experts; ++e) {
      sigma[e] = 1.0 / (1.0 + std::exp(-double{logits.at(token, e)}));
      score[e] = std::isnan(sigma[e]) ? -INFINITY : sigma[e] + (has_bias ? double{bias[e]} : 0.0);
      order[e] = e;
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](uint32_t a, uint32_t b) { return score[a] > score[b]; });
    std::sort(order.begin(), order.begin() + experts_per_token);
    double sum = 1e-20;
    for (uint32_t i = 0; i < experts_per_token; ++i) sum += sigma[order[i]];
    std::vector<std::pair<uint32_t, double>> chosen;
    for (uint32_t i = 0; i < experts_per_token; ++i)
      chosen.push_back({order[i], sigma[order[i]] / (is_normalised ? sum : 1.0) * double{factor}});
    return chosen;
  }
};

}  // namespace fixture
