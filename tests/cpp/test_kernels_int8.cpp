// MXFP4 products with INT8 activations, of every instruction set: against the definition in core/activations.h, and bit
// for bit against each other.
#include <array>
#include <cmath>

#include "check.h"
#include "core/activations.h"
#include "kernel_tables.h"
#include "pack_reference.h"

using namespace mimo_rt;
using kernel_tables::Aligned;
using kernel_tables::Table;
using pack_reference::Matrix;

namespace {

constexpr int kFormat = static_cast<int>(PackedFormat::mxfp4);
constexpr uint32_t kTokenCounts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 49, 64};
constexpr uint32_t kLengths[] = {32, 96, 576, 2048};

std::vector<bf16_t> random_tokens(uint32_t num_tokens, uint32_t k, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<bf16_t> x(size_t{num_tokens} * k);
  for (bf16_t& value : x) value = f32_to_bf16(normal(rng));
  return x;
}

Matrix random_weights(uint32_t k, uint32_t seed) {
  return pack_reference::random_matrix(PackedFormat::mxfp4, 48, k, seed);
}

/// Weights of one code and one scale.
Matrix uniform_weights(uint32_t k, uint32_t code, uint8_t e8m0) {
  Matrix m = random_weights(k, 1);
  std::fill(m.codes.begin(), m.codes.end(), code);
  std::fill(m.e8m0.begin(), m.e8m0.end(), e8m0);
  return m;
}

/// y[num_tokens, rows], row groups in calls of `groups_per_call`.
std::vector<float> multiply(const Table& table, const Matrix& m, const bf16_t* x,
                            uint32_t num_tokens, uint32_t groups_per_call = 1000) {
  const Aligned packed(m.rows / 16 * row_group_bytes(m.format, m.k));
  pack_reference::pack(m, packed.bytes());
  const Aligned prepared(table.kernels->prepared_bytes(kFormat, num_tokens, m.k));
  table.kernels->prepare(kFormat, {x, m.k, nullptr, num_tokens, m.k, m.k, prepared.bytes()});
  std::vector<float> y(size_t{num_tokens} * m.rows, NAN);
  for (uint32_t group = 0; group < m.rows / 16; group += groups_per_call) {
    const uint32_t count = std::min(groups_per_call, m.rows / 16 - group);
    table.kernels->gemm(kFormat, {packed.bytes() + group * row_group_bytes(m.format, m.k), count,
                                  m.k, prepared.bytes(), num_tokens, y.data() + group * 16, m.rows});
  }
  return y;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size() * sizeof(float));
}

std::vector<double> rounded(const std::vector<bf16_t>& x) {
  std::vector<double> values;
  for (const bf16_t value : x) values.push_back(bf16_to_f32(value));
  for (size_t i = 0; i < values.size(); i += 32)
    round_to_int8(std::span<double, 32>(values.data() + i, 32));
  return values;
}

struct Reference {
  std::vector<double> y;
  std::vector<double> bound;     ///< of the kernels' own roundings
  std::vector<double> exact;     ///< with the activations as they are
  std::vector<double> int8_cost; ///< how far y may be from `exact`
};

/// Two roundings per block, of its term and of the running sum: with n blocks at most (n + 1) u sum |terms|. Rounding
/// an activation to INT8 moves it by half a step of its block, max / 127, and by the FP32 roundings on the way.
Reference reference(const Matrix& m, const std::vector<bf16_t>& x, uint32_t num_tokens) {
  const std::vector<double> q = rounded(x);
  const double u = 0x1p-24, n = m.k / 32.0 + 2;
  Reference ref;
  for (uint32_t t = 0; t < num_tokens; ++t)
    for (uint32_t row = 0; row < m.rows; ++row) {
      double y = 0, exact = 0, magnitude = 0, cost = 0;
      for (uint32_t first = 0; first < m.k; first += 32) {
        double term = 0, amax = 0, weights = 0;
        for (uint32_t k = first; k < first + 32; ++k) {
          const double w = double{m.value(row, k)} * m.scale(row, k), a = bf16_to_f32(x[size_t{t} * m.k + k]);
          term += w * q[size_t{t} * m.k + k];
          exact += w * a;
          amax = std::max(amax, std::abs(a));
          weights += std::abs(w);
        }
        y += term;
        magnitude += std::abs(term);
        cost += weights * amax / 127 * (0.5 + 0x1p-14);
      }
      ref.y.push_back(y);
      ref.bound.push_back(n * u / (1 - n * u) * magnitude + 0x1p-149);
      ref.exact.push_back(exact);
      ref.int8_cost.push_back(cost);
    }
  return ref;
}

