// The projection task: a dense matrix of FP8 or BF16 weights times 1 … 64 tokens. A pair of role
// functions, as the expert tasks.
//
// Order of the sums. K is cut into segments, each segment into 8 parts of whole tiles. FP8: the 128
// k of a tile ascending, then one FMA with the scale; tiles ascending inside a part. BF16: k
// ascending inside a part. Then the parts of a segment in order, then the segments in order. The
// number of tokens, of blocks and of segments in flight changes none of it.
//
// Up to 8 rows that fit are brought to shared memory first, and normalised there once: the weights
// are on their way meanwhile. Else every unit reads the rows through L1 and normalises them again:
// an FP8 tile then takes 1.9 times the instructions. Many tokens are better normalised by a task of
// their own (rms_norm.cuh). All ways give the same bits.
#pragma once

#include "cuda/device/math/dense_tiles.cuh"
#include "cuda/device/tasks/projection_store.cuh"
#include "cuda/device/tasks/rms_norm.cuh"
#include "cuda/device/tasks/weight_stream.cuh"
#include "cuda/projection_params.h"

namespace mimo_rt::cuda {

inline constexpr uint32_t kMaxProjectionPartials = kProjectionParts * kMaxTokens;

// Elements of rows in shared memory: 3 rows of 6144, 8 of 2299. For a fourth nothing is left by the
// persistent kernel's task slots and route.
inline constexpr uint32_t kKeptElements = 18456;

struct ProjectionShared {
  WeightRing ring;
  float partials[kMaxProjectionPartials][kPartialStride];  ///< sums of items, 16 rows each
  uint32_t row_idx[kMaxTokens];  ///< of the token's row in x; beyond the tokens that of the first
  float inverse_rms[kMaxTokens];
  BestScores best;
  alignas(16) uint16_t rows[kKeptElements];  ///< token t from t * kept_stride(k) on
};

/// 16 bytes more than a row: the 8 rows of a product begin at different banks.
__device__ __forceinline__ uint32_t kept_stride(uint32_t k) { return k + 8; }

__device__ __forceinline__ bool keeps_rows(const ProjectionParams& p) {
  return p.num_tokens <= kColumns && p.num_tokens * kept_stride(p.k) <= kKeptElements;
}

/// One unit: 16 columns for all tokens. Items run over as many segments as the partial sums have
/// room for and, inside, over their parts; the rest follows in passes.
template <typename Tiles>
struct ProjectionUnits {
  uint32_t tiles_per_group;
  uint32_t segments_per_pass;

