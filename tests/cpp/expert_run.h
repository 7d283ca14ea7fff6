// Runs the expert kernels, under the emulated GPU or (MIMO_RT_TEST_ON_GPU) on a real one, and says
// what their results may be off by.
#pragma once

#if !defined(MIMO_RT_TEST_ON_GPU)
#define MIMO_RT_HOST_EMULATION
#include "cuda/device/tasks/expert_kernels.cuh"
#endif

#include "cuda/expert_mlp.h"
#include "expert_fixture.h"
#include "kernel_launch.h"

namespace fixture {

#if defined(MIMO_RT_TEST_ON_GPU)
inline void run(const cuda::ExpertGateUpParams& params, const Launch& launch) {
  cuda::launch_expert_gate_up(params, {.num_blocks = launch.num_blocks});
  finish();
}
inline void run(const cuda::ExpertDownParams& params, const Launch& launch) {
  cuda::launch_expert_down(params, {.num_blocks = launch.num_blocks});
  finish();
}
#else
inline emulation::LaunchOptions expert_options(const Launch& launch) {
  return options_of(launch, cuda::kBlockThreads, sizeof(cuda::ExpertShared));
}
inline void run(const cuda::ExpertGateUpParams& params, const Launch& launch) {
  cuda::check_expert_gate_up(params);
  run_emulated(cuda::expert_gate_up_kernel, params, expert_options(launch));
}
inline void run(const cuda::ExpertDownParams& params, const Launch& launch) {
  cuda::check_expert_down(params);
  run_emulated(cuda::expert_down_kernel, params, expert_options(launch));
}
#endif

inline constexpr bf16_t kUntouched = 0x7fc1;  // a NaN

template <typename Params>
Params layer_params(KernelVector<uint8_t>& tiles, const ExpertShape& shape, Route& route) {
  Params params;
  params.tiles = Experts::aligned(tiles);
  params.route = route.table();
  params.num_tokens = route.num_tokens;
  params.max_slots = route.num_slots();
  params.hidden_size = shape.hidden_size;
  params.width = shape.width;
  return params;
}

/// act[num_slots, width] of all slots of `route`. `run_with(params)` launches.
template <typename Run>
std::vector<bf16_t> run_gate_up(Experts& experts, Route& route, const AlignedRows<bf16_t>& x,
                                const Run& run_with) {
  const ExpertShape& shape = experts.shape;
  AlignedRows<bf16_t> act(route.num_slots() + 1, shape.width, kUntouched);
  auto params = layer_params<cuda::ExpertGateUpParams>(experts.gate_up_tiles, shape, route);
  params.x = {x.data, x.stride};
  params.act = {act.data, act.stride};
  run_with(params);
  for (uint32_t i = 0; i < shape.width; ++i) CHECK_EQ(act.at(route.num_slots(), i), kUntouched);
  return {act.data, act.data + uint64_t{route.num_slots()} * shape.width};
}

/// sums[num_tokens, hidden_size]. `run_with(params)` launches.
template <typename Run>
std::vector<float> run_down(Experts& experts, Route& route, const AlignedRows<bf16_t>& act,
                            uint32_t num_segments, const Run& run_with) {
  const ExpertShape& shape = experts.shape;
  AlignedRows<float> sums(route.num_tokens + 1, shape.hidden_size, -77.0f);
  auto params = layer_params<cuda::ExpertDownParams>(experts.down_tiles, shape, route);
  params.act = {act.data, act.stride};
  params.sums = {sums.data, sums.stride};
  params.num_segments = num_segments;
  run_with(params);
  for (uint32_t i = 0; i < shape.hidden_size; ++i) CHECK_EQ(sums.at(route.num_tokens, i), -77.0f);
  return {sums.data, sums.data + uint64_t{route.num_tokens} * shape.hidden_size};
}

inline std::vector<bf16_t> gate_up(Experts& experts, Route& route, const AlignedRows<bf16_t>& x,
                                   const Launch& launch = {}) {
  return run_gate_up(experts, route, x,
                     [&](const cuda::ExpertGateUpParams& params) { run(params, launch); });
}

inline std::vector<float> down(Experts& experts, Route& route, const AlignedRows<bf16_t>& act,
                               uint32_t num_segments = 1, const Launch& launch = {}) {
  return run_down(experts, route, act, num_segments,
                  [&](const cuda::ExpertDownParams& params) { run(params, launch); });
}

/// Random values in the first `num_columns`; what is beyond keeps its NaN and may not be used.
inline void fill_normal(AlignedRows<bf16_t>& rows, uint32_t num_columns, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  for (uint32_t r = 0; r < rows.rows; ++r)
    for (uint32_t i = 0; i < num_columns; ++i) rows.at(r, i) = f32_to_bf16(normal(rng));
}

/// The same with integers in [low, high].
inline void fill_integers(AlignedRows<bf16_t>& rows, uint32_t num_columns, int low, int high,
                   uint32_t seed) {
  std::mt19937 rng(seed);
  std::uniform_int_distribution<int> draw(low, high);
  for (uint32_t r = 0; r < rows.rows; ++r)
    for (uint32_t i = 0; i < num_columns; ++i)
      rows.at(r, i) = f32_to_bf16(static_cast<float>(draw(rng)));
}

/// n roundings of u each: n u / (1 - n u).
inline double gamma(double n, double u) { return n * u / (1 - n * u); }

// Unit roundoff of one step of a tensor-core sum. Hardware truncates instead of rounding: 2^-23.
inline constexpr double kSumUnit = 0x1p-23, kFloatUnit = 0x1p-24, kBf16Unit = 0x1p-8;
// Of one addition to a sum that is held times 2^-24: half of the smallest subnormal, times 2^24.
inline constexpr double kUnderflow = 0x1p-126;

/// Calls f(gate, up, what act has for them) for every element, with products in float64.
template <class F>
void for_each_act(const Experts& experts, const Route& route, const AlignedRows<bf16_t>& x,
                  const std::vector<bf16_t>& act, const F& f) {
  for (uint32_t s = 0; s < route.num_slots(); ++s)
    for (uint32_t i = 0; i < experts.shape.width; ++i) {
      const bf16_t* row = &x.at(route.slots[s].token, 0);
      f(dot(*experts.gate[route.slots[s].expert], i, row), dot(*experts.up[route.slots[s].expert], i, row),
        act[s * experts.shape.width + i]);
    }
}

/// Largest error over its bound in act. gate and up: k products and as many additions (the products
/// are exact), 8 segments. |silu'| < 1.1; expf, the sigmoid and two products: 8 roundings.
inline double worst_act(const Experts& experts, const Route& route, const AlignedRows<bf16_t>& x,
                 const std::vector<bf16_t>& act) {
  const double sum_error = gamma(experts.shape.hidden_size + 8.0, kSumUnit);
  const double underflow = experts.shape.hidden_size * kUnderflow;
  double worst = 0;
  for_each_act(experts, route, x, act, [&](const Product& g, const Product& u, bf16_t got) {
    const double exact = silu_f64(g.value) * u.value;
    const double g_error = sum_error * g.magnitude + underflow;
    const double u_error = sum_error * u.magnitude + underflow;
    const double before = 1.1 * g_error * (std::abs(u.value) + u_error) +
                          std::abs(silu_f64(g.value)) * u_error +
                          gamma(8, kFloatUnit) * std::abs(exact);
    const double bound = before + kBf16Unit * (std::abs(exact) + before) + 0x1p-120;
    const double error = std::abs(bf16_to_f32(got) - exact) / bound;
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
  });
  return worst;
}

/// What sums[num_tokens, hidden_size] should be, in float64.
inline std::vector<Product> exact_sums(const Experts& experts, const Route& route, const AlignedRows<bf16_t>& act) {
  const uint32_t hidden_size = experts.shape.hidden_size;
  std::vector<Product> exact(uint64_t{route.num_tokens} * hidden_size);
  for (uint32_t s = 0; s < route.num_slots(); ++s)
    for (uint32_t i = 0; i < hidden_size; ++i) {
      const Product p = dot(*experts.down[route.slots[s].expert], i, &act.at(s, 0));
      Product& sum = exact[route.slots[s].token * hidden_size + i];
      sum.value += double{route.slots[s].weight} * p.value;
      sum.magnitude += double{route.slots[s].weight} * p.magnitude;
    }
  return exact;
}

/// Largest error over its bound in sums: k additions, one FMA per expert, one addition per segment;
/// underflow counts once per expert (fewer than 16, of weight below 2) and k.
inline double worst_sum(const Experts& experts, const Route& route, const AlignedRows<bf16_t>& act,
                 const std::vector<float>& sums) {
  const std::vector<Product> exact = exact_sums(experts, route, act);
  const double n = experts.shape.width + experts.shape.num_experts + 64.0;
  double worst = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double bound = gamma(n, kSumUnit) * exact[i].magnitude + 16 * n * kUnderflow;
    const double error = std::abs(sums[i] - exact[i].value) / bound;
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
  }
  return worst;
}

