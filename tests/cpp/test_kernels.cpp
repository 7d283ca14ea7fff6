// Matrix products of every instruction set against float64, and against themselves for every batch
// and split.
#include <algorithm>
#include <cmath>

#include "check.h"
#include "kernel_tables.h"
#include "pack_reference.h"

using namespace mimo_rt;
using kernel_tables::Aligned;
using kernel_tables::Table;
using pack_reference::Matrix;

namespace {

constexpr PackedFormat kFormats[] = {PackedFormat::mxfp4, PackedFormat::fp8_e4m3,
                                     PackedFormat::bf16, PackedFormat::f32};
constexpr uint32_t kTokenCounts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 17, 64};
constexpr uint32_t kLengths[] = {32, 96, 576, 2048};

std::vector<bf16_t> random_tokens(uint32_t num_tokens, uint32_t k, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<bf16_t> x(size_t{num_tokens} * k);
  for (bf16_t& value : x) value = f32_to_bf16(normal(rng));
  return x;
}

/// y[num_tokens, rows], row groups in calls of `groups_per_call`.
std::vector<float> multiply(const Table& table, const Matrix& m, const bf16_t* x,
                            uint32_t num_tokens, uint32_t groups_per_call = 1000) {
  const int format = static_cast<int>(m.format);
  const Aligned packed(m.rows / 16 * row_group_bytes(m.format, m.k));
  pack_reference::pack(m, packed.bytes());
  const Aligned prepared(table.kernels->prepared_bytes(format, num_tokens, m.k));
  table.kernels->prepare(format, {x, m.k, nullptr, num_tokens, m.k, m.k, prepared.bytes()});
  std::vector<float> y(size_t{num_tokens} * m.rows, NAN);
  for (uint32_t group = 0; group < m.rows / 16; group += groups_per_call) {
    const uint32_t count = std::min(groups_per_call, m.rows / 16 - group);
    table.kernels->gemm(format, {packed.bytes() + group * row_group_bytes(m.format, m.k), count,
                                 m.k, prepared.bytes(), num_tokens, y.data() + group * 16, m.rows});
  }
  return y;
}

struct Reference {
  std::vector<double> y, bound;
};

/// The bound counts roundings of one row: a block of 32 k has at most 32 products and 32 additions
/// (FMA and vdpbf16ps need fewer), its scale and its addition to the running sum two more, the
/// final sum of classes one. With n roundings in any path the error is at most n u / (1 - n u)
/// times the sum of |products|. 2^-126 covers flushed subnormals. Digits (avx2/mxfp4_units.h) need no
/// more: at most 34 roundings within a block and two per block after it.
Reference reference(const Matrix& m, const std::vector<bf16_t>& x, uint32_t num_tokens) {
  const double n = 65.0 + 2.0 * (m.k / 32.0), u = 0x1p-24;
  Reference ref;
  for (uint32_t t = 0; t < num_tokens; ++t)
    for (uint32_t row = 0; row < m.rows; ++row) {
      double y = 0, magnitude = 0;
      for (uint32_t k = 0; k < m.k; ++k) {
        const double p =
            double{m.value(row, k)} * m.scale(row, k) * bf16_to_f32(x[size_t{t} * m.k + k]);
        y += p;
        magnitude += std::abs(p);
      }
      ref.y.push_back(y);
      ref.bound.push_back(n * u / (1 - n * u) * magnitude + m.k * 0x1p-126);
    }
  return ref;
}

/// Largest error over its bound; NaN counts as infinite.
double worst(const std::vector<float>& y, const Reference& ref) {
  double result = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    const double error = std::abs(y[i] - ref.y[i]) / ref.bound[i];
    result = std::isnan(error) ? INFINITY : std::max(result, error);
  }
  return result;
}

std::string where(const Table& table, PackedFormat format, uint32_t k, uint32_t num_tokens) {
  return table.name + " format " + std::to_string(static_cast<int>(format)) + " k " +
         std::to_string(k) + " tokens " + std::to_string(num_tokens);
}

}  // namespace

