// The exact tier: a model and a draft whose every value is the same bit for bit in whatever order, and in whatever groups,
// FP32 sums are made, so that executors can be compared for equality, tokens and logits.
//
//   sums      weights are sparse, small integers times powers of two: every partial sum of products is an FP32 number, and
//             the terms of one sum are near each other, so that tensor cores, which align and truncate them, keep all bits
//   norms     two carriers make the mean square 2^48 but for less than 2^-9 of it, so that x / rms, rounded to BF16, is
//             x / 2^24 whatever the last bits of the root. Nobody writes to them; one is read, as a constant
//   softmax   scores that differ do so by far more than 104, so that weights are 1 or 0. Heads look for a position (by RoPE:
//             of all keys one has the largest score) or for the largest rank: keys that are equal are those of one token, and
//             what such a head takes from the values says nothing but the token, so that their mean is one of them
//   RoPE      one element of each pair is zero: the other becomes one product, and nothing is added to it
//   router    logits are multiples of 128, not 0: sigma is 1 or 0, and the sum of those that are taken a power of two
//   SwiGLU    gates are multiples of 128: silu(g) is g or 0
#pragma once

#include <mimo_rt/config.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fixture {

using namespace mimo_rt;

/// What the residual stream holds: the dim of each feature. A block is what half a layer (attention, MLP) adds.
namespace exact {

inline constexpr uint32_t kHidden = 160, kNumParts = 4, kNumCopies = 16, kBlockDims = 11;
inline constexpr float kUnit = 0x1p+24, kCarriers[2] = {12 * kUnit, 4 * kUnit};  // 144 + 16 = kHidden
static_assert(kCarriers[0] * kCarriers[0] + kCarriers[1] * kCarriers[1] == kHidden * kUnit * kUnit);

constexpr uint32_t dim_of(uint32_t feature) { return (feature * 67 + 11) % kHidden; }  // neighbours far apart
constexpr uint32_t carrier(uint32_t i) { return dim_of(i); }
constexpr uint32_t kConstant = carrier(1);  ///< 1 when normalised
constexpr uint32_t code(uint32_t i) { return dim_of(2 + i % 42); }  ///< 1 or -1: of the row's token
constexpr uint32_t rank(uint32_t function, uint32_t part) { return dim_of(44 + kNumParts * function + part); }
constexpr uint32_t copy(uint32_t i) { return dim_of(52 + i); }  ///< codes of a token some way back
constexpr uint32_t block(uint32_t half_layer, uint32_t i) { return dim_of(68 + kBlockDims * half_layer + i); }

/// The same numbers on every machine.
class Random {
 public:
  explicit Random(std::string_view name) {
    for (const char c : name) state_ = (state_ ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  }
  uint32_t below(uint32_t limit) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>((state_ >> 33) % limit);
  }
  float sign() { return below(2) ? 1.0f : -1.0f; }

 private:
  uint64_t state_ = 0xcbf29ce484222325u;
};

struct Matrix {
  uint32_t rows, cols;
  std::vector<float> values;
  Matrix(uint32_t num_rows, uint32_t num_cols) : rows(num_rows), cols(num_cols), values(uint64_t{num_rows} * num_cols) {}
  float& at(uint32_t row, uint32_t col) { return values[uint64_t{row} * cols + col]; }
};

/// A feature of the half layers before `half_layer`, or of the token.
inline uint32_t seen(Random& random, uint32_t half_layer, bool has_copies) {
  const uint32_t choice = random.below(4);
  if (choice == 0 && has_copies) return copy(random.below(kNumCopies));
  if (choice <= 1 || half_layer == 0) return code(random.below(42));
  return block(half_layer - 1 - random.below(half_layer < 2 ? half_layer : 2), random.below(kBlockDims));
}

/// Row `row` of an embedding: of `token`, or of the mask (vocab_size).
inline void embed(Matrix& m, uint32_t row, uint32_t token, uint32_t vocab_size) {
  Random random(std::string("token") + std::to_string(token));
  for (uint32_t i = 0; i < 2; ++i) m.at(row, carrier(i)) = kCarriers[i];
  for (uint32_t i = 0; i < 42; ++i) m.at(row, code(i)) = random.sign();
  for (uint32_t f = 0; f < 2; ++f) {  // a permutation each, of ranks around 0
    int rest = static_cast<int>((token * (57 + 44 * f) + 13) % vocab_size) - static_cast<int>(vocab_size / 2);
    if (token == vocab_size) rest = -static_cast<int>(vocab_size);
    for (uint32_t part = 0; part + 1 < kNumParts; ++part) {
      const int value = static_cast<int>(random.below(41)) - 20;
      m.at(row, rank(f, part)) = static_cast<float>(value);
      rest -= value;
    }
    m.at(row, rank(f, kNumParts - 1)) = static_cast<float>(rest);
  }
}

/// Of any norm over a row: features as they are, or twice.
inline Matrix norm() {
  Matrix m(1, kHidden);
  for (uint32_t i = 0; i < kHidden; ++i) m.at(0, i) = kUnit;
  for (uint32_t i = 1; i < kBlockDims; i += 2)
    for (uint32_t half_layer = 0; half_layer < 8; ++half_layer) m.at(0, block(half_layer, i)) = 2 * kUnit;
  m.at(0, carrier(0)) = 0.0f;
  m.at(0, kConstant) = 0.25f;
  return m;
}

/// Tokens whose code was copied score high; what else the layers say may be more.
inline Matrix lm_head(uint32_t vocab_size) {
  Matrix embedding(1, kHidden), m(vocab_size, kHidden);
  Random random("lm_head");
  for (uint32_t token = 0; token < vocab_size; ++token) {
    embed(embedding, 0, token, vocab_size);
    for (uint32_t i = 0; i < kNumCopies; ++i) m.at(token, copy(i)) = 2 * embedding.at(0, code(i));
    for (uint32_t half_layer = 0; half_layer < 8; ++half_layer)  // later ones have larger numbers
      m.at(token, block(half_layer, random.below(kBlockDims))) = random.sign() * std::ldexp(1.0f, -(3 * static_cast<int>(half_layer)) / 2);
  }
  return m;
}

/// The heads of a layer, four in turn: of these two look for a position, two for a rank.
struct Heads {
  uint32_t num_q, num_kv, qk_dim, v_dim, rotary_dim;
  uint32_t shifts[2];  ///< how far back the positions are
  bool has_norms;      ///< of q and k heads, which have carriers of their own then
  static constexpr float kTurn = 256.0f, kStep = 64.0f;  ///< elements of q and k: scores are kTurn^2 cos and kStep^2 rank
  static constexpr float kCarrier = 0x1p+18f;            ///< two of 32 dims: the mean square is 2^32
  static constexpr double kTheta = 3.0;                  ///< see `quarter`

