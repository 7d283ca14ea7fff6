#include <algorithm>
#include <cmath>
#include <limits>

#include "kbench/cuda_subjects.h"
#include "kbench/expert_routes.h"
#include "kbench/random_rows.h"
#include "weights/pack_cuda.h"

namespace mimo_rt::kbench {
namespace {

// Experts that differ; the others repeat them. A prime: neighbours are never equal.
constexpr uint32_t kDistinctExperts = 7;
constexpr uint32_t kCheckedSlots = 8, kCheckedColumns = 32;
constexpr double kSumUnit = 0x1p-23;  // tensor cores truncate where FP32 rounds
constexpr double kF32Unit = 0x1p-24, kBf16Unit = 0x1p-8;
// Of one addition to a sum that is held times 2^-24: half of the smallest subnormal, times 2^24.
constexpr double kUnderflow = 0x1p-126;

/// What both expert kernels have: the packed experts and the routes.
class CudaExperts : public Subject {
 public:
  KernelTimes run(uint32_t num_calls) override {
    return device_->time(num_calls, [this](uint32_t) { call(next_++ % routes_.size()); });
  }

  double worst_error() override {
    return std::max(worst_error_of(0), worst_error_of(static_cast<uint32_t>(routes_.size()) - 1));
  }

 protected:
  CudaExperts(const KernelCase& kernel_case, const KernelBenchOptions& options,
              const CudaMatrixShape& shape, std::unique_ptr<cuda::BenchDevice> device)
      : Subject(kernel_case),
        device_(std::move(device)),
        shape_(shape),
        routes_(kernel_case, options.seed, *device_) {
    upload_experts(options.seed);
    const double num_slots = routes_.num_slots();
    work_.bytes = static_cast<double>(routes_.num_active() * shape_.bytes());
    work_.flops = 2.0 * num_slots * shape_.rows * shape_.k;
    work_.read_bytes = static_cast<double>(device_->read_bytes());
    work_.num_active_experts = routes_.num_active();
  }

  virtual void call(uint32_t route_idx) = 0;
  virtual double worst_error_of(uint32_t route_idx) = 0;

  /// Weights of a packed row of an expert.
  std::vector<double> weights(uint32_t expert, uint32_t row) const {
    const uint8_t* tiles = host_tiles_.data() + expert % num_distinct() * shape_.bytes();
    return row_values(PackedFormat::mxfp4, unpack_cuda_row(shape_, tiles, row), shape_.k);
  }

  template <typename Params>
  void set_common(Params& params) const {
    params.tiles = tiles_;
    params.num_tokens = measured_.num_tokens;
    params.max_slots = routes_.num_slots();
    params.hidden_size = measured_.hidden_size;
    params.width = measured_.width;
  }

  /// Rows on the device. `data`: what they begin with.
  template <typename T>
  cuda::RowsView<T> upload_rows(const std::vector<T>& data, uint32_t width) {
    void* rows = device_->allocate(data.size() * sizeof(T));
    device_->upload(rows, data.data(), data.size() * sizeof(T));
    return {static_cast<T*>(rows), width};
  }

  /// `out` after a call into rows of NaN; false when one is left.
  template <typename T>
  bool run_into_nan(uint32_t route_idx, T nan, const cuda::RowsView<T>& rows, std::vector<T>& out) {
    std::fill(out.begin(), out.end(), nan);
    device_->upload(rows.data, out.data(), out.size() * sizeof(T));
    call(route_idx);
    device_->download(out.data(), rows.data, out.size() * sizeof(T));
    return std::none_of(out.begin(), out.end(), [](T value) {
      if constexpr (std::is_same_v<T, float>) return std::isnan(value);
      else return std::isnan(bf16_to_f32(value));
    });
  }

  std::unique_ptr<cuda::BenchDevice> device_;
  const CudaMatrixShape shape_;
  const ExpertRoutes routes_;

 private:
  uint32_t num_distinct() const { return std::min(measured_.num_experts, kDistinctExperts); }

  void upload_experts(uint64_t seed) {
    host_tiles_.resize(num_distinct() * shape_.bytes());
    const uint32_t num_groups = num_distinct() * shape_.num_row_groups();
    for (uint32_t group = 0; group < num_groups; ++group) {
      const RandomRows random(PackedFormat::mxfp4, shape_.k, seed + group);
      pack_cuda_rows(shape_.k, random.rows(), host_tiles_.data() + group * shape_.group_bytes());
    }
    tiles_ = static_cast<uint8_t*>(device_->allocate(measured_.num_experts * shape_.bytes()));
    device_->upload(tiles_, host_tiles_.data(), host_tiles_.size());
    for (uint32_t expert = num_distinct(); expert < measured_.num_experts; ++expert)
      device_->copy(tiles_ + expert * shape_.bytes(),
                    tiles_ + expert % num_distinct() * shape_.bytes(), shape_.bytes());
  }

  std::vector<uint8_t> host_tiles_;  // the distinct experts
  uint8_t* tiles_ = nullptr;
  uint32_t next_ = 0;
};

class GateUp final : public CudaExperts {
 public:
  GateUp(const KernelCase& c, const KernelBenchOptions& options,
         std::unique_ptr<cuda::BenchDevice> device)
      : CudaExperts(c, options, {2 * c.width, c.hidden_size}, std::move(device)),
        x_(random_bf16(uint64_t{c.num_tokens} * c.hidden_size, options.seed ^ 1)),
        act_(uint64_t{routes_.num_slots()} * c.width) {
    set_common(params_);
    const cuda::RowsView<uint16_t> x = upload_rows(x_, c.hidden_size);
    params_.x = {x.data, x.stride};
    params_.act = upload_rows(act_, c.width);
  }

