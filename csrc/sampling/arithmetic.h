// The arithmetic of drawing tokens, written once for the CPU's sampler and the CUDA kernels: the same bits on both, so
// equal logits give equal tokens. Scores are float64, weights and everything after them integers.
#pragma once

#include "sampling/fixed_exp.h"
#include "sampling/philox.h"

#include <cstdint>

namespace mimo_rt {

/// What a uniform number is for. Streams of Philox: `sample`, or 4 * row + use for row >= 1 of a block.
enum class DrawUse : uint32_t { sample = 0, propose = 1, accept = 2, residual = 3 };

MIMO_RT_HOST_DEVICE constexpr uint32_t draw_stream(uint32_t row, DrawUse use) {
  return 4 * row + static_cast<uint32_t>(use);
}

/// 53 uniform bits, a pure function of the arguments: Philox-4x32-10 with key `seed` and counter
/// (sequence_id, position, stream).
MIMO_RT_HOST_DEVICE inline uint64_t uniform_bits_at(uint64_t seed, uint64_t sequence_id, uint32_t position,
                                                    uint32_t stream) {
  const PhiloxCounter words = philox4x32_10(
      {{static_cast<uint32_t>(sequence_id), static_cast<uint32_t>(sequence_id >> 32), position, stream}},
      {{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}});
  return uint64_t{words.word[0] >> 5} << 26 | words.word[1] >> 6;
}

MIMO_RT_HOST_DEVICE inline bool is_finite(float logit) {
  return (__builtin_bit_cast(uint32_t, logit) & 0x7f800000u) != 0x7f800000u;
}

/// A finite logit with bias and, if the token has occurred, repetition penalty.
MIMO_RT_HOST_DEVICE inline double candidate_score(float logit, double bias, bool has_occurred, double penalty) {
  const Float64 score = Float64(static_cast<double>(logit)) + Float64(bias);
  if (!has_occurred) return score;
  return score.value > 0.0 ? score.value / penalty : double{score * Float64(penalty)};
}

/// Softmax with temperature, as integers relative to the best candidate; the sum over a vocabulary stays below 2^63.
struct WeightScale {
  double best;  ///< score
  double inverse_temperature;
  double one;     ///< weight of the best candidate
  double cutoff;  ///< a weight below e^cutoff * one rounds to 0

  MIMO_RT_HOST_DEVICE WeightScale(double best_score, double temperature, uint32_t vocab_size)
      : best(best_score), inverse_temperature(1.0 / temperature) {
    int bits = 63;
    for (uint32_t rest = vocab_size; rest; rest >>= 1) --bits;
    if (bits > 53) bits = 53;
    one = static_cast<double>(uint64_t{1} << bits);
    cutoff = -(bits + 1) * 0.6931471805599454;
  }
  MIMO_RT_HOST_DEVICE double exponent(double score) const {
    return (Float64(score) - Float64(best)) * Float64(inverse_temperature);
  }
  /// 0: not a candidate.
  MIMO_RT_HOST_DEVICE uint64_t weight(double score) const {
    const double x = exponent(score);
    return weight(x, fixed_exp(x));
  }
  /// The same from an exponent and fixed_exp of it.
  MIMO_RT_HOST_DEVICE uint64_t weight(double x, double exp_x) const {
    const auto rounded = static_cast<int64_t>(double{Float64(exp_x) * Float64(one) + Float64(0.5)});
    return static_cast<uint64_t>(rounded) * static_cast<uint64_t>(!(x < cutoff));
  }
  MIMO_RT_HOST_DEVICE bool passes_min_p(uint64_t weight, float min_p) const {
    return !(static_cast<double>(weight) < double{Float64(static_cast<double>(min_p)) * Float64(one)});
  }
};

/// The running sum, best candidates first, at which top-p stops: 1 .. total.
MIMO_RT_HOST_DEVICE inline uint64_t top_p_target(float top_p, uint64_t total) {
  const double wanted = Float64(static_cast<double>(top_p)) * Float64(static_cast<double>(total));
  auto target = static_cast<uint64_t>(wanted);
  if (static_cast<double>(target) < wanted) ++target;
  return target < 1 ? 1 : target < total ? target : total;
}

/// The place in [0, total) that 53 uniform bits point to.
MIMO_RT_HOST_DEVICE inline uint64_t draw_rank(uint64_t uniform_bits, uint64_t total) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(uniform_bits) * total >> 53);
}

/// A weight of the proposal in units of p: rounded down, so that the sum is at most p's. Hence after a rejection, where
/// p(d) < q(d), some other token has p > q and the residual is not empty.
MIMO_RT_HOST_DEVICE inline uint64_t rescale_weight(uint64_t weight, uint64_t q_total, uint64_t p_total) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(weight) * p_total / q_total);
}

/// Whether a draft of rescaled weight `q` is kept: with probability min(1, p / q).
MIMO_RT_HOST_DEVICE inline bool accepts_draft(uint64_t uniform_bits, uint64_t q, uint64_t p) {
  return static_cast<unsigned __int128>(uniform_bits) * q < static_cast<unsigned __int128>(p) << 53;
}

}  // namespace mimo_rt
