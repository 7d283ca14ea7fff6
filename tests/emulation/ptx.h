// The functions of csrc/cuda/device/ptx with a meaning on the host. Contracts are stated there.
#pragma once

#include <bit>
#include <cmath>

#include "core/numeric.h"
#include "emulation/async_copy.h"
#include "emulation/cuda_keywords.h"
#include "emulation/machine.h"
#include "emulation/warp_group.h"

namespace mimo_rt::ptx {

// --- mbarrier.cuh

inline void mbarrier_init(uint64_t* barrier, uint32_t num_arrivals) {
  const emulation::Unchecked unchecked;
  emulation::MBarrierState state;
  state.num_arrivals = state.num_pending = num_arrivals;
  *barrier = state.pack();
  emulation::this_lane().block->unfenced_mbarriers.push_back(barrier);
  ++emulation::machine->progress;
}

inline void fence_mbarrier_init() {
  const emulation::Unchecked unchecked;
  emulation::this_lane().block->unfenced_mbarriers.clear();
}

inline void mbarrier_update(uint64_t* barrier, uint32_t num_arrivals, int32_t num_bytes) {
  const emulation::Unchecked unchecked;
  const auto& block = *emulation::this_lane().block;
  const std::string error = emulation::update_mbarrier(block, barrier, num_arrivals, num_bytes);
  if (!error.empty()) emulation::fail(error);
}

inline void mbarrier_arrive(uint64_t* barrier) { mbarrier_update(barrier, 1, 0); }

inline void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t num_bytes) {
  mbarrier_update(barrier, 1, static_cast<int32_t>(num_bytes));
}

/// Waits as long as it takes: a wait that never ends is a deadlock, which the scheduler reports.
inline bool mbarrier_try_wait(uint64_t* barrier, uint32_t parity) {
  using emulation::MBarrierState;
  if (emulation::is_skipped(emulation::Skip::mbarrier_wait)) return true;
  if (emulation::skips_wait(barrier)) return true;
  const emulation::Unchecked unchecked;
  if (!MBarrierState::is_valid(*barrier))
    emulation::fail("wait on mbarrier " +
                    emulation::name_of(*emulation::this_lane().block, barrier) +
                    ", which is not initialised");
  emulation::wait_for({[](const emulation::Wait& wait) {
                         const uint64_t word = *static_cast<const uint64_t*>(wait.object);
                         return word >> 63 != wait.value;
                       },
                       &emulation::describe_mbarrier, barrier, parity & 1, "wait for mbarrier"});
  emulation::acquire_from(barrier);
  return true;
}

/// A wait that is left out counts once: here when the phase is complete, else in the wait that follows.
inline bool mbarrier_test_wait(uint64_t* barrier, uint32_t parity) {
  const emulation::Unchecked unchecked;
  if (*barrier >> 63 == (parity & 1)) return false;
  return mbarrier_try_wait(barrier, parity);
}

// --- copy.cuh

inline uint64_t evict_first_policy() { return 0; }
inline uint64_t evict_last_policy() { return 0; }

inline void bulk_copy(void* shared_dst, const void* global_src, uint32_t num_bytes,
                      uint64_t* barrier, uint64_t /*l2_policy*/) {
  uint32_t delay = 0;
  {
    const emulation::Unchecked unchecked;
    emulation::Machine& machine = *emulation::machine;
    if (machine.is_random()) delay = static_cast<uint32_t>(machine.draw(machine.options.max_copy_delay));
  }
  emulation::issue_copy({emulation::this_lane().block, static_cast<uint8_t*>(shared_dst),
                         static_cast<const uint8_t*>(global_src), num_bytes, barrier, delay});
}

/// Publishes all that has been written so far, by anyone: a missing fence shows in those
/// interleavings in which no other thread's fence comes between write and copy.
inline void fence_proxy_async() { emulation::publish_writes(*emulation::this_lane().block); }

// --- group.cuh