TEST_CASE(
    "products stay within the rounding bound of float64; a wrong scale or a swapped block does "
    "not") {
  for (const PackedFormat format : kFormats)
    for (const uint32_t k : kLengths) {
      const Matrix m = pack_reference::random_matrix(format, 48, k, 7 + k);
      const std::vector<bf16_t> x = random_tokens(17, k, k);
      const Reference ref = reference(m, x, 17);
      Matrix swapped = m;  // blocks 0 and 1 of row 5, or the halves of the only block
      const uint32_t half = k > 32 ? 32 : 16;
      std::swap_ranges(swapped.codes.begin() + 5 * k, swapped.codes.begin() + 5 * k + half,
                       swapped.codes.begin() + 5 * k + half);
      Matrix rescaled = m;
      if (!rescaled.e8m0.empty()) rescaled.e8m0[5 * (k / 32)] ^= 1;
      if (!rescaled.tile_scale.empty()) rescaled.tile_scale[5] *= 1.001f;
      for (const Table& table : kernel_tables::runnable()) {
        const double error = worst(multiply(table, m, x.data(), 17), ref);
        if (!(error <= 1.0))
          check::report(__FILE__, __LINE__,
                        where(table, format, k, 17) + " error / bound " + std::to_string(error));
        CHECK(error <= 1.0);
        CHECK(worst(multiply(table, swapped, x.data(), 17), ref) > 1.0);
        const bool has_scale = !m.e8m0.empty() || !m.tile_scale.empty();
        if (has_scale) CHECK(worst(multiply(table, rescaled, x.data(), 17), ref) > 1.0);
      }
    }
}

TEST_CASE("a token's result has the same bits for any number of tokens and any split of the rows") {
  for (const Table& table : kernel_tables::runnable())
    for (const PackedFormat format : kFormats)
      for (const uint32_t k : kLengths) {
        const Matrix m = pack_reference::random_matrix(format, 48, k, 3 + k);
        const std::vector<bf16_t> x = random_tokens(64, k, 5);
        const std::vector<float> all = multiply(table, m, x.data(), 64);
        for (const uint32_t num_tokens : kTokenCounts) {
          const uint32_t first = 64 - num_tokens;  // another place in the batch than in `all`
          const std::vector<float> some =
              multiply(table, m, x.data() + size_t{first} * k, num_tokens, 1);
          const bool equal =
              !std::memcmp(some.data(), all.data() + size_t{first} * m.rows, some.size() * 4);
          if (!equal)
            check::report(__FILE__, __LINE__,
                          where(table, format, k, num_tokens) + ": bits differ");
          CHECK(equal);
        }
        // The comparison sees one bit of one activation.
        std::vector<bf16_t> changed(x.begin(), x.begin() + k);
        changed[k / 2] ^= 1;
        CHECK(std::memcmp(multiply(table, m, changed.data(), 1).data(), all.data(),
                          size_t{m.rows} * 4) != 0);
      }
}

TEST_CASE("blocks of 512 tokens") {
  for (const Table& table : kernel_tables::runnable()) {
    const Matrix m = pack_reference::random_matrix(PackedFormat::mxfp4, 16, 64, 1);
    const std::vector<bf16_t> x = random_tokens(512, 64, 2);
    const std::vector<float> all = multiply(table, m, x.data(), 512);
    for (uint32_t t = 0; t < 512; t += 37)
      CHECK(!std::memcmp(multiply(table, m, x.data() + t * 64, 1).data(), all.data() + t * 16, 64));
  }
}

// Activations over 120 binades: in one block, some vanish beside others, and no 24-bit window holds
// all of them. 70 tokens: of few, of many, and more than a list of rests of theirs
// (avx2/mxfp4_units.h).
TEST_CASE("activations of all magnitudes stay within the bound, with the same bits in any batch") {
  for (const PackedFormat format : kFormats) {
    const uint32_t k = 576, num_tokens = 70;
    const Matrix m = pack_reference::random_matrix(format, 48, k, 21);
    std::mt19937 rng(5);
    std::vector<bf16_t> x(num_tokens * k);
    for (bf16_t& value : x)
      value = static_cast<bf16_t>((67 + rng() % 120) << 7 | (rng() & 0x807f));
    const Reference ref = reference(m, x, num_tokens);
    std::vector<bf16_t> cut = x;  // the largest activation of token 3 without its last bit
    const auto magnitude = [](bf16_t a, bf16_t b) { return (a & 0x7fff) < (b & 0x7fff); };
    *std::max_element(cut.begin() + 3 * k, cut.begin() + 4 * k, magnitude) ^= 1;
    for (const Table& table : kernel_tables::runnable()) {
      const std::vector<float> all = multiply(table, m, x.data(), num_tokens);
      CHECK(worst(all, ref) <= 1.0);
      CHECK(worst(multiply(table, m, cut.data(), num_tokens), ref) > 1.0);
      for (uint32_t t = 0; t < num_tokens; ++t)
        CHECK(!std::memcmp(multiply(table, m, x.data() + t * k, 1).data(), &all[t * m.rows],
                           m.rows * 4));
    }
  }
}

