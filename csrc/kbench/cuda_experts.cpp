#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cuda/gemm/block_scaled.h"
#include "kbench/cuda_subject.h"
#include "kbench/cuda_subjects.h"
#include "kbench/expert_routes.h"
#include "kbench/random_rows.h"
#include "weights/pack_cuda.h"
#include "weights/pack_cuda_mx.h"

namespace mimo_rt::kbench {
namespace {

// Experts that differ; the others repeat them. A prime: neighbours are never equal.
constexpr uint32_t kDistinctExperts = 7;
// Of one addition to a sum that is held times 2^-24: half of the smallest subnormal, times 2^24.
constexpr double kUnderflow = 0x1p-126;

/// What a kernel rounds its activations to.
enum class Rounding : uint8_t { none, fp8, mxfp8 };

template <typename Params>
constexpr Rounding rounding_of_kernel() {
  if constexpr (requires(Params p) { p.workspace; }) return Rounding::mxfp8;
  else if constexpr (requires(Params p) { p.x8; } || requires(Params p) { p.act8; })
    return Rounding::fp8;
  else return Rounding::none;
}

/// A product, and what rounding its activations may change in it.
struct ExpertProduct : Product {
  double rounding_error = 0;

  ExpertProduct(std::span<const double> weights, const bf16_t* x, Rounding rounding)
      : Product(dot(weights, x)) {
    // E4M3: 2^-4 of each, or half a step of the smallest codes of its scale.
    const auto k = static_cast<uint32_t>(weights.size());
    const uint32_t block = rounding == Rounding::mxfp8 ? kCudaMxBlock : k;
    for (uint32_t begin = 0; rounding != Rounding::none && begin < k; begin += block) {
      double scale = largest_of(x + begin, block) / 448;
      if (rounding == Rounding::mxfp8) scale = std::exp2(std::ceil(std::log2(scale)));
      for (uint32_t i = begin; i < begin + block; ++i)
        rounding_error += std::abs(weights[i]) *
                          std::max(0x1.01p-4 * std::abs(double{bf16_to_f32(x[i])}), 0x1p-10 * scale);
    }
  }

 private:
  static double largest_of(const bf16_t* x, uint32_t count) {
    double largest = 0;
    for (uint32_t i = 0; i < count; ++i)
      largest = std::max(largest, std::abs(double{bf16_to_f32(x[i])}));
    return largest;
  }
};

/// How experts are packed, for all kernels but those of MXFP8 activations.
struct Tiles {
  using Shape = CudaMatrixShape;
  static void pack(const Shape& shape, uint32_t group, const RandomRows& rows, uint8_t* matrix) {
    pack_cuda_rows(shape.k, rows.rows(), matrix + group * shape.group_bytes());
  }
  static UnpackedRow unpack(const Shape& shape, const uint8_t* matrix, uint32_t row) {
    return unpack_cuda_row(shape, matrix, row);
  }
  static uint32_t gate_row(uint32_t column) {
    return column / kCudaGateUpRows * kCudaTileRows + column % kCudaGateUpRows;
  }
  static uint32_t up_row(uint32_t column, uint32_t /*width*/) {
    return gate_row(column) + kCudaGateUpRows;
  }
  static uint64_t slots_bytes(uint32_t max_slots, uint32_t num_experts, uint32_t k) {
    return cuda::packed_slots_bytes(max_slots, num_experts, k);
  }
};

/// For those: cuda_mx.h.
struct MxRows {
  using Shape = CudaMxShape;
  static void pack(const Shape& shape, uint32_t group, const RandomRows& rows, uint8_t* matrix) {
    for (uint32_t i = 0; i < kTileRows; ++i)
      pack_cuda_mx_row(shape, group * kTileRows + i, rows.rows()[i], matrix);
    pack_cuda_mx_end(shape, matrix);
  }
  static UnpackedRow unpack(const Shape& shape, const uint8_t* matrix, uint32_t row) {
    return unpack_cuda_mx_row(shape, matrix, row);
  }
  static uint32_t gate_row(uint32_t column) { return column; }
  static uint32_t up_row(uint32_t column, uint32_t width) { return width + column; }
  static uint64_t slots_bytes(uint32_t max_slots, uint32_t num_experts, uint32_t k) {
    return cuda::mxfp8_slots_bytes(max_slots, num_experts, k);
  }
};

template <typename Params>
using PackingOf =
    std::conditional_t<rounding_of_kernel<Params>() == Rounding::mxfp8, MxRows, Tiles>;

/// What both expert kernels have: the packed experts, the routes (one per place), rows of BF16 that
/// go in and rows of T that come out.
template <typename Params, typename T>
class CudaExperts : public RowsSubject<Params, T> {
 protected:
  using Packing = PackingOf<Params>;
  using Shape = Packing::Shape;