inline void named_barrier_sync(uint32_t id, uint32_t num_threads) {
  if (emulation::is_skipped(emulation::Skip::named_barrier)) return;
  const emulation::Unchecked unchecked;
  if (id > 15) emulation::fail("named barrier " + std::to_string(id) + ": expected 0..15");
  emulation::Lane& lane = emulation::this_lane();
  emulation::NamedBarrier& barrier = lane.block->barriers[id];
  if (num_threads % 32 != 0 || num_threads == 0 || num_threads > 32 * lane.block->warps.size())
    emulation::fail("named barrier " + std::to_string(id) + ": " + std::to_string(num_threads) +
                    " threads");
  if (barrier.num_arrived == 0) barrier.num_expected = num_threads;
  if (barrier.num_expected != num_threads)
    emulation::fail("named barrier " + std::to_string(id) + ": " + std::to_string(num_threads) +
                    " threads here, " + std::to_string(barrier.num_expected) + " elsewhere");
  ++emulation::machine->progress;
  emulation::release_to(&barrier);
  const uint64_t generation = barrier.generation;
  if (++barrier.num_arrived == num_threads) {
    barrier.num_arrived = 0;
    ++barrier.generation;
  } else {
    emulation::wait_for(
        {[](const emulation::Wait& wait) {
           return static_cast<const emulation::NamedBarrier*>(wait.object)->generation !=
                  wait.value;
         },
         [](const emulation::Lane& l, const emulation::Wait& wait) {
           const auto* b = static_cast<const emulation::NamedBarrier*>(wait.object);
           return "named barrier " + std::to_string(b - l.block->barriers) + ": " +
                  std::to_string(b->num_arrived) + " of " + std::to_string(b->num_expected) +
                  " threads have come";
         },
         &barrier, generation, "named barrier"});
  }
  emulation::acquire_from(&barrier);
}

inline void sync_warp() {
  if (emulation::is_skipped(emulation::Skip::sync_warp)) return;
  const emulation::Unchecked unchecked;
  const emulation::Warp* warp = emulation::this_lane().warp;
  emulation::release_to(warp);
  emulation::meet("sync_warp", nullptr, 0);
  emulation::acquire_from(warp);
}

template <typename T>
T shuffle(T value, uint32_t lane_idx) {
  static_assert(sizeof(T) == 4);
  const emulation::Unchecked unchecked;
  const auto word = std::bit_cast<uint32_t>(value);
  return std::bit_cast<T>(emulation::meet("shuffle", &word, 1).in[lane_idx % 32][0]);
}

template <typename T>
T shuffle_xor(T value, uint32_t lane_mask) {
  return shuffle(value, emulation::this_lane().lane_idx ^ lane_mask);
}

inline uint32_t reduce_max(uint32_t value) {
  for (uint32_t mask = 16; mask != 0; mask /= 2) value = std::max(value, shuffle_xor(value, mask));
  return value;
}
inline uint32_t reduce_min(uint32_t value) { return ~reduce_max(~value); }

// --- matrix.cuh

inline float as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline float low_bf16(uint32_t word) { return as_float(word << 16); }
inline float high_bf16(uint32_t word) { return as_float(word & 0xffff0000u); }

/// c plus 16 products, all cut off at 25 fractional bits of the largest, and their sum at the 23 of FP32.
inline float sum_cut_off(float c, const float (&a)[16], const float (&b)[16][8], uint32_t col) {
  double terms[17], sum = 0.0;
  int exponent = -1000;
  for (uint32_t k = 0; k < 17; ++k) {
    terms[k] = k < 16 ? double{a[k]} * b[k][col] : double{c};
    if (terms[k] != 0.0) exponent = std::max(exponent, std::ilogb(terms[k]));
  }
  for (const double term : terms) sum += std::trunc(std::ldexp(term, 25 - exponent));
  const double exact = std::ldexp(sum, exponent - 25);
  const auto nearest = static_cast<float>(exact);
  return std::fabs(nearest) > std::fabs(exact) ? std::nextafter(nearest, 0.0f) : nearest;
}