// Largest weights times activations whose digits (avx2/mxfp4_units.h) are largest, in combinations of signs that add
// up: a sum of 16 bits that saturated or wrapped would show. All sums have at most 24 bits, so every order gives the
// same.
TEST_CASE("the largest weights times the extremes of 16 bits below the largest activation are exact") {
  constexpr uint32_t k = 64, num_tokens = 9;
  // The block's first activation, and the others: digits 127, 0 and 127, -128; 64, -64; then 1, -128 and 0, 127.
  constexpr bf16_t kActivations[][2] = {
      {0x3ffe, 0x3ffe}, {0x3ffd, 0x3ffd}, {0x3fff, 0x3fff}, {0x3ffe, 0x3c00}, {0x3ffe, 0x3bfe}};
  Matrix m = pack_reference::random_matrix(PackedFormat::mxfp4, 48, k, 1);
  std::fill(m.e8m0.begin(), m.e8m0.end(), uint8_t{127});
  for (const uint32_t pattern : {0x0000u, 0xffffu, 0x5555u, 0x3333u, 0x0f0fu, 0x00ffu, 0x1234u})
    for (const auto& [first, other] : kActivations) {
      const auto is_negative = [&](uint32_t i) { return (pattern >> (i % 16) & 1) != 0; };
      for (uint32_t row = 0; row < m.rows; ++row)  // 0, 3, 6, …: signs of the activations; 1, 4, …: the opposite
        for (uint32_t i = 0; i < k; ++i)
          m.codes[row * k + i] = row % 3 == 2 ? 7 : (is_negative(i) != (row % 3 == 1)) ? 15 : 7;
      std::vector<bf16_t> x(num_tokens * k);
      for (uint32_t i = 0; i < x.size(); ++i)
        x[i] = static_cast<bf16_t>((i % 32 ? other : first) | (is_negative(i % k) ? 0x8000 : 0));
      const Reference ref = reference(m, x, num_tokens);
      for (const Table& table : kernel_tables::runnable())
        for (const uint32_t count : {1u, num_tokens}) {
          const std::vector<float> y = multiply(table, m, x.data(), count);
          for (uint32_t i = 0; i < y.size(); ++i) CHECK_EQ(double{y[i]}, ref.y[i]);
        }
    }
}

// Token t has t % 32 activations with a rest in its first block, at other places than its neighbours. Three rows
// have the smallest scales, half of which is a subnormal.
TEST_CASE("any number of activations of a block may have more than 16 bits") {
  constexpr uint32_t k = 64, num_tokens = 70;
  Matrix m = pack_reference::random_matrix(PackedFormat::mxfp4, 48, k, 2);
  for (const uint32_t row : {0u, 2u, 9u})
    for (uint32_t block = 0; block < k / 32; ++block) m.e8m0[row * (k / 32) + block] = row == 2;
  std::vector<bf16_t> x(num_tokens * k, 0x4040);
  for (uint32_t t = 0; t < num_tokens; ++t)
    for (uint32_t i = 0; i < t % 32; ++i) x[t * k + 1 + (5 * i + t) % 31] = static_cast<bf16_t>(0x3921 + i);
  const Reference ref = reference(m, x, num_tokens);
  for (const Table& table : kernel_tables::runnable()) {
    const std::vector<float> all = multiply(table, m, x.data(), num_tokens);
    CHECK(worst(all, ref) <= 1.0);
    for (uint32_t t = 0; t < num_tokens; ++t)
      CHECK(!std::memcmp(multiply(table, m, x.data() + t * k, 1).data(), &all[t * m.rows], m.rows * 4));
  }
}

TEST_CASE("infinities and NaN reach all results of their token and no other's") {
  for (const Table& table : kernel_tables::runnable())
    for (const PackedFormat format : kFormats)
      for (const bf16_t bad : {0x7f80, 0xff80, 0x7fc0}) {
        const uint32_t k = 96;
        const Matrix m = pack_reference::random_matrix(format, 16, k, 13);
        std::vector<bf16_t> x = random_tokens(12, k, 14);
        x[k + 37] = bad;
        for (const uint32_t num_tokens : {3u, 12u}) {
          const std::vector<float> y = multiply(table, m, x.data(), num_tokens);
          for (uint32_t i = 0; i < y.size(); ++i) CHECK_EQ(std::isfinite(y[i]), i / 16 != 1);
        }
      }
}