/// Largest error over its bound; NaN counts as infinite.
template <typename T>
double worst(const std::vector<T>& y, const std::vector<double>& expected, const std::vector<double>& bound) {
  double result = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    const double error = std::abs(y[i] - expected[i]) / bound[i];
    result = std::isnan(error) ? INFINITY : std::max(result, error);
  }
  return result;
}

std::string where(const Table& table, uint32_t k, uint32_t num_tokens) {
  return table.name + " k " + std::to_string(k) + " tokens " + std::to_string(num_tokens);
}

}  // namespace

TEST_CASE("products stay within the rounding bound of their definition; wrong weights or steps of one do not") {
  for (const uint32_t k : kLengths) {
    const Matrix m = random_weights(k, 7 + k);
    const std::vector<bf16_t> x = random_tokens(17, k, k);
    const Reference ref = reference(m, x, 17);
    CHECK(worst(ref.y, ref.exact, ref.int8_cost) <= 1.0);
    CHECK(worst(ref.y, ref.exact, ref.int8_cost) > 0.01);  // INT8 has its cost
    Matrix swapped = m;  // the halves of row 5's first block
    std::swap_ranges(swapped.codes.begin() + 5 * k, swapped.codes.begin() + 5 * k + 16,
                     swapped.codes.begin() + 5 * k + 16);
    Matrix rescaled = m;
    rescaled.e8m0[5 * (k / 32)] ^= 1;
    std::vector<bf16_t> moved = x;  // by one step of its block
    double amax = 0;
    for (uint32_t i = 0; i < 32; ++i) amax = std::max(amax, std::abs(double{bf16_to_f32(x[i])}));
    const double third = bf16_to_f32(x[3]);
    moved[3] = f32_to_bf16(static_cast<float>(third - std::copysign(1.1 * amax / 127, third)));
    for (const Table& table : kernel_tables::runnable_int8()) {
      const double error = worst(multiply(table, m, x.data(), 17), ref.y, ref.bound);
      if (!(error <= 1.0))
        check::report(__FILE__, __LINE__, where(table, k, 17) + " error / bound " + std::to_string(error));
      CHECK(error <= 1.0);
      CHECK(worst(multiply(table, swapped, x.data(), 17), ref.y, ref.bound) > 1.0);
      CHECK(worst(multiply(table, rescaled, x.data(), 17), ref.y, ref.bound) > 1.0);
      CHECK(worst(multiply(table, m, moved.data(), 17), ref.y, ref.bound) > 1.0);
    }
  }
}

TEST_CASE("every instruction set gives the same bits, for any number of tokens and any split of the rows") {
  const std::vector<Table> tables = kernel_tables::runnable_int8();
  for (const uint32_t k : kLengths) {
    const Matrix m = random_weights(k, 3 + k);
    const std::vector<bf16_t> x = random_tokens(64, k, 5);
    const std::vector<float> all = multiply(tables[0], m, x.data(), 64);
    for (const Table& table : tables)
      for (const uint32_t num_tokens : kTokenCounts) {
        const uint32_t first = 64 - num_tokens;  // another place in the batch than in `all`
        const std::vector<float> some = multiply(table, m, x.data() + size_t{first} * k, num_tokens, 1);
        const std::vector<float> expected(all.begin() + size_t{first} * m.rows, all.end());
        if (!same_bits(some, expected))
          check::report(__FILE__, __LINE__, where(table, k, num_tokens) + ": bits differ");
        CHECK(same_bits(some, expected));
      }
    // The comparison sees the largest activation of one block grow by one unit.
    std::vector<bf16_t> changed(x.begin(), x.begin() + k);
    const auto magnitude = [](bf16_t a, bf16_t b) { return (a & 0x7fff) < (b & 0x7fff); };
    *std::max_element(changed.begin(), changed.begin() + 32, magnitude) += 1;
    const std::vector<float> first(all.begin(), all.begin() + m.rows);
    CHECK(!same_bits(multiply(tables.back(), m, changed.data(), 1), first));
  }
}

TEST_CASE("blocks of 512 tokens") {
  const Matrix m = random_weights(64, 1);
  const std::vector<bf16_t> x = random_tokens(512, 64, 2);
  for (const Table& table : kernel_tables::runnable_int8()) {
    const std::vector<float> all = multiply(table, m, x.data(), 512);
    for (uint32_t t = 0; t < 512; t += 37)
      CHECK(!std::memcmp(multiply(table, m, x.data() + t * 64, 1).data(), all.data() + t * m.rows, m.rows * 4));
  }
}