  CudaExperts(const KernelCase& c, const KernelBenchOptions& options, const Shape& shape,
              std::unique_ptr<cuda::BenchDevice> device)
      : RowsSubject<Params, T>(c, std::move(device)),
        shape_(shape),
        routes_(c, options.seed, *this->device_) {
    upload_experts(options.seed);
    this->num_places_ = routes_.size();
    KernelWork& work = this->work_;
    work.bytes = static_cast<double>(routes_.num_active() * shape_.bytes());
    work.flops = 2.0 * routes_.num_slots() * shape_.rows * shape_.k;
    work.num_active_experts = routes_.num_active();
    Params& params = this->params_;
    params.num_tokens = c.num_tokens;
    params.max_slots = routes_.num_slots();
    params.hidden_size = c.hidden_size;
    params.width = c.width;
    if constexpr (requires { params.packed; }) {  // for many tokens
      params.num_experts = c.num_experts;
      params.packed = static_cast<uint8_t*>(this->device_->allocate(
          Packing::slots_bytes(params.max_slots, c.num_experts, shape_.k)));
    }
    if constexpr (requires { params.workspace; })
      params.workspace = static_cast<uint8_t*>(
          this->device_->allocate(cuda::block_scaled_workspace_bytes(c.num_experts)));
  }

  void aim(uint32_t place) override { this->params_.route = routes_.on_device(place); }

  /// The product of a packed row of the slot's expert with `x`.
  ExpertProduct product(uint32_t place, uint32_t slot, uint32_t row, const bf16_t* x) const {
    const uint32_t expert = routes_.expert(place, slot) % num_distinct();
    const uint8_t* tiles = host_tiles_.data() + expert * shape_.bytes();
    return {row_values(PackedFormat::mxfp4, Packing::unpack(shape_, tiles, row), shape_.k), x,
            rounding_of_kernel<Params>()};
  }
  cuda::ExpertFp8Rows make_fp8_rows(uint32_t num_rows) {
    cuda::BenchDevice& device = *this->device_;
    const uint32_t stride = (shape_.k + 15) / 16 * 16;
    auto* codes = static_cast<uint8_t*>(device.allocate(uint64_t{num_rows} * stride));
    return {{codes, stride}, static_cast<float*>(device.allocate(sizeof(float) * num_rows))};
  }

  float* make_products(uint64_t num_rows, uint32_t num_columns) {
    return static_cast<float*>(this->device_->allocate(sizeof(float) * num_rows * num_columns));
  }

  const Shape shape_;
  const ExpertRoutes routes_;

 private:
  uint32_t num_distinct() const { return std::min(this->measured_.num_experts, kDistinctExperts); }

