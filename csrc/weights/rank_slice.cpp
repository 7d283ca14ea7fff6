#include "weights/rank_slice.h"

#include "core/checks.h"
#include "core/text.h"

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "CudaWeights.load";

}  // namespace

MatrixSource slice_rows(const MatrixSource& source, uint32_t first, uint32_t count) {
  const uint64_t begin = first % source.piece_rows;  // inside its piece
  const bool is_one_piece = begin + count <= source.piece_rows;
  MIMO_RT_CHECK(is_one_piece || begin == 0, unsupported_shape, kWhere, "tensor ",
                printable(source.weight->name), ": expected rows ", first, " .. ",
                first + count - 1, " in one chunk of ", source.piece_rows,
                " rows or in whole chunks. Use fewer ranks.");
  MatrixSource slice = source;
  slice.first_row = source.stored_row(first);
  slice.rows = count;
  if (is_one_piece) slice.piece_rows = count;
  return slice;
}

uint32_t share_of_rank(const char* name, uint32_t size, const Rank& rank, uint32_t step) {
  MIMO_RT_CHECK(size % rank.count == 0 && size / rank.count % step == 0, unsupported_shape, kWhere,
                name, ": expected ", rank.count, " equal parts of a multiple of ", step, ", got ",
                size);
  return size / rank.count;
}

}  // namespace mimo_rt