/// c += a b in FP32, k ascending: one rounding per addition, none per product. Or cut off.
inline void combine_products(emulation::Exchange& exchange) {
  float a[16][16], b[16][8];
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t g = lane / 4, q = lane % 4;
    const uint32_t* in = exchange.in[lane];
    for (uint32_t i = 0; i < 4; ++i) {
      a[g + i % 2 * 8][2 * q + i / 2 * 8] = low_bf16(in[i]);
      a[g + i % 2 * 8][2 * q + i / 2 * 8 + 1] = high_bf16(in[i]);
    }
    for (uint32_t i = 0; i < 2; ++i) {
      b[2 * q + i * 8][g] = low_bf16(in[4 + i]);
      b[2 * q + i * 8 + 1][g] = high_bf16(in[4 + i]);
    }
  }
  float c[16][8];
  for (uint32_t lane = 0; lane < 32; ++lane)
    for (uint32_t i = 0; i < 4; ++i)
      c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2] =
          std::bit_cast<float>(exchange.in[lane][6 + i]);
  const bool cuts_sums = emulation::machine->options.cuts_sums;
  for (uint32_t row = 0; cuts_sums && row < 16; ++row)
    for (uint32_t col = 0; col < 8; ++col) c[row][col] = sum_cut_off(c[row][col], a[row], b, col);
  for (uint32_t row = 0; !cuts_sums && row < 16; ++row)
    for (uint32_t k = 0; k < 16; ++k)
      for (uint32_t col = 0; col < 8; ++col) c[row][col] += a[row][k] * b[k][col];
  for (uint32_t lane = 0; lane < 32; ++lane)
    for (uint32_t i = 0; i < 4; ++i)
      exchange.out[lane][i] =
          std::bit_cast<uint32_t>(c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
  ++emulation::machine->statistics.num_products;
}

inline void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const emulation::Unchecked unchecked;
  uint32_t words[emulation::Exchange::kWords] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  std::memcpy(words + 6, c, sizeof c);
  const auto& exchange = emulation::meet("mma.m16n8k16", words, 10, &combine_products);
  std::memcpy(c, exchange.out[emulation::this_lane().lane_idx], sizeof c);
}

/// The same with 32 k, four to a word.
inline void combine_e4m3_products(emulation::Exchange& exchange) {
  float a[16][32], b[32][8];
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const uint32_t g = lane / 4, q = lane % 4;
    const uint32_t* in = exchange.in[lane];
    for (uint32_t i = 0; i < 4; ++i)
      for (uint32_t j = 0; j < 4; ++j) {
        const auto byte = [&](uint32_t word) {
          return fp8_e4m3_to_f32(static_cast<uint8_t>(in[word] >> 8 * j));
        };
        a[g + i % 2 * 8][4 * q + j + i / 2 * 16] = byte(i);
        if (i < 2) b[4 * q + j + i * 16][g] = byte(4 + i);
      }
  }
  for (uint32_t lane = 0; lane < 32; ++lane)
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t row = lane / 4 + i / 2 * 8, col = lane % 4 * 2 + i % 2;
      float c = std::bit_cast<float>(exchange.in[lane][6 + i]);
      for (uint32_t k = 0; k < 32; ++k) c += a[row][k] * b[k][col];
      exchange.out[lane][i] = std::bit_cast<uint32_t>(c);
    }
  ++emulation::machine->statistics.num_products;
}

inline void mma_m16n8k32_e4m3(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const emulation::Unchecked unchecked;
  uint32_t words[emulation::Exchange::kWords] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  std::memcpy(words + 6, c, sizeof c);
  const auto& exchange = emulation::meet("mma.m16n8k32", words, 10, &combine_e4m3_products);
  std::memcpy(c, exchange.out[emulation::this_lane().lane_idx], sizeof c);
}

/// By search: the nearest of all codes, the even one of two.
inline uint32_t to_e4m3(float x) {
  uint32_t best = 0;
  const float magnitude = std::fabs(x);
  for (uint32_t code = 1; code < 127; ++code) {
    const float now = std::fabs(fp8_e4m3_to_f32(static_cast<uint8_t>(code)) - magnitude);
    const float before = std::fabs(fp8_e4m3_to_f32(static_cast<uint8_t>(best)) - magnitude);
    if (now < before || (now == before && code % 2 == 0)) best = code;
  }
  if (std::isnan(x)) best = 127;
  return best | (std::signbit(x) ? 128u : 0u);
}

inline uint32_t to_e4m3x2(float low, float high) { return to_e4m3(low) | to_e4m3(high) << 8; }