  void upload_experts(uint64_t seed) {
    host_tiles_.resize(num_distinct() * shape_.bytes());
    const uint32_t num_groups = shape_.rows / kTileRows;
    for (uint32_t i = 0; i < num_distinct() * num_groups; ++i) {
      const RandomRows random(PackedFormat::mxfp4, shape_.k, seed + i);
      Packing::pack(shape_, i % num_groups, random,
                    host_tiles_.data() + i / num_groups * shape_.bytes());
    }
    cuda::BenchDevice& device = *this->device_;
    const uint32_t num_experts = this->measured_.num_experts;
    auto* tiles = static_cast<uint8_t*>(device.allocate(num_experts * shape_.bytes()));
    device.upload(tiles, host_tiles_.data(), host_tiles_.size());
    for (uint32_t expert = num_distinct(); expert < num_experts; ++expert)
      device.copy(tiles + expert * shape_.bytes(), tiles + expert % num_distinct() * shape_.bytes(),
                  shape_.bytes());
    this->params_.tiles = tiles;
  }

  std::vector<uint8_t> host_tiles_;  // the distinct experts
};

/// `Params`: for few tokens or for many.
template <typename Params>
class GateUp final : public CudaExperts<Params, uint16_t> {
  using Base = CudaExperts<Params, uint16_t>;
  using typename Base::Packing;
  using Base::params_, Base::shape_, Base::routes_;

 public:
  GateUp(const KernelCase& c, const KernelBenchOptions& options,
         std::unique_ptr<cuda::BenchDevice> device)
      : Base(c, options, {2 * c.width, c.hidden_size}, std::move(device)),
        x_(random_bf16(uint64_t{c.num_tokens} * c.hidden_size, options.seed ^ 1)) {
    params_.x = {this->upload(x_), c.hidden_size};
    params_.act = this->make_out(routes_.num_slots(), c.width);
    if constexpr (requires { params_.x8; }) params_.x8 = this->make_fp8_rows(c.num_tokens);
    if constexpr (requires { params_.products; })
      params_.products = this->make_products(params_.max_slots, 2 * c.width);
  }

 private:
  /// gate and up: k additions of exact products (those of E4M3 begin anew every 64 k: fewer on any
  /// way, FMAs and scale counted), 8 segments. |silu'| < 1.1; expf, the sigmoid and two products:
  /// 8 roundings.
  Bounded expected(uint32_t place, uint32_t slot, uint32_t column) override {
    const bf16_t* x = x_.data() + uint64_t{routes_.token(place, slot)} * shape_.k;
    const ExpertProduct gate = this->product(place, slot, Packing::gate_row(column), x);
    const ExpertProduct up =
        this->product(place, slot, Packing::up_row(column, params_.width), x);
    const double sum_error = rounding_of(shape_.k + 8.0, kProductSumUnit);
    const double underflow = shape_.k * kUnderflow;
    const double gate_error = sum_error * gate.magnitude + underflow + gate.rounding_error;
    const double up_error = sum_error * up.magnitude + underflow + up.rounding_error;
    const double silu = gate.value / (1.0 + std::exp(-gate.value)), exact = silu * up.value;
    const double before = 1.1 * gate_error * (std::abs(up.value) + up_error) +
                          std::abs(silu) * up_error + rounding_of(8, kF32Unit) * std::abs(exact);
    return {exact, before + kBf16Unit * (std::abs(exact) + before) + 0x1p-120};
  }

  const std::vector<bf16_t> x_;
};

template <typename Params>
class Down final : public CudaExperts<Params, float> {
  using Base = CudaExperts<Params, float>;
  using Base::params_, Base::shape_, Base::routes_, Base::measured_;

 public:
  Down(const KernelCase& c, const KernelBenchOptions& options,
       std::unique_ptr<cuda::BenchDevice> device)
      : Base(c, options, {c.hidden_size, c.width}, std::move(device)),
        act_(random_bf16(uint64_t{routes_.num_slots()} * c.width, options.seed ^ 1)) {
    params_.num_segments = c.num_segments;
    params_.act = {this->upload(act_), c.width};
    params_.sums = this->make_out(c.num_tokens, c.hidden_size);
    if constexpr (requires { params_.act8; })
      params_.act8 = this->make_fp8_rows(routes_.num_slots());
    if constexpr (requires { params_.partials; })
      params_.partials =
          this->make_products(uint64_t{c.num_segments} * params_.max_slots, c.hidden_size);
  }

