// How far results of the expert kernels are off that round their activations.
#pragma once

#include "expert_run.h"

namespace fixture {

/// Largest error over its bound, and the root mean square of the errors over that of the values.
struct Errors {
  double worst = 0, squares = 0, value_squares = 0;

  void add(double got, double exact, double bound) {
    const double error = std::abs(got - exact);
    worst = std::isnan(error) ? INFINITY : std::max(worst, error / bound);
    squares += error * error;
    value_squares += exact * exact;
  }
  double relative() const { return std::sqrt(squares / value_squares); }
};

/// `RoundedProduct(matrix, row, x)`: the exact product, and `error`, what it may be off by.
template <typename RoundedProduct>
Errors act_errors(const Experts& experts, const Route& route, const AlignedRows<bf16_t>& x,
                  const std::vector<bf16_t>& act) {
  Errors errors;
  for (uint32_t s = 0; s < route.num_slots(); ++s)
    for (uint32_t i = 0; i < experts.shape.width; ++i) {
      const bf16_t* row = &x.at(route.slots[s].token, 0);
      const RoundedProduct g(*experts.gate[route.slots[s].expert], i, row);
      const RoundedProduct u(*experts.up[route.slots[s].expert], i, row);
      const double silu = silu_f64(g.exact.value), exact = silu * u.exact.value;
      const double before = 1.1 * g.error * (std::abs(u.exact.value) + u.error) +
                            std::abs(silu) * u.error + gamma(8, kFloatUnit) * std::abs(exact);
      errors.add(bf16_to_f32(act[s * experts.shape.width + i]), exact,
                 before + kBf16Unit * (std::abs(exact) + before) + 0x1p-110);
    }
  return errors;
}

template <typename RoundedProduct>
Errors sum_errors(const Experts& experts, const Route& route, const AlignedRows<bf16_t>& act,
                  const std::vector<float>& sums) {
  const uint32_t hidden_size = experts.shape.hidden_size;
  std::vector<double> exact(sums.size()), bound(sums.size(), 0x1p-110);
  for (uint32_t s = 0; s < route.num_slots(); ++s)
    for (uint32_t i = 0; i < hidden_size; ++i) {
      const RoundedProduct p(*experts.down[route.slots[s].expert], i, &act.at(s, 0));
      const double weight = double{route.slots[s].weight};
      exact[route.slots[s].token * hidden_size + i] += weight * p.exact.value;
      bound[route.slots[s].token * hidden_size + i] += weight * p.error;
    }
  Errors errors;
  for (size_t i = 0; i < sums.size(); ++i) errors.add(sums[i], exact[i], bound[i]);
  return errors;
}

}  // namespace fixture