  static bool is_positional(uint32_t q_head) { return q_head % 4 == 0 || q_head % 4 == 3; }
  /// The angle of a pair of the key that is `shift` back, to the nearest quarter. With kTheta one key has a score far above
  /// all others for every number of keys up to 90, for shifts of 6, 7, 8, 9, 12, 13, 16 and 19; of a draft 13 and 16.
  uint32_t quarter(uint32_t shift, uint32_t pair) const {
    const double angle = shift * std::pow(kTheta, -2.0 * pair / rotary_dim);
    return static_cast<uint32_t>(std::lround(angle / std::acos(0.0))) % 4;
  }
  float sign_of_part(uint32_t part) const { return part % 2 ? -1.0f : 1.0f; }

  void fill_q(Matrix& m, uint32_t row, uint32_t q_head) const {
    if (is_positional(q_head)) {
      for (uint32_t pair = 0; pair < rotary_dim / 2; ++pair) {
        // (1, 0), (0, -1), (-1, 0) or (0, 1): times a key's (1, 0) it is the cosine of the angle that is left.
        const uint32_t turn = quarter(shifts[q_head % 4 ? 1 : 0], pair);
        m.at(row + pair + (turn % 2 ? rotary_dim / 2 : 0), kConstant) = turn % 3 ? -kTurn : kTurn;
      }
    } else {  // the largest; or, as the token says, the smallest
      for (uint32_t part = 0; part < kNumParts; ++part)
        m.at(row + rotary_dim + part, q_head % 4 == 2 ? kConstant : code(16 + q_head)) = kStep * sign_of_part(part);
    }
    fill_carriers(m, row);
  }
  void fill_k(Matrix& m, uint32_t row, uint32_t kv_head) const {
    for (uint32_t pair = 0; pair < rotary_dim / 2; ++pair) m.at(row + pair, kConstant) = kTurn;
    for (uint32_t part = 0; part < kNumParts; ++part)
      m.at(row + rotary_dim + part, rank(kv_head % 2, part)) = kStep * sign_of_part(part);
    fill_carriers(m, row);
  }
  /// The first half says nothing but the token.
  void fill_v(Matrix& m, uint32_t row, uint32_t kv_head, Random& random, uint32_t half_layer, bool has_copies) const {
    for (uint32_t i = 0; i < v_dim / 2; ++i) {
      m.at(row + i, code(v_dim / 2 * kv_head + i)) = 2.0f;
      for (uint32_t n = 0; n < 2; ++n)
        m.at(row + v_dim / 2 + i, seen(random, half_layer, has_copies)) = 2.0f * random.sign();
    }
  }
  /// A sink that wins where no rank is above `largest`.
  float sink(uint32_t q_head, int largest) const {
    const double step = double{kStep} * kStep / std::sqrt(static_cast<double>(qk_dim));
    return static_cast<float>(is_positional(q_head) ? -0x1p+20 : (largest + 0.5) * step);
  }
  Matrix head_norm() const {
    Matrix m(1, qk_dim);
    for (uint32_t i = 0; i + 2 < qk_dim; ++i) m.at(0, i) = 0x1p+16f;
    return m;
  }
  Matrix o_proj(Random& random, uint32_t half_layer, bool copies) const {
    Matrix m(kHidden, num_q * v_dim);
    for (uint32_t i = 0; i < kBlockDims; ++i)
      for (uint32_t n = 0; n < 2; ++n) {
        const uint32_t q_head = random.below(num_q), element = random.below(is_positional(q_head) ? v_dim : v_dim / 2);
        m.at(block(half_layer, i), q_head * v_dim + element) = random.sign();
      }
    for (uint32_t i = 0; copies && i < kNumCopies; ++i) m.at(copy(i), i) = 1.0f;  // of head 0
    return m;
  }