 private:
  /// k additions, one FMA per expert of the token, one addition per segment; underflow once per
  /// expert and k (weights are below 2).
  Bounded expected(uint32_t place, uint32_t token, uint32_t column) override {
    Product sum;
    double rounding_error = 0;
    for (uint32_t slot = 0; slot < routes_.num_slots(); ++slot) {
      if (routes_.token(place, slot) != token) continue;
      const ExpertProduct p = this->product(place, slot, column, act_.data() + uint64_t{slot} * shape_.k);
      const auto weight = double{routes_.weight(place, slot)};
      sum.value += weight * p.value;
      sum.magnitude += weight * p.magnitude;
      rounding_error += weight * p.rounding_error;
    }
    const double n = shape_.k + measured_.experts_per_token + measured_.num_segments;
    return {sum.value, rounding_of(n, kProductSumUnit) * sum.magnitude + rounding_error +
                           2 * measured_.experts_per_token * n * kUnderflow};
  }

  const std::vector<bf16_t> act_;
};

}  // namespace

std::unique_ptr<Subject> make_cuda_experts(const KernelCase& kernel_case,
                                           const KernelBenchOptions& options,
                                           std::unique_ptr<cuda::BenchDevice> device) {
  KernelCase c = kernel_case;
  MIMO_RT_CHECK(c.format == "mxfp4", invalid_argument, kWhere,
                "format: expected mxfp4 for experts, got '", c.format, "'");
  check_positive("num_tokens", c.num_tokens);
  check_dim("num_experts", c.num_experts);
  check_positive("experts_per_token", c.experts_per_token);
  const bool is_mxfp8 = c.kernel.ends_with("_mxfp8");
  const bool is_gemm = is_mxfp8 || c.kernel.ends_with("_gemm");
  check_at_most("num_tokens", c.num_tokens,
                is_gemm ? cuda::kMaxGemmTokens : cuda::kMaxExpertTokens);
  check_at_most("experts_per_token", c.experts_per_token, c.num_experts);
  check_at_most("num_tokens * experts_per_token", c.num_tokens * c.experts_per_token,
                is_gemm ? cuda::kMaxGemmSlots : cuda::kMaxExpertSlots);
  if (is_gemm) check_at_most("num_experts", c.num_experts, cuda::kMaxGemmExperts);
  check_multiple("hidden_size", c.hidden_size, kBlockK);
  check_multiple("width", c.width, kBlockK);
  check_at_most("width", c.width, 1u << 24);
  c.num_segments = std::max(c.num_segments, 1u);
  if (is_mxfp8) device->check_mxfp8();
  using namespace cuda;
  if (c.kernel == "expert_gate_up")
    return std::make_unique<GateUp<ExpertGateUpParams>>(c, options, std::move(device));
  if (c.kernel == "expert_down")
    return std::make_unique<Down<ExpertDownParams>>(c, options, std::move(device));
  if (c.kernel == "expert_gate_up_fp8")
    return std::make_unique<GateUp<ExpertGateUpFp8Params>>(c, options, std::move(device));
  if (c.kernel == "expert_down_fp8")
    return std::make_unique<Down<ExpertDownFp8Params>>(c, options, std::move(device));
  if (c.kernel == "expert_gate_up_gemm")
    return std::make_unique<GateUp<ExpertGateUpGemmParams>>(c, options, std::move(device));
  if (c.kernel == "expert_down_gemm")
    return std::make_unique<Down<ExpertDownGemmParams>>(c, options, std::move(device));
  if (c.kernel == "expert_gate_up_mxfp8")
    return std::make_unique<GateUp<ExpertGateUpMxfp8Params>>(c, options, std::move(device));
  return std::make_unique<Down<ExpertDownMxfp8Params>>(c, options, std::move(device));
}

}  // namespace mimo_rt::kbench