// Token k is one-hot at k, so its result is the weight times one activation; the scale is a power
// of two: equality.
TEST_CASE("every code of every format is exact, with the smallest and a large E8M0 scale") {
  for (const Table& table : kernel_tables::runnable())
    for (const PackedFormat format : kFormats)
      for (const uint8_t e8m0 : {0, 1, 127, 200})
        for (const bf16_t one : {0x3f80, 0x0001, 0x00ff, 0x6fff}) {
          if (table.flushes && one < 0x3f80) continue;
          const uint32_t k = 256;
          Matrix m = pack_reference::random_matrix(format, 16, k, 9);
          for (uint32_t i = 0; i < 16 * k; ++i) {
            if (format == PackedFormat::mxfp4) m.codes[i] = (i % k + i / k) % 16;
            if (format == PackedFormat::fp8_e4m3) m.codes[i] = (i % 128 == 127) ? 0 : i % k;
          }
          for (uint8_t& scale : m.e8m0) scale = e8m0;
          for (float& scale : m.tile_scale) scale = 0.25f;
          std::vector<bf16_t> x(size_t{k} * k);
          for (uint32_t i = 0; i < k; ++i) x[size_t{i} * k + i] = one;
          const std::vector<float> y = multiply(table, m, x.data(), k);
          uint32_t num_wrong = 0;
          for (uint32_t t = 0; t < k; ++t)
            for (uint32_t row = 0; row < 16; ++row)
              num_wrong += !(y[t * 16 + row] ==
                             m.value(row, t) * bf16_to_f32(one) * m.scale(row, t));
          CHECK_EQ(num_wrong, 0u);
        }
}

TEST_CASE("prepare gathers rows, obeys the stride, pads with zeros and writes nothing behind its bytes") {
  for (const Table& table : kernel_tables::runnable())
    for (const PackedFormat format : kFormats)
      for (const uint32_t k_valid : {70u, 95u, 96u}) {
        const int code = static_cast<int>(format);
        const uint32_t k = 96, stride = 103;
        const Matrix m = pack_reference::random_matrix(format, 16, k, 4);
        const std::vector<bf16_t> pool = random_tokens(9, stride, 6);
        const std::vector<uint32_t> row_ids = {8, 0, 0, 5, 3, 7, 1, 2, 8, 6, 4};
        std::vector<bf16_t> dense(row_ids.size() * k, 0);
        for (size_t i = 0; i < row_ids.size(); ++i)
          std::copy_n(pool.begin() + row_ids[i] * stride, k_valid, dense.begin() + i * k);
        const Aligned packed(row_group_bytes(format, k));
        pack_reference::pack(m, packed.bytes());
        for (const uint32_t num_tokens : {7u, 11u}) {
          const std::vector<float> expected = multiply(table, m, dense.data(), num_tokens);
          const uint64_t num_bytes = table.kernels->prepared_bytes(code, num_tokens, k);
          const Aligned prepared(num_bytes);
          table.kernels->prepare(
              code, {pool.data(), stride, row_ids.data(), num_tokens, k_valid, k, prepared.bytes()});
          const uint8_t* behind = prepared.bytes() + num_bytes;  // still as Aligned left it
          CHECK(std::all_of(behind, behind + 64, [](uint8_t byte) { return byte == 0xff; }));
          std::vector<float> y(num_tokens * 20, -1.0f);  // y_stride 20: the gap stays untouched
          table.kernels->gemm(code, {packed.bytes(), 1, k, prepared.bytes(), num_tokens, y.data(), 20});
          for (size_t t = 0; t < num_tokens; ++t) {
            CHECK(!std::memcmp(&y[t * 20], &expected[t * 16], 64));
            CHECK_EQ(y[t * 20 + 16], -1.0f);
          }
        }
      }
}

