#include "weights/pack_cuda_mx.h"

#include <algorithm>
#include <cstring>

#include "weights/cuda_expert_source.h"

namespace mimo_rt {
namespace {

constexpr uint32_t kMaxE8m0 = 254;  // 255 is NaN
constexpr uint32_t kRowMultiple = 16;

/// Rows of `source` as rows `first_row` and on of the matrix.
void pack_source(const CudaMxShape& shape, uint32_t first_row, const MatrixSource& source,
                 ColumnSlice columns, uint8_t* matrix) {
  for (uint32_t row = 0; row < source.rows; ++row)
    pack_cuda_mx_row(shape, first_row + row, cuda_expert_row(source, row, columns, kMaxE8m0),
                     matrix);
}

}  // namespace

void pack_cuda_mx_row(const CudaMxShape& shape, uint32_t row, const PackRow& stored,
                      uint8_t* matrix) {
  const uint32_t padded_k = shape.padded_k(), num_blocks = shape.k / kCudaMxBlock;
  uint8_t* codes = matrix + uint64_t{row} * (padded_k / 2);
  std::memcpy(codes, stored.codes, shape.k / 2);
  std::fill(codes + shape.k / 2, codes + padded_k / 2, uint8_t{0});
  uint8_t* scales = matrix + shape.code_bytes();
  for (uint32_t block = 0; block < padded_k / kCudaMxBlock; ++block)
    scales[cuda_mx_scale_offset(row, block, padded_k)] =
        block < num_blocks ? std::to_integer<uint8_t>(stored.scales[block]) : kCudaMxUnitScale;
}

void pack_cuda_mx_end(const CudaMxShape& shape, uint8_t* matrix) {
  uint8_t* scales = matrix + shape.code_bytes();
  const uint32_t padded_k = shape.padded_k();
  for (uint32_t row = shape.rows; row % kCudaMxScaleRows != 0; ++row)
    for (uint32_t block = 0; block < padded_k / kCudaMxBlock; ++block)
      scales[cuda_mx_scale_offset(row, block, padded_k)] = kCudaMxUnitScale;
}

UnpackedRow unpack_cuda_mx_row(const CudaMxShape& shape, const uint8_t* matrix, uint32_t row) {
  UnpackedRow unpacked;
  const uint32_t row_bytes = shape.padded_k() / 2, num_atoms = shape.padded_k() / 128;
  for (uint32_t i = 0; i < row_bytes; ++i)
    unpacked.codes.push_back(std::byte{matrix[uint64_t{row} * row_bytes + i]});
  const uint8_t* atoms = matrix + uint64_t{shape.rows} * row_bytes + row / 128 * num_atoms * 512;
  const uint32_t lane = row % 32, quarter = row / 32 % 4;
  for (uint32_t atom = 0; atom < num_atoms; ++atom)
    for (uint32_t block = 0; block < 4; ++block)
      unpacked.scales.push_back(std::byte{atoms[atom * 512 + lane * 16 + quarter * 4 + block]});
  return unpacked;
}

CudaMxShape cuda_mx_gate_up_shape(const MatrixSource& gate, const MatrixSource& up) {
  check_cuda_gate_up(gate, up);
  return {2 * gate.rows, gate.k};
}

CudaMxShape cuda_mx_down_shape(const MatrixSource& down, ColumnSlice columns) {
  check_cuda_expert(down, columns, kRowMultiple);
  return {down.rows, columns.count};
}

void pack_cuda_mx_gate_up(const MatrixSource& gate, const MatrixSource& up, uint8_t* out) {
  const CudaMxShape shape = cuda_mx_gate_up_shape(gate, up);
  pack_source(shape, 0, gate, ColumnSlice::all(gate), out);
  pack_source(shape, gate.rows, up, ColumnSlice::all(up), out);
  pack_cuda_mx_end(shape, out);
}

void pack_cuda_mx_down(const MatrixSource& down, ColumnSlice columns, uint8_t* out) {
  const CudaMxShape shape = cuda_mx_down_shape(down, columns);
  pack_source(shape, 0, down, columns, out);
  pack_cuda_mx_end(shape, out);
}

}  // namespace mimo_rt