 private:
  void call(uint32_t route_idx) override {
    params_.route = routes_.on_device(route_idx);
    device_->launch(params_);
  }

  /// gate and up: k additions of exact products, 8 segments. |silu'| < 1.1; expf, the sigmoid and
  /// two products: 8 roundings.
  double worst_error_of(uint32_t route_idx) override {
    if (!run_into_nan(route_idx, uint16_t{0x7fc1}, params_.act, act_))
      return std::numeric_limits<double>::infinity();
    const double sum_error = rounding_of(shape_.k + 8.0, kSumUnit);
    const double underflow = shape_.k * kUnderflow;
    double worst = 0;
    for (const uint32_t slot : spread_over(routes_.num_slots(), kCheckedSlots))
      for (const uint32_t column : spread_over(measured_.width, kCheckedColumns)) {
        const uint32_t expert = routes_.expert(route_idx, slot);
        const bf16_t* x = x_.data() + uint64_t{routes_.token(route_idx, slot)} * shape_.k;
        const uint32_t row = column / kCudaGateUpRows * kCudaTileRows + column % kCudaGateUpRows;
        const Product gate = dot(weights(expert, row), x);
        const Product up = dot(weights(expert, row + kCudaGateUpRows), x);
        const double silu = gate.value / (1.0 + std::exp(-gate.value));
        const double exact = silu * up.value;
        const double gate_error = sum_error * gate.magnitude + underflow;
        const double up_error = sum_error * up.magnitude + underflow;
        const double before = 1.1 * gate_error * (std::abs(up.value) + up_error) +
                              std::abs(silu) * up_error +
                              rounding_of(8, kF32Unit) * std::abs(exact);
        worst = worst_of(worst, double{bf16_to_f32(act_[uint64_t{slot} * measured_.width + column])},
                         exact, before + kBf16Unit * (std::abs(exact) + before) + 0x1p-120);
      }
    return worst;
  }

  const std::vector<bf16_t> x_;
  std::vector<bf16_t> act_;
  cuda::ExpertGateUpParams params_;
};

class Down final : public CudaExperts {
 public:
  Down(const KernelCase& c, const KernelBenchOptions& options,
       std::unique_ptr<cuda::BenchDevice> device)
      : CudaExperts(c, options, {c.hidden_size, c.width}, std::move(device)),
        act_(random_bf16(uint64_t{routes_.num_slots()} * c.width, options.seed ^ 1)),
        sums_(uint64_t{c.num_tokens} * c.hidden_size) {
    set_common(params_);
    params_.num_segments = c.num_segments;
    const cuda::RowsView<uint16_t> act = upload_rows(act_, c.width);
    params_.act = {act.data, act.stride};
    params_.sums = upload_rows(sums_, c.hidden_size);
  }

 private:
  void call(uint32_t route_idx) override {
    params_.route = routes_.on_device(route_idx);
    device_->launch(params_);
  }

  /// k additions, one FMA per expert of the token, one addition per segment; underflow once per
  /// expert and k (weights are below 2).
  double worst_error_of(uint32_t route_idx) override {
    if (!run_into_nan(route_idx, std::numeric_limits<float>::quiet_NaN(), params_.sums, sums_))
      return std::numeric_limits<double>::infinity();
    const double n = shape_.k + measured_.experts_per_token + measured_.num_segments;
    double worst = 0;
    for (const uint32_t token : spread_over(measured_.num_tokens, kCheckedSlots))
      for (const uint32_t column : spread_over(shape_.rows, kCheckedColumns)) {
        Product sum;
        for (uint32_t slot = 0; slot < routes_.num_slots(); ++slot) {
          if (routes_.token(route_idx, slot) != token) continue;
          const Product p = dot(weights(routes_.expert(route_idx, slot), column),
                                act_.data() + uint64_t{slot} * shape_.k);
          const auto weight = double{routes_.weight(route_idx, slot)};
          sum.value += weight * p.value;
          sum.magnitude += weight * p.magnitude;
        }
        worst = worst_of(worst, double{sums_[uint64_t{token} * shape_.rows + column]}, sum.value,
                         rounding_of(n, kSumUnit) * sum.magnitude +
                             2 * measured_.experts_per_token * n * kUnderflow);
      }
    return worst;
  }

  const std::vector<bf16_t> act_;
  std::vector<float> sums_;
  cuda::ExpertDownParams params_;
};

}  // namespace

std::unique_ptr<Subject> make_cuda_experts(const KernelCase& kernel_case,
                                           const KernelBenchOptions& options,
                                           std::unique_ptr<cuda::BenchDevice> device) {
  KernelCase c = kernel_case;
  MIMO_RT_CHECK(c.format == "mxfp4", invalid_argument, kWhere,
                "format: expected mxfp4 for experts, got '", c.format, "'");
  check_positive("num_tokens", c.num_tokens);
  check_positive("num_experts", c.num_experts);
  check_positive("experts_per_token", c.experts_per_token);
  check_at_most("num_tokens", c.num_tokens, cuda::kMaxExpertTokens);
  check_at_most("experts_per_token", c.experts_per_token, c.num_experts);
  check_at_most("num_tokens * experts_per_token", c.num_tokens * c.experts_per_token,
                cuda::kMaxExpertSlots);
  check_multiple("hidden_size", c.hidden_size, kBlockK);
  check_multiple("width", c.width, kBlockK);
  c.num_segments = std::max(c.num_segments, 1u);
  if (c.kernel == "expert_gate_up") return std::make_unique<GateUp>(c, options, std::move(device));
  return std::make_unique<Down>(c, options, std::move(device));
}

}  // namespace mimo_rt::kbench
