// A router's matrix and the rows that it is multiplied by, and their products in float64.
#pragma once

#include <vector>

#include "kbench/cuda_subject.h"

namespace mimo_rt::kbench {

class RouterMatrix {
 public:
  /// c.format: "f32" or "bf16".
  RouterMatrix(const KernelCase& c, uint64_t seed)
      : hidden_size_(c.hidden_size),
        weights_(random_bf16(uint64_t{c.num_experts} * c.hidden_size, seed)),
        x_(random_bf16(uint64_t{c.num_tokens} * c.hidden_size, seed ^ 1)) {
    if (c.format != "f32") return;
    const std::vector<bf16_t> low = random_bf16(weights_.size(), seed ^ 2);
    for (size_t i = 0; i < weights_.size(); ++i)
      f32_.push_back(bf16_to_f32(weights_[i]) + 0x1p-10f * bf16_to_f32(low[i]));
  }

  const std::vector<bf16_t>& x() const { return x_; }
  const std::vector<bf16_t>& bf16_weights() const { return weights_; }
  /// Empty: the weights are BF16.
  const std::vector<float>& f32_weights() const { return f32_; }

  void add_work(KernelWork& work, uint32_t num_tokens) const {
    work.bytes += static_cast<double>(weights_.size()) * (f32_.empty() ? 2 : 4);
    work.flops += 2.0 * static_cast<double>(weights_.size()) * num_tokens;
  }

  /// hidden_size FMAs, 5 levels of the tree, 8 segments.
  Bounded logit(uint32_t token, uint32_t expert) const {
    std::vector<double> row(hidden_size_);
    for (uint32_t i = 0; i < hidden_size_; ++i) {
      const uint64_t at = uint64_t{expert} * hidden_size_ + i;
      row[i] = double{f32_.empty() ? bf16_to_f32(weights_[at]) : f32_[at]};
    }
    const Product logit = dot(row, x_.data() + uint64_t{token} * hidden_size_);
    return {logit.value, rounding_of(hidden_size_ + 13.0, kF32Unit) * logit.magnitude};
  }

 private:
  const uint32_t hidden_size_;
  const std::vector<bf16_t> weights_, x_;
  std::vector<float> f32_;
};

/// @throws Error{invalid_argument, unsupported_shape, capacity}
void check_router_case(const KernelCase& kernel_case, bool has_matrix);
/// What the choice of experts adds to it. @throws Error{invalid_argument, capacity}
void check_selection_case(const KernelCase& kernel_case);

}  // namespace mimo_rt::kbench
