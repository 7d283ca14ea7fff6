#include "weights/pack_matrices.h"

#include "weights/work_items.h"

#include <algorithm>
#include <span>

namespace mimo_rt {
namespace {

class Packer {
 public:
  explicit Packer(const PackMatrices& work) : work_(work) {}

  void run() const {
    const std::vector<GroupRange> ranges = split_into_ranges(work_.layout, kRangeBytes);
    WorkItems items;
    items.num_items = ranges.size();
    for (const MatrixSlot& slot : work_.layout.matrices) items.total_bytes += slot.matrix->bytes();
    items.run = [&](uint64_t item_idx) { return pack_range(ranges[item_idx]); };
    items.progress = work_.options.progress;
    items.num_threads = work_.options.num_threads;
    items.where = work_.where;
    run_work_items(items);
    // What is left: FP8 scales, and pages that a neighbour's read brought back.
    for (const TensorInfo& tensor : work_.checkpoint.tensors())
      work_.checkpoint.release_pages(tensor);
  }

 private:
  uint64_t pack_range(const GroupRange& range) const;
  template <typename Function>
  void for_each_source_span(const GroupRange& range, const Function& function) const;

  const PackMatrices& work_;
};

/// Calls `function(tensor, bytes)` for the stored weights and MXFP4 scales of the range. Rows that
/// lie close together are one span: the pieces of a fused qkv stay apart.
template <typename Function>
void Packer::for_each_source_span(const GroupRange& range, const Function& function) const {
  const PackJob& job = work_.jobs[range.matrix_idx];
  struct Rows {
    uint64_t begin = 0, end = 0;
  };
  std::vector<Rows> open(job.sources.size());
  const auto flush = [&](size_t source_idx) {
    const MatrixSource& source = job.sources[source_idx];
    const auto [begin, end] = open[source_idx];
    if (begin == end) return;
    const auto call = [&](const TensorInfo& tensor, uint64_t row_bytes) {
      function(tensor, tensor.data.subspan(begin * row_bytes, (end - begin) * row_bytes));
    };
    call(*source.weight, source.row_bytes());
    if (source.format == WeightFormat::mxfp4) call(*source.scale, source.scale_cols());
  };
  for (uint32_t group = range.begin; group < range.end; ++group)
    for (const RowRef& ref : job.group_rows(group)) {
      if (ref.row == RowRef::kPadding) continue;
      const uint64_t row = job.sources[ref.source_idx].stored_row(ref.row);
      Rows& rows = open[ref.source_idx];
      const uint64_t reach = job.layer ? job.layer->qk_head_dim : 0;
      if (rows.begin == rows.end || row + reach < rows.begin || row > rows.end + reach) {
        flush(ref.source_idx);
        rows = {row, row + 1};
      }
      rows = {std::min(rows.begin, row), std::max(rows.end, row + 1)};
    }
  for (size_t i = 0; i < open.size(); ++i) flush(i);
}

uint64_t Packer::pack_range(const GroupRange& range) const {
  const MatrixSlot& slot = work_.layout.matrices[range.matrix_idx];
  const PackedMatrix& matrix = *slot.matrix;
  for_each_source_span(range, [](const TensorInfo&, std::span<const std::byte> bytes) {
    prefetch_pages(bytes);
  });
  PackScratch scratch;
  for (uint32_t group = range.begin; group < range.end; ++group)
    pack_row_group(work_.jobs[range.matrix_idx], matrix, group,
                   group_place(work_.arena, slot, group), scratch);
  for_each_source_span(range, [this](const TensorInfo& tensor, std::span<const std::byte> bytes) {
    work_.checkpoint.release_pages({{}, tensor.dtype, {}, bytes, {}});
  });
  return (range.end - range.begin) * row_group_bytes(matrix.format, matrix.k);
}

}  // namespace

void pack_matrices(const PackMatrices& work) { Packer(work).run(); }

}  // namespace mimo_rt