/// Elements of act that are not the exact product, rounded once. For Weights::exact_positive and activations 1 .. 3:
/// multiples of 2^-2.
inline uint32_t num_inexact(const Experts& experts, const Route& route, const AlignedRows<bf16_t>& x,
                            const std::vector<bf16_t>& act) {
  uint32_t num_different = 0;
  for_each_act(experts, route, x, act, [&](const Product& g, const Product& u, bf16_t got) {
    CHECK(g.value >= 20.0);  // silu(g) == g in FP32
    CHECK(g.magnitude < 0x1p+21 && u.magnitude < 0x1p+21);
    const auto product = static_cast<float>(g.value) * static_cast<float>(u.value);
    num_different += got != f32_to_bf16(product);
  });
  return num_different;
}

/// Sums that are not exact. For Weights::exact and integers: multiples of 2^-3, weights of slots multiples of 2^-2, so
/// that a product is at most four times as large as the magnitude of its sum.
inline uint32_t num_inexact(const Experts& experts, const Route& route, const AlignedRows<bf16_t>& act,
                            const std::vector<float>& sums) {
  const std::vector<Product> exact = exact_sums(experts, route, act);
  uint32_t num_different = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    CHECK(exact[i].magnitude < 0x1p+15);
    num_different += sums[i] != exact[i].value;
  }
  return num_different;
}

}  // namespace fixture
