// Products of a warp group in the emulated GPU: a small kernel multiplies correctly in every order;
// each planted fault is found.
#define MIMO_RT_HOST_EMULATION
#include <cmath>

#include "check.h"
#include "cuda/device/sync/mbarrier.cuh"
#include "emulation/schedule.h"

using namespace mimo_rt;

namespace {

enum class Fault {
  none,
  no_proxy_fence,
  no_fence,
  no_wait,
  early_read,
  early_write,
  early_weights,
  early_copy,
  late_copy,
  warps_differ,
  misaligned,
  diverged,
};

constexpr uint32_t kColumns = 16, kTileBytes = 1024 * kColumns / 8;

/// Two products of 64 rows x 16 k each: sums = weights[0] columns[0] + weights[1] columns[1].
struct Params {
  Fault fault;
  uint32_t num_threads;
  const float* weights;     // [2, 64, 16]
  const float* columns;     // [2, 16 columns, 16 k]
  const uint16_t* sources;  // BF16 zeros that a fault copies into the columns
  float* sums;              // [64, 16 columns]
};

struct Shared {
  alignas(1024) uint8_t columns[kTileBytes];
  uint64_t copied;
};

uint32_t bf16x2(const float* values) { return ptx::to_bf16x2(values[0], values[1]); }

/// This warp's 16 rows as a fragment.
void load_weights(const Params& p, uint32_t product, uint32_t (&a)[4]) {
  const uint32_t lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
  for (uint32_t i = 0; i < 4; ++i)
    a[i] = bf16x2(p.weights + (product * 64 + row + i % 2 * 8) * 16 + lane % 4 * 2 + i / 2 * 8);
}

/// k 0..15 of the tile are those of product 0, 16..31 those of product 1.
void store_columns(const Params& p, Shared& shared) {
  for (uint32_t i = threadIdx.x; i < 2 * kColumns * 8; i += 128) {
    const uint32_t column = i / 16, pair = i % 16, product = pair / 8;
    const uint32_t word =
        bf16x2(p.columns + (product * kColumns + column) * 16 + pair % 8 * 2);
    const uint32_t chunk = (pair / 4) ^ column % 8;
    std::memcpy(shared.columns + column * 128 + chunk * 16 + pair % 4 * 4, &word, 4);
  }
}

void copy_over_columns(const Params& p, Shared& shared) {
  if (threadIdx.x != 0) return;
  ptx::mbarrier_arrive_expect_tx(&shared.copied, kTileBytes);
  ptx::bulk_copy(shared.columns, p.sources, kTileBytes, &shared.copied, 0);
}

void store_sums(const Params& p, const float (&sums)[2][4]) {
  const uint32_t lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
  for (uint32_t group = 0; group < 2; ++group)
    for (uint32_t i = 0; i < 4; ++i)
      p.sums[(row + i / 2 * 8) * kColumns + group * 8 + lane % 4 * 2 + i % 2] = sums[group][i];
}

__global__ void multiply(Params p) {
  auto& shared = *reinterpret_cast<Shared*>(ptx::dynamic_shared_memory());
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(&shared.copied, 1);
    ptx::fence_mbarrier_init();
  }
  store_columns(p, shared);
  if (p.fault != Fault::no_proxy_fence) ptx::fence_proxy_async();
  ptx::named_barrier_sync(0, p.num_threads);
  if (p.fault == Fault::early_copy) copy_over_columns(p, shared);
  uint32_t first[4], second[4];
  load_weights(p, 0, first);
  load_weights(p, 1, second);
  float sums[2][4] = {};
  const uint32_t warp_idx = threadIdx.x / 32, lane_idx = threadIdx.x % 32;
  const uint32_t swapped = p.fault == Fault::warps_differ && warp_idx == 2 ? 32 : 0;
  const uint8_t* columns = shared.columns + (p.fault == Fault::misaligned ? 16 : 0);
  if (p.fault != Fault::no_fence) ptx::wgmma_fence();
  if (p.fault == Fault::diverged && lane_idx < 3) ptx::sync_warp();
  ptx::wgmma_m64k16(sums, first, ptx::wgmma_columns(columns + swapped));
  ptx::wgmma_commit();
  ptx::wgmma_m64k16(sums, second, ptx::wgmma_columns(columns + (32 - swapped)));
  ptx::wgmma_commit();
  ptx::wgmma_wait<1>();  // of the first product: its weights are free, the sums are not
  first[0] = 0x7fc07fc0;
  if (p.fault == Fault::early_weights) second[1] = 0x7fc07fc0;
  if (p.fault == Fault::early_write) sums[0][2] = 1.0f;
  if (p.fault == Fault::late_copy) copy_over_columns(p, shared);
  if (p.fault == Fault::early_read) store_sums(p, sums);
  if (p.fault != Fault::no_wait) ptx::wgmma_wait<0>();
  if (p.fault != Fault::early_read) store_sums(p, sums);
}

