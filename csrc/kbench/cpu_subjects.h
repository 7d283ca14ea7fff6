// The kernels of a CPU instruction set as subjects of a benchmark.
#pragma once

#include "cpu/kernels.h"
#include "kbench/subject.h"

namespace mimo_rt::kbench {

/// y = W x of packed weights. @throws Error{invalid_argument, unsupported_shape, out_of_memory}
std::unique_ptr<Subject> make_cpu_gemm(const KernelCase& kernel_case,
                                       const KernelBenchOptions& options,
                                       const cpu::Kernels& kernels);

/// Decode attention with sinks; token t sees keys t .. t + num_keys - 1.
/// @throws Error{invalid_argument, unsupported_shape, out_of_memory}
std::unique_ptr<Subject> make_cpu_attention(const KernelCase& kernel_case,
                                            const KernelBenchOptions& options,
                                            const cpu::Kernels& kernels);

/// edge_counter or edge_gather: a token that pinned threads hand around; there are no plain reads.
/// @throws Error{invalid_argument, capacity, unavailable}
std::unique_ptr<Subject> make_cpu_edges(const KernelCase& kernel_case);

/// The multiply-adds of products of that format on this thread, the best of a few runs.
VectorPeak product_peak(const cpu::Kernels& kernels, PackedFormat format);

/// `options.rotation_bytes`, or what its default says.
uint64_t rotation_bytes(const KernelBenchOptions& options);

/// Calls that walk through `places` of `stride` bytes each, and plain reads of what lies half of
/// the memory away, by turns.
class ColdWalk {
 public:
  ColdWalk(const uint8_t* data, uint64_t num_places, uint64_t stride)
      : data_(data), num_places_(num_places), stride_(stride) {}

  uint64_t read_bytes() const;

  /// `call(place)`, `num_calls` times, for `num_repeats` at a time.
  template <typename Call>
  KernelTimes run(uint32_t num_calls, uint32_t num_repeats, const Call& call);

 private:
  static double now();
  void read_elsewhere(uint64_t place);

  const uint8_t* data_;
  uint64_t num_places_, stride_, next_ = 0;
  volatile uint64_t sink_ = 0;  // keeps the reads alive
};

template <typename Call>
KernelTimes ColdWalk::run(uint32_t num_calls, uint32_t num_repeats, const Call& call) {
  KernelTimes times;
  times.call_s.reserve(num_calls);
  times.read_s.reserve(num_calls);
  for (uint32_t i = 0; i < num_calls; ++i) {
    const uint64_t place = next_++ % num_places_;
    const double begin = now();
    read_elsewhere(place);
    const double middle = now();
    for (uint32_t repeat = 0; repeat < num_repeats; ++repeat) call(place);
    times.read_s.push_back(middle - begin);
    times.call_s.push_back((now() - middle) / num_repeats);
  }
  return times;
}

}  // namespace mimo_rt::kbench