inline uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  if (selector & 0x8888) emulation::fail("pick_bytes: bit 3 of a selector");
  const uint64_t bytes = uint64_t{high} << 32 | low;
  uint32_t picked = 0;
  for (uint32_t i = 0; i < 4; ++i)
    picked |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return picked;
}

/// The row addresses that all lanes hand to an ldmatrix.
struct MatrixRows {
  const uint8_t* row[32];

  explicit MatrixRows(const void* shared_row) {
    if (reinterpret_cast<uintptr_t>(shared_row) % 16 != 0)
      emulation::fail("ldmatrix: the address of a row must be a multiple of 16");
    const emulation::Unchecked unchecked;
    uint32_t address[2];
    std::memcpy(address, &shared_row, sizeof address);
    const auto& exchange = emulation::meet("ldmatrix.x4", address, 2);
    for (uint32_t i = 0; i < 32; ++i) std::memcpy(&row[i], exchange.in[i], sizeof row[i]);
  }
};

/// Every lane reads its own elements, so that sanitizers see who reads what.
inline void ldmatrix_x4(uint32_t (&words)[4], const void* shared_row) {
  const MatrixRows rows(shared_row);
  const uint32_t lane_idx = emulation::this_lane().lane_idx;
  for (uint32_t i = 0; i < 4; ++i)
    std::memcpy(&words[i], rows.row[8 * i + lane_idx / 4] + lane_idx % 4 * 4, 4);
}

inline void ldmatrix_x4_transposed(uint32_t (&words)[4], const void* shared_row) {
  const MatrixRows rows(shared_row);
  const uint32_t lane_idx = emulation::this_lane().lane_idx;
  for (uint32_t i = 0; i < 4; ++i) {
    uint16_t halves[2];
    for (uint32_t j = 0; j < 2; ++j)
      std::memcpy(&halves[j], rows.row[8 * i + lane_idx % 4 * 2 + j] + lane_idx / 4 * 2, 2);
    words[i] = halves[0] | uint32_t{halves[1]} << 16;
  }
}

inline float exp2_approx(float x) {
  float power = std::exp2(x);
  if (emulation::machine->options.cuts_sums && x != 0.0f) power *= 1.0f + 0x1p-22f;
  return power < 0x1p-126f ? 0.0f : power;
}

inline uint32_t to_bf16x2(float low, float high) {
  return f32_to_bf16(low) | uint32_t{f32_to_bf16(high)} << 16;
}

inline uint32_t mul_bf16x2(uint32_t a, uint32_t b) {
  return to_bf16x2(low_bf16(a) * low_bf16(b), high_bf16(a) * high_bf16(b));
}

// --- wgmma.cuh

inline uint64_t wgmma_columns(const void* first) { return reinterpret_cast<uint64_t>(first); }

inline void wgmma_fence() {
  if (emulation::is_skipped(emulation::Skip::wgmma_fence)) return;
  const emulation::Unchecked unchecked;
  emulation::meet("wgmma_fence", nullptr, 0,
                  [](emulation::Exchange&) { emulation::this_lane().warp->is_fenced = true; });
}

template <uint32_t kGroups>
void wgmma_m64k16(float (&c)[kGroups][4], const uint32_t (&a)[4], uint64_t columns) {
  const emulation::Unchecked unchecked;
  uint32_t words[emulation::Exchange::kWords] = {};
  const uint32_t* a_words = a;
  float* c_values = c[0];
  std::memcpy(words, &columns, 8);
  std::memcpy(words + 2, &a_words, sizeof a_words);
  std::memcpy(words + 4, &c_values, sizeof c_values);
  words[6] = kGroups;
  emulation::meet("wgmma", words, 7, &emulation::issue_product);
}

inline void wgmma_commit() {
  if (emulation::is_skipped(emulation::Skip::wgmma_commit)) return;
  const emulation::Unchecked unchecked;
  emulation::meet("wgmma_commit", nullptr, 0, &emulation::commit_products);
}

template <uint32_t kNumGroups>
void wgmma_wait() {
  if (emulation::is_skipped(emulation::Skip::wgmma_wait)) return;
  const emulation::Unchecked unchecked;
  const uint32_t num_groups = kNumGroups;
  emulation::meet("wgmma_wait", &num_groups, 1, &emulation::wait_for_products);
}

