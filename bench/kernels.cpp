// Matrix kernels on one thread: packed bytes per second and FLOP per second beside the read
// bandwidth measured in turns with them. Cold: every pass walks a buffer far larger than the
// caches. Usage:
//   bench_kernels [--isa cpu-avx2] [--format mxfp4] [--activations int8] [--k 2048] [--tokens 1]
//                 [--mib 256] [--rounds 60] [--hot] [--json]
// --activations int8 times the only format that it changes, mxfp4.
// --hot repeats four row groups instead: the compute limit without memory. A line's percentage is
// of the read bandwidth.
#include <mimo_rt/device.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "weights/packed.h"

using namespace mimo_rt;

namespace {

constexpr const char* kFormatNames[] = {"mxfp4", "fp8_e4m3", "bf16", "f32"};

constexpr size_t kSampleBytes = size_t{16} << 20;

struct Options {
  std::string isa = resolve_backend("cpu"), format;
  uint32_t k = 2048, mib = 256, rounds = 60, num_tokens = 0;
  bool hot = false, json = false, int8 = false;
};

double now() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

uint8_t* huge_pages(size_t bytes) {
  constexpr size_t kHuge = size_t{2} << 20;
  void* map =
      mmap(nullptr, bytes + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) return nullptr;
  uint8_t* begin =
      reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(map) + kHuge - 1) / kHuge * kHuge);
  madvise(begin, bytes, MADV_HUGEPAGE);
  return begin;
}

/// Codes that are valid in every format: finite bf16 and f32, E4M3 with all exponents, E8M0 and f32
/// scales near one.
void fill(uint8_t* data, size_t bytes) {
  uint32_t state = 1;
  for (size_t i = 0; i < bytes; ++i) {
    state = state * 1664525u + 1013904223u;
    data[i] = static_cast<uint8_t>((state >> 24 & 0xbfu) | (i % 2 ? 0x30u : 0u));
  }
}

__attribute__((target_clones("default", "avx2")))  // 16-byte loads alone do not reach the bandwidth
uint64_t
read_all(const uint8_t* data, size_t bytes) {
  using Vector __attribute__((vector_size(64), aligned(64))) = uint64_t;
  Vector sum[4] = {};
  for (size_t i = 0; i + 256 <= bytes; i += 256)
    for (size_t j = 0; j < 4; ++j) {
      __builtin_prefetch(data + i + j * 64 + 4096);
      sum[j] |= *reinterpret_cast<const Vector*>(data + i + j * 64);
    }
  const Vector all = (sum[0] | sum[1]) | (sum[2] | sum[3]);
  uint64_t result = 0;
  for (size_t j = 0; j < 8; ++j) result |= all[j];
  return result;
}

struct Spread {
  double best = 0, median = 0;
};

Spread spread(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {seconds.front(), seconds[seconds.size() / 2]};
}

