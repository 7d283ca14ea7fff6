#include "weights/cuda_block.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "checkpoint/scan.h"
#include "core/available_memory.h"
#include "core/checks.h"
#include "core/text.h"
#include "weights/work_items.h"

namespace mimo_rt {
namespace {

constexpr uint64_t kPartAlignment = 256;
constexpr uint64_t kMaxTotalBytes = uint64_t{1} << 46;
constexpr uint64_t kUnitRangeBytes = uint64_t{1} << 20;  // packed by a thread before it looks for more

uint64_t aligned(uint64_t num_bytes) {
  return (num_bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
}

/// Neighbours on both sides become one piece.
void add_upload(std::vector<CudaBlockImage::Piece>& uploads, const CudaBlockImage::Piece& piece) {
  if (!uploads.empty()) {
    CudaBlockImage::Piece& last = uploads.back();
    if (piece.to == last.to + last.num_bytes && piece.from == last.from + last.num_bytes) {
      last.num_bytes += piece.num_bytes;
      return;
    }
  }
  uploads.push_back(piece);
}

/// [begin, begin + total) repeats its first `done` bytes. Every copy doubles what is there, so that few do.
void add_copies(std::vector<CudaBlockImage::Piece>& copies, uint64_t begin, uint64_t done, uint64_t total) {
  while (done < total) {
    const uint64_t num_bytes = std::min(done, total - done);
    copies.push_back({begin + done, begin, num_bytes});
    done += num_bytes;
  }
}

}  // namespace

uint64_t CudaBlock::add(uint64_t num_units, uint64_t unit_bytes, PackUnit pack, uint64_t num_packed) {
  const uint64_t offset = bytes_, num_bytes = num_units * unit_bytes;
  MIMO_RT_CHECK(num_bytes <= kMaxTotalBytes - offset, unsupported_shape, where_,
                "expected at most ", kMaxTotalBytes, " bytes of packed weights, got more");
  parts_.push_back({offset, packed_bytes_, num_units, std::min(num_units, std::max<uint64_t>(num_packed, 1)),
                    unit_bytes, std::move(pack)});
  bytes_ += aligned(num_bytes);
  packed_bytes_ += aligned(parts_.back().packed_bytes());
  return offset;
}

CudaDenseMatrix CudaBlock::add_dense(PackJob job, ColumnSlice columns) {
  const CudaDenseShape shape = cuda_dense_shape(job, columns);
  const uint64_t offset =
      add(shape.num_row_groups(), shape.group_bytes(),
          [job = std::move(job), columns, shape](uint64_t group, uint8_t* out) {
            pack_cuda_dense_group(job, columns, shape, static_cast<uint32_t>(group), out);
          });
  return {offset, shape};
}

CudaTable CudaBlock::add_table(const MatrixSource& s) {
  const DType dtype = s.weight->dtype;
  MIMO_RT_CHECK(s.format == WeightFormat::plain && (dtype == DType::bf16 || dtype == DType::f32),
                unsupported_shape, where_, "tensor ", printable(s.weight->name),
                ": expected BF16 or F32 for the CUDA engine, got ", dtype_name(dtype));
  const uint64_t offset = add(s.rows, s.row_bytes(), [s, dtype](uint64_t row, uint8_t* out) {
    const std::span<const std::byte> bytes = s.row_data(row);
    check_finite(*s.weight, dtype, bytes, s.stored_row(row) * s.k);
    std::memcpy(out, bytes.data(), bytes.size());
  });
  return {offset, dtype, s.rows, s.k};
}

uint64_t CudaBlock::add_floats(const TensorInfo& tensor, uint32_t first, uint32_t count) {
  return add(1, uint64_t{count} * sizeof(float), [&tensor, first, count](uint64_t, uint8_t* out) {
    std::vector<float> values(uint64_t{first} + count);
    read_vector(tensor, values);
    std::memcpy(out, values.data() + first, uint64_t{count} * sizeof(float));
  });
}

uint64_t CudaBlock::add_bytes(std::vector<uint8_t> bytes) {
  const uint64_t num_bytes = bytes.size();
  return add(1, num_bytes, [bytes = std::move(bytes)](uint64_t, uint8_t* out) {
    std::memcpy(out, bytes.data(), bytes.size());
  });
}

CudaBlockImage CudaBlock::pack(const CudaPackOptions& options) const {
  if (options.check_room) options.check_room(bytes_);
  if (options.only_lays_out) return {.num_bytes = bytes_, .packed = {}, .uploads = {}, .copies = {}};
  check_memory(packed_bytes_, available_memory_bytes(), where_);
  CudaBlockImage image{.num_bytes = bytes_, .packed = Arena(packed_bytes_, where_), .uploads = {}, .copies = {}};
  for (const Part& part : parts_) {
    const bool repeats = part.num_packed < part.num_units;
    const uint64_t num_bytes = part.packed_bytes();
    if (num_bytes)
      add_upload(image.uploads, {part.offset, part.packed_offset, repeats ? num_bytes : aligned(num_bytes)});
    if (repeats) add_copies(image.copies, part.offset, num_bytes, part.num_units * part.unit_bytes);
  }
  pack_parts(options, image.packed.data());
  return image;
}

/// The parts, each cut into ranges of units of about `kUnitRangeBytes`.
void CudaBlock::pack_parts(const CudaPackOptions& options, uint8_t* packed) const {
  struct Range {
    const Part* part;
    uint64_t begin, end;
  };
  std::vector<Range> ranges;
  WorkItems work;
  for (const Part& part : parts_) {
    const uint64_t step =
        std::max<uint64_t>(kUnitRangeBytes / std::max<uint64_t>(part.unit_bytes, 1), 1);
    for (uint64_t begin = 0; begin < part.num_packed; begin += step)
      ranges.push_back({&part, begin, std::min(begin + step, part.num_packed)});
    work.total_bytes += part.packed_bytes();
  }
  work.num_items = ranges.size();
  work.run = [&](uint64_t item_idx) {
    const auto& [part, begin, end] = ranges[item_idx];
    for (uint64_t unit = begin; unit < end; ++unit)
      part->pack(unit, packed + part->packed_offset + unit * part->unit_bytes);
    return (end - begin) * part->unit_bytes;
  };
  work.progress = options.progress;
  work.num_threads = options.num_threads;
  work.where = where_;
  run_work_items(work);
}

}  // namespace mimo_rt