template <uint32_t kGroups>
void wgmma_pin(float (&/*c*/)[kGroups][4]) {}

// --- memory.cuh

struct alignas(16) Words4 {
  uint32_t word[4];
};

/// Reading the same value again is a poll: the others run first.
inline uint32_t load_acquire_gpu(const uint32_t* address) {
  const emulation::Unchecked unchecked;
  emulation::Lane& lane = emulation::this_lane();
  if (lane.acquired == address && lane.acquired_value == *address)
    emulation::spin("poll with load_acquire_gpu");
  emulation::acquire_from(address);
  lane.acquired = address;
  return lane.acquired_value = *address;
}

/// What releases have in common.
inline void store_release(uint32_t* address, uint32_t value) {
  emulation::release_to(address);
  const emulation::Unchecked unchecked;
  *address = value;
  emulation::machine->host_memory.publish(address, sizeof value);
  ++emulation::machine->progress;
}

inline void add_release_gpu(uint32_t* address, uint32_t value) {
  const emulation::Unchecked unchecked;
  store_release(address, *address + value);
}

inline void store_release_system(uint32_t* address, uint32_t value) {
  store_release(address, value);
  const emulation::Unchecked unchecked;
  if (!emulation::is_skipped(emulation::Skip::system_scope))
    emulation::machine->host_memory.publish();
}

/// Relaxed accesses order nothing, and do not race: no acquire, no release.
inline uint64_t load_relaxed_gpu(const uint64_t* address) {
  const emulation::Unchecked unchecked;
  if (reinterpret_cast<uintptr_t>(address) % 8 != 0)
    emulation::fail("64-bit access to an address that is not a multiple of 8");
  return *address;
}
inline uint64_t load_relaxed_system(const uint64_t* address) { return load_relaxed_gpu(address); }

inline void store_relaxed_gpu(uint64_t* address, uint64_t value) {
  const emulation::Unchecked unchecked;
  if (reinterpret_cast<uintptr_t>(address) % 8 != 0)
    emulation::fail("64-bit access to an address that is not a multiple of 8");
  *address = value;
  emulation::machine->host_memory.publish(address, sizeof value);
  ++emulation::machine->progress;
}

inline uint32_t compare_exchange_gpu(uint32_t* address, uint32_t expected, uint32_t desired) {
  emulation::acquire_from(address);
  emulation::release_to(address);
  const emulation::Unchecked unchecked;
  const uint32_t before = *address;
  if (before == expected) *address = desired;
  emulation::machine->host_memory.publish(address, sizeof before);
  ++emulation::machine->progress;
  return before;
}

inline uint32_t count_to_gpu(uint32_t* address, uint32_t last) {
  if (!emulation::is_skipped(emulation::Skip::count_order)) {
    emulation::acquire_from(address);
    emulation::release_to(address);
  }
  const emulation::Unchecked unchecked;
  const uint32_t before = *address;
  *address = before >= last ? 0 : before + 1;
  emulation::machine->host_memory.publish(address, sizeof before);
  ++emulation::machine->progress;
  return before;
}

inline Words4 load_16_bytes_keep(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0)
    emulation::fail("16-byte load from an address that is not a multiple of 16");
  Words4 words;
  std::memcpy(&words, address, sizeof words);
  return words;
}

inline Words4 load_16_bytes_once(const void* address) { return load_16_bytes_keep(address); }

// --- system.cuh

inline uint8_t* dynamic_shared_memory() { return emulation::this_lane().block->shared.get(); }

/// A round of the scheduler counts as a microsecond.
EMULATION_UNCHECKED inline uint64_t global_timer_ns() {
  return emulation::machine->statistics.num_rounds * 1000 + emulation::machine->held_ns;
}

inline void sleep_ns(uint32_t time_ns) {
  for (uint32_t i = 0; i <= time_ns / 1000; ++i) emulation::spin("sleep_ns");
}

[[noreturn]] inline void trap() { emulation::fail("trap"); }

template <uint32_t kRegisters>
void raise_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}
template <uint32_t kRegisters>
void lower_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}

}  // namespace mimo_rt::ptx
