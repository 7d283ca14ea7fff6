#include "weights/cuda_expert_source.h"

#include "core/checks.h"
#include "core/text.h"

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Weights.load";
constexpr uint32_t kBlockWeights = 32;  // weights that share an E8M0 scale

}  // namespace

void check_cuda_expert(const MatrixSource& source, ColumnSlice columns, uint32_t row_multiple) {
  const auto name = printable(source.weight->name);
  MIMO_RT_CHECK(source.format == WeightFormat::mxfp4, unsupported_shape, kWhere, "tensor ", name,
                ": expected MXFP4 for the CUDA engine");
  MIMO_RT_CHECK(source.rows % row_multiple == 0 && source.rows != 0, unsupported_shape, kWhere,
                "tensor ", name, ": expected a multiple of ", row_multiple,
                " rows for the CUDA engine, got ", source.rows);
  MIMO_RT_CHECK(columns.count % kBlockWeights == 0 && columns.count != 0 &&
                    columns.first % kBlockWeights == 0,
                unsupported_shape, kWhere, "tensor ", name, ": expected a multiple of ",
                kBlockWeights, " columns for the CUDA engine, got ", columns.count, " from ",
                columns.first, " on");
}

void check_cuda_gate_up(const MatrixSource& gate, const MatrixSource& up) {
  check_cuda_expert(gate, ColumnSlice::all(gate), kBlockWeights);
  check_cuda_expert(up, ColumnSlice::all(up), kBlockWeights);
  MIMO_RT_CHECK(gate.rows == up.rows && gate.k == up.k, shape_mismatch, kWhere, "tensors ",
                printable(gate.weight->name), " and ", printable(up.weight->name),
                ": expected equal shapes, got [", gate.rows, ", ", gate.k, "] and [", up.rows, ", ",
                up.k, "]");
}

PackRow cuda_expert_row(const MatrixSource& source, uint32_t row, ColumnSlice columns,
                        uint32_t max_e8m0) {
  const std::span<const std::byte> scales = source.row_scales(row).subspan(
      columns.first / kBlockWeights, columns.count / kBlockWeights);
  for (size_t i = 0; i < scales.size(); ++i) {
    const auto scale = std::to_integer<uint32_t>(scales[i]);
    if (scale <= max_e8m0) continue;
    const size_t block = columns.first / kBlockWeights + i;
    MIMO_RT_CHECK(scale != 255, bad_format, kWhere, "tensor ", printable(source.scale->name),
                  ", row ", row, ", block ", block, ": expected a finite E8M0 scale, got NaN");
    fail(ErrorCode::unsupported_shape, kWhere, "tensor ", printable(source.scale->name), ", row ",
         row, ", block ", block, ": expected a scale of at most 2^",
         static_cast<int>(max_e8m0) - 127, " for the CUDA engine, got 2^",
         static_cast<int>(scale) - 127);
  }
  return {source.row_data(row).data() + columns.first / 2, scales.data()};
}

}  // namespace mimo_rt