 private:
  void fill_carriers(Matrix& m, uint32_t row) const {
    for (uint32_t i = 1; has_norms && i <= 2; ++i) m.at(row + qk_dim - i, kConstant) = kCarrier;
  }
};

/// A gated MLP of half layer `half_layer`.
struct Mlp {
  uint32_t width, half_layer;
  bool has_copies;

  Matrix gate(Random random) const {
    Matrix m(width, kHidden);
    for (uint32_t row = 0; row < width; ++row) {
      for (uint32_t n = 0; n < 2; ++n) m.at(row, code(random.below(42))) = 128.0f * random.sign();
      if (random.below(2))
        m.at(row, has_copies ? copy(random.below(kNumCopies)) : code(random.below(42))) = 128.0f * random.sign();
    }
    return m;
  }
  Matrix up(Random random) const {
    Matrix m(width, kHidden);
    for (uint32_t row = 0; row < width; ++row) {
      m.at(row, code(random.below(42))) = 0x1p-7f * random.sign();
      m.at(row, row % 4 ? code(random.below(42)) : seen(random, half_layer, has_copies)) = 0x1p-7f * random.sign();
    }
    return m;
  }
  Matrix down(Random random, float scale) const {
    Matrix m(kHidden, width);
    for (uint32_t col = 0; col < width; ++col) m.at(block(half_layer, col % kBlockDims), col) = scale * random.sign();
    return m;
  }
};

/// Of the first four experts two have a positive logit, opposites; the others have multiples of two logits. So 2, or at
/// least 4, are positive: of 4 that are taken all weigh as much, or two weigh nothing and the others twice as much.
inline Matrix router(uint32_t num_experts, uint32_t half_layer, Random random) {
  constexpr float kFactors[][2] = {{0, 1}, {0, -1}, {1, 1}, {1, -1}, {2, 1}, {2, 2}, {3, 1}, {3, 2}, {2, 3}};
  Matrix logits(4, kHidden), m(num_experts, kHidden);
  for (uint32_t row = 0; row < 4; ++row) {
    const uint32_t first = random.below(42);  // three codes or copies, which are odd, and twice something
    for (uint32_t n = 0; n < 2; ++n) logits.at(row, code(first + n)) = 128.0f * random.sign();
    logits.at(row, copy(random.below(kNumCopies))) = 128.0f * random.sign();
    logits.at(row, block(random.below(half_layer), random.below(kBlockDims))) = 256.0f * random.sign();
  }
  for (uint32_t expert = 0; expert < num_experts; ++expert)
    for (uint32_t k = 0; k < kHidden; ++k)
      m.at(expert, k) = kFactors[expert][1] * logits.at(static_cast<uint32_t>(kFactors[expert][0]), k);
  return m;
}

/// Context of what three layers left, the first MoE layer, the dense one and the last: carriers of the first, the token of
/// the second, copies of the last, blocks of any that has them.
inline Matrix context_fc() {
  constexpr uint32_t kDense = kHidden, kLast = 2 * kHidden;
  Matrix m(kHidden, 3 * kHidden);
  Random random("fc");
  for (uint32_t i = 0; i < 2; ++i) m.at(carrier(i), carrier(i)) = 1.0f;
  for (uint32_t i = 0; i < 42; ++i) m.at(code(i), kDense + code(i)) = 1.0f;
  for (uint32_t i = 0; i < 2 * kNumParts; ++i) m.at(rank(0, i), kDense + rank(0, i)) = 1.0f;
  for (uint32_t i = 0; i < kNumCopies; ++i) m.at(copy(i), kLast + copy(i)) = 1.0f;
  for (uint32_t half_layer = 0; half_layer < 8; ++half_layer)
    for (uint32_t i = 0; i < 2 * kBlockDims; ++i) {
      const uint32_t begin = half_layer < 4 && i % 2 ? 0 : kLast;
      m.at(block(half_layer, i / 2), begin + block(half_layer, random.below(kBlockDims))) = random.sign();
    }
  return m;
}

}  // namespace exact
}  // namespace fixture