/// Small integers: every sum is exact.
float weight(uint32_t product, uint32_t row, uint32_t k) {
  return static_cast<float>((product * 7 + row * 5 + k * 3) % 11) - 5.0f;
}
float column(uint32_t product, uint32_t n, uint32_t k) {
  return static_cast<float>((product * 3 + n * 7 + k * 5) % 9) - 4.0f;
}

/// @return what is wrong: an error of the emulation, "wrong sums", or ""
std::string run(Fault fault, uint64_t seed, uint32_t num_threads = 128) {
  std::vector<float> weights, columns;
  for (uint32_t product = 0; product < 2; ++product)
    for (uint32_t i = 0; i < 64 * 16; ++i) {
      weights.push_back(weight(product, i / 16, i % 16));
      if (i < kColumns * 16) columns.push_back(column(product, i / 16, i % 16));
    }
  alignas(16) static const uint16_t sources[kTileBytes / 2] = {};
  std::vector<float> sums(64 * kColumns, NAN);
  emulation::LaunchOptions options;
  options.num_threads = num_threads;
  options.shared_bytes = sizeof(Shared);
  options.seed = seed;
  const Params params{fault, num_threads, weights.data(), columns.data(), sources, sums.data()};
  const std::string error = emulation::launch(options, multiply, params).error;
  if (!error.empty()) return error;
  for (uint32_t row = 0; row < 64; ++row)
    for (uint32_t n = 0; n < kColumns; ++n) {
      float exact = 0;
      for (uint32_t i = 0; i < 32; ++i)
        exact += weight(i / 16, row, i % 16) * column(i / 16, n, i % 16);
      if (sums[row * kColumns + n] != exact) return "wrong sums";
    }
  return "";
}

/// In every schedule, with this text.
void check_found(Fault fault, const std::string& needle) {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    const std::string found = run(fault, seed);
    if (found.find(needle) == std::string::npos) check::report(__FILE__, __LINE__, found);
    CHECK(!found.empty() && found.find(needle) != std::string::npos);
  }
}

}  // namespace

TEST_CASE("the correct kernel multiplies in every schedule") {
  for (uint64_t seed = 0; seed < 40; ++seed) CHECK_EQ(run(Fault::none, seed), "");
}

TEST_CASE("missing fences are found") {
  check_found(Fault::no_fence, "no wgmma_fence");
  check_found(Fault::no_proxy_fence, "have written since the last fence.proxy.async");
}

TEST_CASE("registers that a product still has are found to be touched") {
  check_found(Fault::early_read, "wrong sums");
  check_found(Fault::early_write, "written accumulators");
  check_found(Fault::no_wait, "");
  uint32_t num_found = 0;  // not where the product was already carried out
  for (uint64_t seed = 0; seed < 12; ++seed) num_found += run(Fault::early_weights, seed) != "";
  CHECK(num_found > 0);
}

TEST_CASE("copies that come too early or too late for a product are found") {
  check_found(Fault::early_copy, "");
  check_found(Fault::late_copy, "which a product of a warp group still reads");
}

TEST_CASE("warps that do not act as one group are found") {
  check_found(Fault::warps_differ, "warps of one group differ");
  check_found(Fault::misaligned, "at 0, 32, 64 or 96 of a multiple of 1024");
  check_found(Fault::diverged, "diverge");
  CHECK(run(Fault::none, 0, 96).find("not a whole warp group") != std::string::npos);
}

CHECK_MAIN()