/// One case, in turns with a plain read of the same bytes.
void run_case(const Options& options, const cpu::Kernels& kernels, PackedFormat format,
              uint32_t num_tokens, const uint8_t* weights, size_t bytes) {
  const int code = static_cast<int>(format);
  const uint64_t group_bytes = row_group_bytes(format, options.k);
  const double flops_per_group = 2.0 * 16 * options.k * num_tokens;
  // A sample is 1 to 2 ms, below a scheduler's time slice, so that the best samples are undisturbed
  // on a shared machine: at most 80 MFLOP and 16 MiB. Samples walk through the buffer, which keeps
  // them cold.
  const uint64_t by_flops = static_cast<uint64_t>(8e7 / flops_per_group) + 1;
  const uint64_t by_bytes = std::min<uint64_t>(kSampleBytes, bytes) / group_bytes;
  const uint32_t groups = options.hot ? 4 : static_cast<uint32_t>(std::min(by_bytes, by_flops));
  const uint32_t repeats = options.hot ? static_cast<uint32_t>(by_flops / 4 + 1) : 1;
  std::vector<cpu::bf16_t> x(size_t{num_tokens} * options.k);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<cpu::bf16_t>(0x3f80 + i % 64);
  void* prepared =
      std::aligned_alloc(64, (kernels.prepared_bytes(code, num_tokens, options.k) + 63) / 64 * 64);
  kernels.prepare(code, {x.data(), options.k, nullptr, num_tokens, options.k, options.k, prepared});
  std::vector<float> y(size_t{num_tokens} * 16 * groups);
  cpu::GemmArgs args = {weights, groups, options.k, prepared, num_tokens, y.data(), 16 * groups};
  const uint64_t gemm_stride = groups * group_bytes, num_places = bytes / gemm_stride;
  const uint64_t num_reads = bytes / kSampleBytes;
  std::vector<double> kernel_seconds, read_seconds;
  uint64_t sink = 0;
  for (uint32_t round = 0; round <= options.rounds; ++round) {
    const double begin = now();
    sink |= read_all(weights + round * 7 % num_reads * kSampleBytes, kSampleBytes);
    const double middle = now();
    if (!options.hot) args.weights = weights + round * 5 % num_places * gemm_stride;
    for (uint32_t i = 0; i < repeats; ++i) kernels.gemm(code, args);
    const double end = now();
    if (round == 0) continue;  // warm-up
    read_seconds.push_back(middle - begin);
    kernel_seconds.push_back((end - middle) / repeats);
  }
  std::free(prepared);
  const Spread kernel = spread(kernel_seconds), read = spread(read_seconds);
  const double read_bytes = static_cast<double>(kSampleBytes);
  const double gemm_bytes = static_cast<double>(groups * group_bytes),
               flops = flops_per_group * groups;
  const double gbs = gemm_bytes / kernel.best * 1e-9, read_gbs = read_bytes / read.best * 1e-9;
  const std::string name = std::string(kFormatNames[code]) + (options.int8 ? "_int8" : "");
  std::printf(
      options.json
          ? "{\"case\":\"gemm/%s/m%u\",\"backend\":\"%s\",\"k\":%u,\"cache\":\"%s\",\"gbs\":%.2f,"
            "\"gbs_median\":%.2f,\"gflops\":%.2f,\"read_gbs\":%.2f,\"of_read\":%.3f,\"n\":%u,"
            "\"sink\":%u}\n"
          : "%-10s M=%-4u %s k=%u %-4s %7.2f GB/s (median %7.2f) %8.2f GFLOP/s  read %6.2f GB/s  "
            "%5.1f %%  n=%u%.0u\n",
      name.c_str(), num_tokens, options.isa.c_str(), options.k, options.hot ? "hot" : "cold",
      gbs, gemm_bytes / kernel.median * 1e-9, flops / kernel.best * 1e-9, read_gbs,
      gbs / read_gbs * (options.json ? 1 : 100), options.rounds, sink == 1 ? 1u : 0u);
  std::fflush(stdout);
}

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--hot")
      options.hot = true;
    else if (name == "--json")
      options.json = true;
    else if (i + 1 == argc)
      return false;
    else if (name == "--isa")
      options.isa = argv[++i];
    else if (name == "--format")
      options.format = argv[++i];
    else if (name == "--activations") {
      const std::string value = argv[++i];
      if (value != "bf16" && value != "int8") return false;
      options.int8 = value == "int8";
    }
    else if (name == "--k")
      options.k = static_cast<uint32_t>(std::strtoul(argv[++i], nullptr, 10));
    else if (name == "--tokens")
      options.num_tokens = static_cast<uint32_t>(std::strtoul(argv[++i], nullptr, 10));
    else if (name == "--mib")
      options.mib = static_cast<uint32_t>(std::strtoul(argv[++i], nullptr, 10));
    else if (name == "--rounds")
      options.rounds = static_cast<uint32_t>(std::strtoul(argv[++i], nullptr, 10));
    else
      return false;
  }
  if (options.int8 && options.format.empty()) options.format = kFormatNames[0];
  if (options.int8 && options.format != kFormatNames[0]) return false;
  return options.k >= 32 && options.k % 32 == 0 && options.mib >= 16 && options.rounds >= 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    std::fprintf(stderr,
                 "usage: %s [--isa NAME] [--format NAME] [--activations bf16|int8] [--k N] "
                 "[--tokens N] [--mib N] [--rounds N] [--hot] [--json]\n",
                 argv[0]);
    return 2;
  }
  try {
    const cpu::Kernels& kernels = cpu::select_kernels(
        options.isa, options.int8 ? Activations::int8 : Activations::bf16);
    const size_t bytes = size_t{options.mib} << 20;
    uint8_t* weights = huge_pages(bytes);
    if (!weights) return std::fprintf(stderr, "cannot map %zu bytes\n", bytes), 1;
    fill(weights, bytes);
    for (int format = 0; format < 4; ++format) {
      if (!options.format.empty() && options.format != kFormatNames[format]) continue;
      const std::vector<uint32_t> usual = {1, 2, 4, 8, 64, 512}, chosen = {options.num_tokens};
      for (const uint32_t num_tokens : options.num_tokens ? chosen : usual)
        run_case(options, kernels, static_cast<PackedFormat>(format), num_tokens, weights, bytes);
    }
  } catch (const std::exception& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  }
  return 0;
}