// Largest weights times largest activations, in all combinations of signs that could add up: sums of 16 bits that
// saturated or overflowed would show. max |x| = 127 makes every step a whole number, so results are exact.
TEST_CASE("the largest weights and activations do not saturate") {
  const uint32_t k = 160;
  for (const Table& table : kernel_tables::runnable_int8())
    for (const uint32_t pattern : {0x0000u, 0xffffu, 0x5555u, 0x3333u, 0x0f0fu, 0x00ffu, 0x1234u}) {
      const auto is_negative = [&](uint32_t i) { return (pattern >> (i % 16) & 1) != 0; };
      Matrix m = uniform_weights(k, 7, 127);
      for (uint32_t row = 0; row < m.rows; ++row)  // rows 0, 3, 6, …: as the activations; 1, 4, …: against them
        for (uint32_t i = 0; i < k; ++i)
          m.codes[row * k + i] = row % 3 == 2 ? 7 : (is_negative(i) != (row % 3 == 1)) ? 15 : 7;
      std::vector<bf16_t> x(9 * k);
      for (uint32_t i = 0; i < x.size(); ++i) x[i] = f32_to_bf16(is_negative(i % k) ? -127.0f : 127.0f);
      const std::vector<float> y = multiply(table, m, x.data(), 9);
      float mixed = 0;
      for (uint32_t i = 0; i < k; ++i) mixed += is_negative(i) ? -6.0f * 127 : 6.0f * 127;
      for (uint32_t i = 0; i < y.size(); ++i) {
        const uint32_t row = i % m.rows;
        CHECK_EQ(y[i], row % 3 == 2 ? mixed : (row % 3 ? -1.0f : 1.0f) * 6 * 127 * k);
      }
    }
}

TEST_CASE("whole numbers come through exactly, for every code and the smallest and largest scales") {
  const uint32_t k = 64;
  for (const Table& table : kernel_tables::runnable_int8())
    for (const uint8_t e8m0 : {0, 1, 127, 200, 240}) {
      Matrix m = random_weights(k, 9);
      for (uint32_t i = 0; i < m.codes.size(); ++i) m.codes[i] = (i % k + i / k) % 16;
      std::fill(m.e8m0.begin(), m.e8m0.end(), e8m0);
      std::vector<bf16_t> x(7 * k);
      for (uint32_t i = 0; i < x.size(); ++i)
        x[i] = f32_to_bf16(i % 32 == 5 ? 127.0f : static_cast<float>(static_cast<int>(i * 37 % 255) - 127));
      const std::vector<float> y = multiply(table, m, x.data(), 7);
      uint32_t num_wrong = 0;
      for (uint32_t t = 0; t < 7; ++t)
        for (uint32_t row = 0; row < m.rows; ++row) {
          double sum = 0;
          for (uint32_t i = 0; i < k; ++i) sum += m.value(row, i) * bf16_to_f32(x[t * k + i]);
          num_wrong += y[t * m.rows + row] != std::ldexp(sum, int{e8m0} - 127);
        }
      CHECK_EQ(num_wrong, 0u);
    }
}

// Token i is one-hot beside the block's largest, so its results are q[i] and 127 times a weight.
TEST_CASE("activations round to nearest even") {
  struct Case {
    float x, q;
  };
  const Case cases[] = {{0.5f, 0}, {1.5f, 2}, {2.5f, 2}, {-0.5f, 0}, {-1.5f, -2}, {-2.5f, -2}, {3.25f, 3},
                        {-3.75f, -4}, {63.5f, 64}, {64.5f, 64}, {126.5f, 126}, {0.498046875f, 0}, {0.50390625f, 1}};
  const Matrix m = uniform_weights(32, 2, 127);  // 1.0
  for (const Table& table : kernel_tables::runnable_int8())
    for (const Case& c : cases) {
      std::vector<bf16_t> x(32);
      x[30] = f32_to_bf16(-127.0f);
      x[9] = f32_to_bf16(c.x);
      CHECK_EQ(multiply(table, m, x.data(), 1)[0], c.q - 127);
    }
}

