#include "engine/bandwidth.h"

#include "core/checks.h"
#include "core/read_memory.h"
#include "weights/weights.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Engine.measure_bandwidth_gbs";
constexpr uint64_t kMinBytes = uint64_t{256} << 20;  // above the last-level caches of today
constexpr uint64_t kMaxBytes = uint64_t{1} << 30;    // keeps a pass over a large model short

/// Anonymous memory in huge pages where the system has them.
class Buffer {
 public:
  explicit Buffer(uint64_t bytes) : bytes_(bytes) {
    data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MIMO_RT_CHECK(data_ != MAP_FAILED, out_of_memory, kWhere, "cannot map ", bytes, " bytes");
    madvise(data_, bytes, MADV_HUGEPAGE);
    std::memset(data_, 1, bytes);  // otherwise all pages would be one and the same
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { munmap(data_, bytes_); }
  ReadRange range() const { return {static_cast<const uint8_t*>(data_), bytes_}; }

 private:
  void* data_;
  uint64_t bytes_;
};

void add_matrix(const PackedMatrix& matrix, std::vector<ReadRange>& ranges) {
  if (matrix.data) ranges.push_back({matrix.data, matrix.bytes()});
}

}  // namespace

std::vector<ReadRange> weight_ranges(const Weights& weights) {
  std::vector<ReadRange> ranges;
  for (uint32_t i = 0; i < weights.config().num_layers; ++i) {
    const LayerWeights& layer = weights.layer(i);
    for (const PackedMatrix* matrix :
         {&layer.qkv, &layer.o_proj, &layer.router, &layer.gate_up, &layer.down})
      add_matrix(*matrix, ranges);
    for (const PackedMatrix& matrix : layer.expert_gate_up) add_matrix(matrix, ranges);
    for (const PackedMatrix& matrix : layer.expert_down) add_matrix(matrix, ranges);
  }
  add_matrix(weights.lm_head(), ranges);
  return ranges;
}

std::vector<ReadRange> share_of(std::span<const ReadRange> ranges, uint32_t part, uint32_t parts) {
  uint64_t total = 0;
  for (const ReadRange& range : ranges) total += range.bytes;
  const uint64_t begin = total / parts * part / 64 * 64;
  const uint64_t end = part + 1 == parts ? total : total / parts * (part + 1) / 64 * 64;
  std::vector<ReadRange> share;
  uint64_t offset = 0;
  for (const ReadRange& range : ranges) {
    const uint64_t from = std::clamp(begin, offset, offset + range.bytes);
    const uint64_t to = std::clamp(end, offset, offset + range.bytes);
    if (from < to) share.push_back({range.data + (from - offset), to - from});
    offset += range.bytes;
  }
  return share;
}

double measure_read_gbs(std::span<const ReadRange> ranges, const PassOptions& options) {
  std::vector<ReadRange> used;
  uint64_t total = 0;
  for (const ReadRange& range : ranges) {
    used.push_back({range.data, std::min(range.bytes, kMaxBytes - total)});
    total += used.back().bytes;
  }
  std::unique_ptr<Buffer> buffer;
  if (total < kMinBytes) {
    buffer = std::make_unique<Buffer>(kMinBytes);
    used = {buffer->range()};
    total = kMinBytes;
  }
  std::vector<std::vector<ReadRange>> shares;
  for (uint32_t i = 0; i < options.num_threads; ++i)
    shares.push_back(share_of(used, i, options.num_threads));
  TimedPasses passes(kWhere, options, [&](uint32_t thread) {
    uint64_t sum = 0;
    for (const ReadRange& range : shares[thread]) sum += read_memory(range.data, range.bytes);
    return sum;
  });
  return static_cast<double>(total) / passes.fastest().seconds * 1e-9;
}

}  // namespace mimo_rt