  __device__ explicit ProjectionUnits(const ProjectionParams& p)
      : tiles_per_group((p.k + Tiles::kTileK - 1) / Tiles::kTileK) {
    const uint32_t room = kMaxTokens / p.num_tokens;
    segments_per_pass = room < p.num_segments ? room : p.num_segments;
  }
  __device__ static uint32_t count(const ProjectionParams& p) { return p.rows / 16; }
  __device__ uint32_t pass_segments(const ProjectionParams& p, uint32_t first_segment) const {
    const uint32_t rest = p.num_segments - first_segment;
    return rest < segments_per_pass ? rest : segments_per_pass;
  }
  __device__ ItemTickets tickets(const ProjectionParams& p, uint32_t first_ticket,
                                 uint32_t pass_size) const {
    const uint32_t longest = (tiles_per_group + p.num_segments - 1) / p.num_segments;
    return {first_ticket, pass_size * kProjectionParts,
            stages_per_item<Tiles>(longest, kProjectionParts)};
  }
  __device__ TileRun run(const ProjectionParams& p, uint32_t unit, uint32_t segment,
                         uint32_t part) const {
    const uint8_t* row_group = p.tiles + uint64_t{unit} * tiles_per_group * Tiles::kTileBytes;
    const TileRun whole = segment_run<Tiles>(row_group, tiles_per_group, segment, p.num_segments);
    TileRun run = segment_run<Tiles>(whole.tiles, whole.num_tiles, part, kProjectionParts);
    run.first_tile += whole.first_tile;
    return run;
  }
};

/// Walks the passes of all units: `action(units, unit, first_segment, pass_size, tickets)`. Ends
/// with the ticket after the task's last.
template <typename Tiles, typename Action>
__device__ __forceinline__ void walk_projection(const ProjectionParams& p, UnitRange range,
                                                uint32_t& ticket, const Action& action) {
  const ProjectionUnits<Tiles> units(p);
  for (uint32_t u = range.first; u < range.limit(units.count(p)); u += range.stride)
    for (uint32_t first = 0; first < p.num_segments; first += units.segments_per_pass) {
      const uint32_t pass_size = units.pass_segments(p, first);
      const ItemTickets tickets = units.tickets(p, ticket, pass_size);
      action(units, u, first, pass_size, tickets);
      ticket = tickets.end();
    }
}

template <typename Tiles>
__device__ void load_projection(ProjectionShared& shared, const ProjectionParams& p,
                                UnitRange range, uint32_t& ticket) {
  const uint64_t l2_policy = ptx::evict_first_policy();
  walk_projection<Tiles>(p, range, ticket,
                         [&](const ProjectionUnits<Tiles>& units, uint32_t u, uint32_t first,
                             uint32_t /*pass_size*/, const ItemTickets& tickets) {
                           load_items<Tiles>(shared.ring, tickets, l2_policy, [&](uint32_t item) {
                             return units.run(p, u, first + item / kProjectionParts,
                                              item % kProjectionParts);
                           });
                         });
}

/// Where the rows of all tokens are. A compute barrier must follow.
__device__ inline void list_rows(ProjectionShared& shared, const ProjectionParams& p) {
  const uint32_t token = threadIdx.x;
  if (token >= kMaxTokens) return;
  const uint32_t existing = token < p.num_tokens ? token : 0;
  shared.row_idx[token] = p.row_ids ? p.row_ids[existing] : existing;
}

__device__ __forceinline__ const uint16_t* input_row(const ProjectionShared& shared,
                                                     const ProjectionParams& p, uint32_t token) {
  return p.x.row(shared.row_idx[token]);
}

/// 1 / rms of every row, one warp per row. A compute barrier must follow.
__device__ inline void measure_rows(ProjectionShared& shared, const ProjectionParams& p) {
  for (uint32_t token = threadIdx.x / 32; token < p.num_tokens; token += kComputeWarps) {
    const float inverse_rms = inverse_rms_of(input_row(shared, p, token), p.k, p.norm_eps);
    if (threadIdx.x % 32 == 0) shared.inverse_rms[token] = inverse_rms;
  }
}

/// Brings all rows to shared memory, one warp per row. A compute barrier must follow.
template <bool kIsNormed>
__device__ void keep_rows(ProjectionShared& shared, const ProjectionParams& p) {
  static_assert(kColumns == kComputeWarps);
  const uint32_t token = threadIdx.x / 32;
  if (token >= p.num_tokens) return;
  const uint16_t* row = input_row(shared, p, token);
  const float inverse_rms = kIsNormed ? inverse_rms_of(row, p.k, p.norm_eps) : 1.0f;
  for (uint32_t k = threadIdx.x % 32 * 8; k < p.k; k += 256) {
    ptx::Words4 words = ptx::load_16_bytes_keep(row + k);
    if constexpr (kIsNormed) normalise_pairs(p.norm_weight + k, inverse_rms, words.word);
    *reinterpret_cast<ptx::Words4*>(shared.rows + token * kept_stride(p.k) + k) = words;
  }
}

/// How `multiply_rows` gets at the activations of a token.
enum class RowSource : uint8_t { kept, global, global_normed };

/// One item times the rows of all tokens; its sums go to the partial sums of `item`.
template <typename Tiles, RowSource kSource, uint32_t kColumnGroups>
__device__ void multiply_rows(ProjectionShared& shared, const ProjectionParams& p,
                              const ItemTickets& tickets, uint32_t item, const TileRun& run) {
  const uint32_t lane_idx = threadIdx.x % 32, g = lane_idx / 4, q = lane_idx % 4;
  const uint32_t num_groups = (p.num_tokens + kColumns - 1) / kColumns;
  float sums[kColumnGroups][4] = {};
  // A few tokens: activations are read one tile ahead, as in the expert tasks. Many: the products
  // of the other groups hide the latency, and there are no registers left.
  constexpr bool kReadsAhead = kColumnGroups == 1;
  constexpr bool kIsKept = kSource == RowSource::kept;
  static_assert(kReadsAhead || !kIsKept);
  const uint16_t* first_row = input_row(shared, p, g);
  if (kIsKept) first_row = shared.rows + (g < p.num_tokens ? g : 0) * kept_stride(p.k);
  uint32_t next[kReadsAhead ? Tiles::kParts : 1][8];
  uint32_t k_begin = run.first_tile * Tiles::kTileK + q * 16, rest = run.num_tiles;
  if constexpr (kReadsAhead)
#pragma unroll
    for (uint32_t part = 0; part < Tiles::kParts; ++part)
      load_activations<kIsKept>(first_row, k_begin + 64 * part, p.k, next[part]);
  for (uint32_t stage = 0; stage < tickets.num_stages; ++stage) {
    const uint32_t ticket = tickets.ticket(item, stage);
    const uint8_t* tile = shared.ring.wait(ticket);
    const uint8_t* end = tile + tiles_of_stage<Tiles>(rest) * Tiles::kTileBytes;
#pragma unroll(kReadsAhead ? 2 : 1)  // the other set of activation registers, instead of copies
    for (; tile != end; tile += Tiles::kTileBytes, k_begin += Tiles::kTileK, --rest) {
      WeightFragments weights[Tiles::kParts];
#pragma unroll
      for (uint32_t part = 0; part < Tiles::kParts; ++part)
        weights[part] = Tiles::load(tile, part, lane_idx);
#pragma unroll
      for (uint32_t group = 0; group < kColumnGroups; ++group) {
        if (group % 2 == 0 && group >= num_groups) break;  // each would take a predicate
        float block[4] = {};  // of one scale block
#pragma unroll
        for (uint32_t part = 0; part < Tiles::kParts; ++part) {
          const uint32_t k = k_begin + 64 * part;
          uint32_t words[8];
          if constexpr (kReadsAhead) {
#pragma unroll
            for (uint32_t i = 0; i < 8; ++i) words[i] = next[part][i];
            load_activations<kIsKept>(first_row, k + Tiles::kTileK, p.k, next[part]);
          } else {
            load_activations(input_row(shared, p, group * kColumns + g), k, p.k, words);
          }
          if (kSource == RowSource::global_normed && k < p.k)  // beyond k they stay zero
            normalise_pairs(p.norm_weight + k, shared.inverse_rms[group * kColumns + g], words);
          multiply_tile(Tiles::kIsScaled ? block : sums[group], weights[part], words);
        }
        if constexpr (Tiles::kIsScaled)
#pragma unroll
          for (uint32_t i = 0; i < 4; ++i)
            sums[group][i] = fmaf(Tiles::scale(tile, g + i / 2 * 8), block[i], sums[group][i]);
      }
    }
    shared.ring.release(ticket, lane_idx);
  }
#pragma unroll
  for (uint32_t group = 0; group < kColumnGroups; ++group)
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
      const uint32_t token = group * kColumns + 2 * q + i % 2;
      if (token < p.num_tokens)
        shared.partials[item * p.num_tokens + token][g + i / 2 * 8] = sums[group][i];
    }
}