TEST_CASE("zeros and tiny activations give zeros; a block that is not finite makes its token NaN and no other") {
  const uint32_t k = 160, num_tokens = 7;
  const Matrix m = random_weights(k, 4);
  for (const Table& table : kernel_tables::runnable_int8()) {
    for (const float value : {0.0f, -0.0f, 0x1p-126f, -0x1p-133f, 0x1.fep-101f}) {
      const std::vector<bf16_t> tiny(k, f32_to_bf16(value));
      for (const float y : multiply(table, m, tiny.data(), 1)) CHECK_EQ(y, 0.0f);
    }
    const std::vector<bf16_t> small(k, f32_to_bf16(0x1p-100f));
    CHECK(multiply(table, m, small.data(), 1)[0] != 0.0f);

    const std::vector<bf16_t> x = random_tokens(num_tokens, k, 6);
    const std::vector<float> clean = multiply(table, m, x.data(), num_tokens);
    for (const float poison : {INFINITY, -INFINITY, NAN})
      for (const uint32_t place : {0u, 37u, 159u}) {
        std::vector<bf16_t> poisoned = x;
        poisoned[2 * k + place] = f32_to_bf16(poison);
        const std::vector<float> y = multiply(table, m, poisoned.data(), num_tokens);
        for (uint32_t t = 0; t < num_tokens; ++t)
          for (uint32_t row = 0; row < m.rows; ++row) {
            const size_t i = t * m.rows + row;
            CHECK(t == 2 ? std::isnan(y[i]) : y[i] == clean[i]);
          }
      }
  }
}

TEST_CASE("prepare gathers rows, obeys the stride, pads with zeros and writes nothing behind its bytes") {
  const uint32_t k = 96, stride = 103;
  const Matrix m = pack_reference::random_matrix(PackedFormat::mxfp4, 16, k, 4);
  const std::vector<bf16_t> pool = random_tokens(9, stride, 6);
  const std::vector<uint32_t> row_ids = {8, 0, 0, 5, 3, 7, 1};
  for (const Table& table : kernel_tables::runnable_int8())
    for (const uint32_t k_valid : {5u, 32u, 70u, 95u, 96u}) {
      std::vector<bf16_t> dense(row_ids.size() * k, 0);
      for (size_t i = 0; i < row_ids.size(); ++i)
        std::copy_n(pool.begin() + row_ids[i] * stride, k_valid, dense.begin() + i * k);
      const std::vector<float> expected = multiply(table, m, dense.data(), 7);
      const uint64_t bytes = table.kernels->prepared_bytes(kFormat, 7, k);
      const Aligned packed(row_group_bytes(PackedFormat::mxfp4, k)), prepared(bytes + 64);
      pack_reference::pack(m, packed.bytes());
      table.kernels->prepare(kFormat,
                             {pool.data(), stride, row_ids.data(), 7, k_valid, k, prepared.bytes()});
      for (uint32_t i = 0; i < 64; ++i) CHECK_EQ(int{prepared.bytes()[bytes + i]}, 0xff);
      std::vector<float> y(7 * 20, -1.0f);  // y_stride 20: the gap stays untouched
      table.kernels->gemm(kFormat, {packed.bytes(), 1, k, prepared.bytes(), 7, y.data(), 20});
      for (size_t t = 0; t < 7; ++t) {
        CHECK(!std::memcmp(&y[t * 20], &expected[t * 16], 64));
        CHECK_EQ(y[t * 20 + 16], -1.0f);
      }
    }
}

TEST_CASE("other formats are the exact kernels, and exact MXFP4 products are others than these") {
  for (const Table& table : kernel_tables::runnable_int8()) {
    CHECK_EQ(table.exact->name, table.kernels->name);
    for (int code = 0; code < 4; ++code) {
      const auto format = static_cast<PackedFormat>(code);
      const Matrix m = pack_reference::random_matrix(format, 16, 96, 2);
      const std::vector<bf16_t> x = random_tokens(3, 96, 1);
      const Aligned packed(row_group_bytes(format, 96));
      pack_reference::pack(m, packed.bytes());
      std::array<std::vector<float>, 2> y;
      for (const bool is_int8 : {false, true}) {
        const cpu::Kernels& kernels = *(is_int8 ? table.kernels : table.exact);
        const Aligned prepared(kernels.prepared_bytes(code, 3, 96));
        kernels.prepare(code, {x.data(), 96, nullptr, 3, 96, 96, prepared.bytes()});
        y[is_int8].resize(3 * 16);
        kernels.gemm(code, {packed.bytes(), 1, 96, prepared.bytes(), 3, y[is_int8].data(), 16});
      }
      CHECK_EQ(same_bits(y[0], y[1]), format != PackedFormat::mxfp4);
    }
  }
}

CHECK_MAIN()
