// The layout of csrc/weights/cuda_mx.h and what the packer makes of it, read through CuTe: the
// layouts and number formats with which the kernel of csrc/cuda/gemm/block_scaled_sm100.cu was
// built. test_cutlass.py builds this with CUTLASS's headers and runs it; no GPU is needed.
#include <cute/tensor.hpp>
#include <cutlass/detail/sm100_blockscaled_layout.hpp>
#include <cutlass/float8.h>
#include <cutlass/float_subbyte.h>

#include "check.h"
#include "core/numeric.h"
#include "pack_fixture.h"
#include "weights/pack_cuda_mx.h"

using namespace mimo_rt;
using namespace fixture;

namespace {

using ScaleConfig = cutlass::detail::Sm1xxBlockScaledConfig<32>;

struct Extent {
  uint32_t rows, k;
};
constexpr Extent kExtents[] = {{16, 128}, {128, 128}, {144, 256}, {512, 384}, {300, 6144}};

/// How many scales lie elsewhere for CuTe than where `offset_of(row, block, k)` says. As of weights
/// (M), and as of activations (N).
template <typename OffsetOf>
uint64_t count_misplaced(const Extent& extent, const OffsetOf& offset_of) {
  const int rows = static_cast<int>(extent.rows), k = static_cast<int>(extent.k);
  const auto of_weights = ScaleConfig::tile_atom_to_shape_SFA(cute::make_shape(rows, 64, k));
  const auto of_activations = ScaleConfig::tile_atom_to_shape_SFB(cute::make_shape(256, rows, k));
  uint64_t num_misplaced = 0;
  for (int row = 0; row < rows; ++row)
    for (int i = 0; i < k; ++i) {
      const auto offset = static_cast<int64_t>(
          offset_of(static_cast<uint32_t>(row), static_cast<uint32_t>(i) / 32, extent.k));
      num_misplaced += int64_t{of_weights(row, i, 0)} != offset;
      num_misplaced += int64_t{of_activations(row, i, 0)} != offset;
    }
  return num_misplaced;
}

/// Elements of a packed matrix that CuTe reads with another value than the stored one.
uint64_t count_wrong(const CudaMxShape& shape, const std::vector<uint8_t>& packed,
                     const MatrixSource& source) {
  const int rows = static_cast<int>(shape.rows), k = static_cast<int>(shape.padded_k());
  const auto codes = cute::make_tensor(
      cute::recast_ptr<const cutlass::float_e2m1_t>(packed.data()),
      cute::make_layout(cute::make_shape(rows, k), cute::make_stride(k, cute::Int<1>{})));
  const auto scales = cute::make_tensor(
      reinterpret_cast<const cutlass::float_ue8m0_t*>(packed.data() + shape.code_bytes()),
      ScaleConfig::tile_atom_to_shape_SFA(cute::make_shape(rows, 64, k)));
  uint64_t num_wrong = 0;
  for (int row = 0; row < rows; ++row)
    for (int i = 0; i < k; ++i) {
      double stored = 0;
      if (i < static_cast<int>(shape.k)) {
        const auto byte = std::to_integer<uint32_t>(source.row_data(row)[i / 2]);
        const auto code = static_cast<uint8_t>(byte >> i % 2 * 4 & 15);
        const auto scale = std::to_integer<uint8_t>(source.row_scales(row)[i / 32]);
        stored = double{fp4_e2m1_to_f32(code)} * double{e8m0_to_f32(scale)};
      }
      const cutlass::float_e2m1_t code = codes(row, i);
      const cutlass::float_ue8m0_t scale = scales(row, i, 0);
      num_wrong += double{static_cast<float>(code)} * double{static_cast<float>(scale)} != stored;
    }
  return num_wrong;
}

}  // namespace

TEST_CASE("every scale is where CuTe looks for it; other places are not") {
  for (const Extent& extent : kExtents) {
    CHECK_EQ(count_misplaced(extent, cuda_mx_scale_offset), 0u);
    const auto of_weights = ScaleConfig::tile_atom_to_shape_SFA(cute::make_shape(
        static_cast<int>(extent.rows), 64, static_cast<int>(extent.k)));
    CHECK_EQ(static_cast<uint64_t>(cute::cosize(cute::filter_zeros(of_weights))),
             cuda_mx_scale_bytes(extent.rows, extent.k));
    const auto lanes_and_quarters_exchanged = [](uint32_t row, uint32_t block, uint32_t k) {
      return cuda_mx_scale_offset(row / 128 * 128 + row % 4 * 32 + row % 128 / 4, block, k);
    };
    CHECK(count_misplaced(extent, lanes_and_quarters_exchanged) > 0);
    const auto without_atoms = [](uint32_t row, uint32_t block, uint32_t k) {
      return uint64_t{row} * (k / 32) + block;
    };
    CHECK(count_misplaced(extent, without_atoms) > 0);
    const auto atoms_down_the_rows = [&](uint32_t row, uint32_t block, uint32_t /*k*/) {
      const uint32_t num_row_atoms = (extent.rows + 127) / 128;
      return cuda_mx_scale_offset(row % 128, block % 4, 128) +
             (uint64_t{block / 4} * num_row_atoms + row / 128) * kCudaMxAtomBytes;
    };
    const bool is_same = extent.rows <= 128 || extent.k <= 128;
    CHECK_EQ(count_misplaced(extent, atoms_down_the_rows) == 0, is_same);
  }
}

TEST_CASE("CuTe reads packed matrices as they are stored; one bit of them is seen") {
  for (const Extent& extent : {Extent{16, 32}, Extent{176, 160}, Extent{128, 2880}}) {
    const auto matrix = make_matrix(PackedFormat::mxfp4, extent.rows, extent.k, extent.k);
    const ColumnSlice all = ColumnSlice::all(matrix->source);
    const CudaMxShape shape = cuda_mx_down_shape(matrix->source, all);
    std::vector<uint8_t> packed(shape.bytes());
    pack_cuda_mx_down(matrix->source, all, packed.data());
    CHECK_EQ(count_wrong(shape, packed, matrix->source), 0u);
    packed[shape.padded_k() / 2 + 3] ^= 0x20;  // of the code of row 1, k 7
    CHECK_EQ(count_wrong(shape, packed, matrix->source), 1u);
    packed[shape.padded_k() / 2 + 3] ^= 0x20;
    packed[shape.code_bytes() + 16] ^= 1;  // the scale of row 1, block 0
    CHECK(count_wrong(shape, packed, matrix->source) > 0);
  }
}

TEST_CASE("number formats are CUTLASS's") {
  for (uint32_t code = 0; code < 256; ++code) {
    const auto byte = static_cast<uint8_t>(code);
    const auto e4m3 = static_cast<float>(cutlass::float_e4m3_t::bitcast(byte));
    const float expected = fp8_e4m3_to_f32(byte);
    CHECK(std::isnan(e4m3) ? std::isnan(expected) : e4m3 == expected);
    if (code != 255)
      CHECK_EQ(static_cast<float>(cutlass::float_ue8m0_t::bitcast(byte)), e8m0_to_f32(byte));
    if (code < 16)
      CHECK_EQ(static_cast<float>(cutlass::float_e2m1_t::bitcast(byte)), fp4_e2m1_to_f32(byte));
  }
}

CHECK_MAIN()
