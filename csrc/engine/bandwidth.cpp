#include "engine/bandwidth.h"

#include "core/checks.h"
#include "core/pin.h"
#include "core/read_memory.h"
#include "weights/weights.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstring>
#include <memory>
#include <system_error>
#include <thread>

namespace mimo_rt {
namespace {

using Clock = std::chrono::steady_clock;

constexpr const char* kWhere = "Engine.measure_bandwidth_gbs";
constexpr uint64_t kMinBytes = uint64_t{256} << 20;  // above the last-level caches of today
constexpr uint64_t kMaxBytes = uint64_t{1} << 30;    // keeps a pass over a large model short
constexpr int kMinPasses = 3;

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

/// Reader threads that make one pass per call, and take the time: the caller's thread may wake late
/// when they hold all cores, and a pass would seem short.
class Readers {
 public:
  Readers(std::span<const ReadRange> ranges, const BandwidthOptions& options)
      : barrier_(options.num_threads + 1), passes_(options.num_threads) {
    std::vector<int> cores;
    if (options.pin_threads) cores = cores_to_pin(options.num_threads);
    threads_.reserve(options.num_threads);
    try {
      for (uint32_t i = 0; i < options.num_threads; ++i) {
        threads_.emplace_back([this, i, core = cores.empty() ? -1 : cores[i],
                               share = share_of(ranges, i, options.num_threads)] {
          if (core >= 0) pin_this_thread(core);
          started_.wait(false);
          while (true) {
            barrier_.arrive_and_wait();
            if (stopped_) return;
            passes_[i].begin = Clock::now();
            uint64_t sum = 0;
            for (const ReadRange& range : share) sum += read_memory(range.data, range.bytes);
            passes_[i].end = Clock::now();
            sink_ += sum;
            barrier_.arrive_and_wait();
          }
        });
      }
    } catch (const std::system_error& error) {
      give_up(options.num_threads);
      fail(ErrorCode::out_of_memory, kWhere, "cannot start ", options.num_threads,
           " threads: ", error.what());
    } catch (...) {
      give_up(options.num_threads);
      throw;
    }
    start();
  }
  ~Readers() {
    if (!threads_.empty()) stop();
  }

  double seconds_of_one_pass() {
    barrier_.arrive_and_wait();
    barrier_.arrive_and_wait();
    const auto begin = std::ranges::min(passes_, {}, &Pass::begin).begin;
    const auto end = std::ranges::max(passes_, {}, &Pass::end).end;
    return std::chrono::duration<double>(end - begin).count();
  }

 private:
  struct Pass {
    Clock::time_point begin, end;
  };

  void start() {
    started_ = true;
    started_.notify_all();
  }
  /// The barrier counts threads that never came: lets them arrive as dropped.
  void give_up(uint32_t num_threads) {
    for (size_t i = threads_.size(); i < num_threads; ++i) barrier_.arrive_and_drop();
    stop();
  }
  void stop() {
    stopped_ = true;
    start();
    barrier_.arrive_and_wait();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  std::barrier<> barrier_;
  std::vector<Pass> passes_;  // of each thread
  std::atomic<bool> started_ = false, stopped_ = false;
  std::atomic<uint64_t> sink_ = 0;  // keeps the reads alive
  std::vector<std::thread> threads_;
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

double measure_read_gbs(std::span<const ReadRange> ranges, const BandwidthOptions& options) {
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
  Readers readers(used, options);
  const auto begin = Clock::now();
  double best = 0.0;
  for (int pass = 0; pass < kMinPasses ||
                     std::chrono::duration<double>(Clock::now() - begin).count() < options.seconds;
       ++pass) {
    const double seconds = readers.seconds_of_one_pass();
    best = std::max(best, static_cast<double>(total) / seconds * 1e-9);
  }
  return best;
}

}  // namespace mimo_rt
