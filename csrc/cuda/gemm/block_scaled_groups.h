// What CUTLASS reads of each group of block_scaled.h's products: for block_scaled_sm100.cu and, as
// its products cannot be emulated, for a test that reads groups as CUTLASS does (tests/cutlass).
// For g++ and nvcc, with CUTLASS's headers.
#pragma once

#include <cute/tensor.hpp>
#include <cutlass/detail/sm100_blockscaled_layout.hpp>
#include <cutlass/float8.h>
#include <cutlass/float_subbyte.h>

#include "cuda/gemm/block_scaled.h"
#include "weights/cuda_mx.h"

namespace mimo_rt::cuda {

using GroupShape = cute::Shape<int, int, int>;  ///< rows, slots, k
using ScaleConfig = cutlass::detail::Sm1xxBlockScaledConfig<kCudaMxBlock>;
using AlongK = cute::Stride<int64_t, cute::_1, cute::_0>;     ///< of an operand [rows, k]
using AlongRows = cute::Stride<cute::_1, int64_t, cute::_0>;  ///< of the result [rows, slots]

/// Arrays with one element per group.
struct Groups {
  GroupShape* shapes;
  const cutlass::float_e2m1_t** weights;
  const cutlass::float_e4m3_t** codes;
  const cutlass::float_ue8m0_t **weight_scales, **scales;
  float** out;
  AlongK *weight_strides, *code_strides;
  AlongRows* out_strides;
  ScaleConfig::LayoutSF *weight_scale_layouts, *scale_layouts;
};

/// Arrays in the workspace, one behind the other.
class WorkspaceParts {
 public:
  explicit WorkspaceParts(uint8_t* memory) : memory_(memory) {}
  template <typename T>
  void add(T*& part, uint32_t count) {
    constexpr uint64_t kAlignment = 16;
    part = reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ += (uint64_t{count} * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
  }
  uint64_t bytes() const { return bytes_; }

 private:
  uint8_t* memory_;
  uint64_t bytes_ = 0;
};

/// Behind the descriptors. @return bytes of both
inline uint64_t place_groups(const BlockScaledGemm& p, Groups& groups) {
  WorkspaceParts parts(p.workspace + kDescriptorBytes);
  parts.add(groups.shapes, p.num_experts);
  parts.add(groups.weights, p.num_experts);
  parts.add(groups.codes, p.num_experts);
  parts.add(groups.weight_scales, p.num_experts);
  parts.add(groups.scales, p.num_experts);
  parts.add(groups.out, p.num_experts);
  parts.add(groups.weight_strides, p.num_experts);
  parts.add(groups.code_strides, p.num_experts);
  parts.add(groups.out_strides, p.num_experts);
  parts.add(groups.weight_scale_layouts, p.num_experts);
  parts.add(groups.scale_layouts, p.num_experts);
  return kDescriptorBytes + parts.bytes();
}

/// Group i is the i-th active expert; those beyond have no slots and so no tiles.
CUTE_HOST_DEVICE void list_group(const BlockScaledGemm& p, const Groups& groups, uint32_t i) {
  const CudaMxShape matrix{p.rows, p.k};
  const bool is_active = i < *p.route.num_active;
  const uint32_t begin = is_active ? p.route.slot_begin[i] : 0;
  const uint32_t end = is_active ? p.route.slot_begin[i + 1] : 0;
  const uint32_t expert = is_active ? p.route.active_experts[i] : 0;
  const uint8_t* weights = p.weights + expert * matrix.bytes();
  const GroupShape shape{static_cast<int>(p.rows), static_cast<int>(end - begin),
                         static_cast<int>(p.k)};
  groups.shapes[i] = shape;
  groups.weights[i] = reinterpret_cast<const cutlass::float_e2m1_t*>(weights);
  groups.weight_scales[i] =
      reinterpret_cast<const cutlass::float_ue8m0_t*>(weights + matrix.code_bytes());
  groups.codes[i] =
      reinterpret_cast<const cutlass::float_e4m3_t*>(p.codes + uint64_t{begin} * p.k);
  groups.scales[i] = reinterpret_cast<const cutlass::float_ue8m0_t*>(
      p.scales + cuda_mx_scale_offset(cuda_mx_scale_row(begin, i), 0, p.k));
  groups.out[i] = p.out + uint64_t{begin} * p.rows;
  cute::get<0>(groups.weight_strides[i]) = p.k;
  cute::get<0>(groups.code_strides[i]) = p.k;
  cute::get<1>(groups.out_strides[i]) = p.rows;
  groups.weight_scale_layouts[i] = ScaleConfig::tile_atom_to_shape_SFA(shape);
  groups.scale_layouts[i] = ScaleConfig::tile_atom_to_shape_SFB(shape);
}

}  // namespace mimo_rt::cuda