#if defined(MIMO_RT_HAVE_SIMDE)
namespace {

const Table kAvx512 = {"avx512", cpu::kernels_avx512_emulated()};
const Table kAvx512Bf16 = {"avx512 with BF16", cpu::kernels_avx512_bf16_emulated()};

/// The words of avx512/gemm.h for rows `row_ids` of x, one by one.
std::vector<uint32_t> prepared_words(bool has_bf16, PackedFormat format,
                                     const std::vector<bf16_t>& x, uint32_t stride,
                                     const std::vector<uint32_t>& row_ids, uint32_t k_valid,
                                     uint32_t k) {
  const bool is_f32 = format == PackedFormat::f32, is_mxfp4 = format == PackedFormat::mxfp4;
  const uint32_t num_tokens = static_cast<uint32_t>(row_ids.size());
  const uint32_t classes = format == PackedFormat::fp8_e4m3 ? 2 : 1;
  std::vector<uint32_t> words(size_t{num_tokens} * (is_f32 || !has_bf16 ? k : k / 2));
  uint32_t* out = words.data();
  for (uint32_t first = 0, width; first < num_tokens; first += width) {
    width = std::min(num_tokens - first, 8u);
    for (uint32_t t = 0; t < width; ++t) {
      const auto element = [&](uint32_t i) -> uint32_t {
        return i < k_valid ? x[size_t{row_ids[first + t]} * stride + i] : 0;
      };
      const auto put = [&](uint32_t step, uint32_t c, uint32_t word) {
        out[(step * width + t) * classes + c] = word;
      };
      for (uint32_t i = 0; is_f32 && i < k; ++i) put(i, 0, element(i) << 16);
      for (uint32_t pair = 0; !is_f32 && pair < k / 2; ++pair) {
        const uint32_t starts[] = {0, 4, 1, 5};  // of the pairs (k, k + 2) of 8 k
        const uint32_t even = is_mxfp4 ? pair / 4 * 8 + starts[pair % 4] : 2 * pair;
        const uint32_t odd = even + (is_mxfp4 ? 2 : 1);
        const uint32_t step = pair / classes, c = pair % classes;
        if (has_bf16) {
          put(step, c, element(even) | element(odd) << 16);
        } else {
          put(2 * step, c, element(odd) << 16);
          put(2 * step + 1, c, element(even) << 16);
        }
      }
    }
    out += size_t{width} * words.size() / num_tokens;
  }
  return words;
}

}  // namespace

TEST_CASE("AVX-512 with BF16 and without give the same bits, but for subnormals") {
  for (const PackedFormat format : kFormats)
    for (const uint32_t k : kLengths) {
      const Matrix m = pack_reference::random_matrix(format, 48, k, 11 + k);
      std::vector<bf16_t> x = random_tokens(9, k, k);
      const auto same = [&] {
        const std::vector<float> plain = multiply(kAvx512, m, x.data(), 9);
        return !std::memcmp(plain.data(), multiply(kAvx512Bf16, m, x.data(), 9).data(),
                            plain.size() * 4);
      };
      CHECK(same());
      for (bf16_t& value : x) value &= 0x807f;  // only vdpbf16ps flushes these
      CHECK_EQ(same(), format == PackedFormat::f32);
    }
}

TEST_CASE("AVX-512 prepares the words that its products read, and nothing behind them") {
  const uint32_t k = 160, stride = 167;
  const std::vector<bf16_t> x = random_tokens(20, stride, 8);
  for (const bool has_bf16 : {false, true})
    for (const PackedFormat format : kFormats)
      for (const uint32_t num_tokens : {1u, 2u, 3u, 7u, 8u, 9u, 17u})
        for (const uint32_t k_valid : {160u, 159u, 129u, 128u, 97u, 5u}) {
          std::vector<uint32_t> row_ids(num_tokens);
          for (uint32_t t = 0; t < num_tokens; ++t) row_ids[t] = t * 7 % 20;
          const cpu::Kernels& kernels = *(has_bf16 ? kAvx512Bf16 : kAvx512).kernels;
          const int code = static_cast<int>(format);
          std::vector<uint32_t> expected =
              prepared_words(has_bf16, format, x, stride, row_ids, k_valid, k);
          CHECK_EQ(kernels.prepared_bytes(code, num_tokens, k), expected.size() * 4);
          const Aligned prepared(expected.size() * 4);
          kernels.prepare(
              code, {x.data(), stride, row_ids.data(), num_tokens, k_valid, k, prepared.bytes()});
          expected.resize(expected.size() + 16, 0xffffffffu);  // still as Aligned left it
          CHECK(!std::memcmp(prepared.bytes(), expected.data(), expected.size() * 4));
          // The comparison sees one element less.
          const std::vector<uint32_t> shorter =
              prepared_words(has_bf16, format, x, stride, row_ids, k_valid - 1, k);
          CHECK(std::memcmp(prepared.bytes(), shorter.data(), shorter.size() * 4) != 0);
        }
}
#endif

CHECK_MAIN()