/// Adds the segments of one pass to this thread's outputs.
__device__ inline void add_segments(const ProjectionShared& shared, const ProjectionParams& p, uint32_t pass_size,
                                    ProjectionOutputs& outputs) {
  using Outputs = ProjectionOutputs;
  for (uint32_t s = 0; s < pass_size; ++s)
#pragma unroll
    for (uint32_t i = 0; i < Outputs::kTokens; ++i) {
      const uint32_t token = Outputs::token(i);
      if (token >= p.num_tokens) break;
      float segment_sum = 0.0f;
#pragma unroll
      for (uint32_t part = 0; part < kProjectionParts; ++part)
        segment_sum += shared.partials[(s * kProjectionParts + part) * p.num_tokens + token]
                                      [Outputs::row()];
      outputs.y[i] += segment_sum;
    }
}

template <typename Tiles, bool kIsNormed>
__device__ void compute_projection(ProjectionShared& shared, const ProjectionParams& p,
                                   UnitRange range, uint32_t& ticket) {
  const uint32_t warp_idx = threadIdx.x / 32;
  using Units = ProjectionUnits<Tiles>;
  shared.best.reset(p);
  list_rows(shared, p);
  compute_barrier();
  constexpr RowSource kGlobal = kIsNormed ? RowSource::global_normed : RowSource::global;
  const bool is_kept = keeps_rows(p);
  if (is_kept)
    keep_rows<kIsNormed>(shared, p);
  else if (kIsNormed)
    measure_rows(shared, p);
  compute_barrier();
  for (uint32_t u = range.first; u < range.limit(Units::count(p)); u += range.stride) {
    ProjectionOutputs outputs{};
    // Sizes are worked out for every pass: the products need the registers.
    for (uint32_t first = 0; first < p.num_segments; first += Units(p).segments_per_pass) {
      const Units units(p);
      const uint32_t pass_size = units.pass_segments(p, first);
      const ItemTickets tickets = units.tickets(p, ticket, pass_size);
      for (uint32_t s = 0; s < pass_size; ++s) {
        const uint32_t item = s * kProjectionParts + warp_idx;
        const TileRun run = units.run(p, u, first + s, warp_idx);
        if (is_kept)
          multiply_rows<Tiles, RowSource::kept, 1>(shared, p, tickets, item, run);
        else if (p.num_tokens <= kColumns)  // fewer registers and instructions
          multiply_rows<Tiles, kGlobal, 1>(shared, p, tickets, item, run);
        else
          multiply_rows<Tiles, kGlobal, kMaxColumnGroups>(shared, p, tickets, item, run);
      }
      ticket = tickets.end();
      outputs.load_residual(p, u);
      compute_barrier();
      add_segments(shared, p, pass_size, outputs);
      compute_barrier();  // before the next pass overwrites the partial sums
    }
    store_projection(p, u, outputs, shared.best);
  }
  if (p.store == ProjectionStore::scores) shared.best.store_scores(p, blockIdx.x);
}

}  // namespace mimo_rt::cuda
