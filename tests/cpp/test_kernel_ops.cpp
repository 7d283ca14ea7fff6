// Attention and the element-wise kernels of every instruction set against float64.
#include <cmath>
#include <random>

#include "check.h"
#include "core/numeric.h"
#include "kernel_tables.h"

using namespace mimo_rt;
using kernel_tables::Aligned;
using kernel_tables::Table;
using mimo_rt::KvSegment;

namespace {

constexpr double kU = 0x1p-24;          // unit roundoff of FP32
constexpr double kRounded = 0x1.01p-8;  // unit roundoff of bf16, and the second order

std::vector<bf16_t> random_bf16(size_t count, uint32_t seed, float size = 1.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<bf16_t> x(count);
  for (bf16_t& value : x) value = f32_to_bf16(normal(rng));
  return x;
}

std::vector<float> random_f32(size_t count, uint32_t seed, float size = 1.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<float> x(count);
  for (float& value : x) value = normal(rng);
  return x;
}

struct Attention {
  uint32_t num_q, qk_dim, v_dim, num_keys;
  bool has_sink;
  std::vector<bf16_t> q, k, v;
  std::vector<float> sink;
  float scale;

  Attention(uint32_t heads, uint32_t qk, uint32_t v_size, uint32_t keys, bool sinks)
      : num_q(heads),
        qk_dim(qk),
        v_dim(v_size),
        num_keys(keys),
        has_sink(sinks),
        q(random_bf16(size_t{heads} * qk, 1, 2.0f)),
        k(random_bf16(size_t{keys} * qk, 2)),
        v(random_bf16(size_t{keys} * v_size, 3)),
        sink(random_f32(heads, 4, 3.0f)),
        scale(1.0f / std::sqrt(static_cast<float>(qk))) {
    // Strong sinks and a heavy last key: leaving one out must show in bf16.
    for (float& logit : sink) logit = 4.0f + std::abs(logit);
    for (size_t i = v.size() - v_size; i < v.size(); ++i)
      v[i] = f32_to_bf16(64.0f * bf16_to_f32(v[i]));
  }
};

/// Keys [0, num_keys) cut at `cuts`.
std::vector<bf16_t> attend(const Table& table, const Attention& a,
                           const std::vector<uint32_t>& cuts = {}, bool with_sink = true) {
  std::vector<KvSegment> segments;
  uint32_t begin = 0;
  std::vector<uint32_t> ends = cuts;
  ends.push_back(a.num_keys);
  for (const uint32_t end : ends) {
    segments.push_back(
        {a.k.data() + size_t{begin} * a.qk_dim, a.v.data() + size_t{begin} * a.v_dim, end - begin});
    begin = end;
  }
  const Aligned scratch(table.kernels->attend_scratch_floats(a.num_q, a.qk_dim, a.v_dim) * 4);
  std::vector<bf16_t> out(size_t{a.num_q} * a.v_dim, 0x7fff);
  const cpu::AttendRow row{a.q.data(), out.data(), a.num_keys};
  table.kernels->attend({&row, 1, a.num_q, a.qk_dim, a.v_dim, a.scale,
                         a.has_sink && with_sink ? a.sink.data() : nullptr, segments.data(),
                         static_cast<uint32_t>(segments.size()), scratch.floats()});
  return out;
}

/// Largest error over its bound. A score is off by at most ds = (qk_dim + 3) u scale sum|q k|, its
/// distance to the maximum by 2 ds + 90 u (arguments below -87 vanish), an exponential by 4 u more;
/// rescaling and adding cost at most 8 u per key in numerator and denominator each. The result is
/// rounded to bf16 once.
double worst_attention(const Attention& a, const std::vector<bf16_t>& out) {
  double worst = 0;
  for (uint32_t h = 0; h < a.num_q; ++h) {
    std::vector<double> s(a.num_keys);
    double max = a.has_sink ? a.sink[h] : -1e300, ds = 0;
    for (uint32_t j = 0; j < a.num_keys; ++j) {
      double magnitude = 0;
      for (uint32_t i = 0; i < a.qk_dim; ++i) {
        const double p =
            double{bf16_to_f32(a.q[h * a.qk_dim + i])} * bf16_to_f32(a.k[size_t{j} * a.qk_dim + i]);
        s[j] += p * a.scale;
        magnitude += std::abs(p) * a.scale;
      }
      max = std::max(max, s[j]);
      ds = std::max(ds, (a.qk_dim + 3) * kU * magnitude);
    }
    double sum = a.has_sink ? std::exp(a.sink[h] - max) : 0.0;
    for (double& x : s) sum += x = std::exp(x - max);
    const double relative = 2 * (2 * ds + 94 * kU + 8 * kU * a.num_keys);
    for (uint32_t i = 0; i < a.v_dim; ++i) {
      double y = 0, magnitude = 0;
      for (uint32_t j = 0; j < a.num_keys; ++j) {
        const double v = bf16_to_f32(a.v[size_t{j} * a.v_dim + i]);
        y += s[j] / sum * v;
        magnitude += s[j] / sum * std::abs(v);
      }
      const double error = std::abs(bf16_to_f32(out[size_t{h} * a.v_dim + i]) - y);
      const double ratio = error / (kRounded * std::abs(y) + relative * magnitude);
      worst = std::isnan(ratio) ? INFINITY : std::max(worst, ratio);
    }
  }
  return worst;
}

std::vector<uint32_t> lengths() { return {1, 7, 8, 16, 17, 33, 576, 2048}; }

}  // namespace

TEST_CASE("attention stays within the bound; a missing key or sink does not") {
  for (const Table& table : kernel_tables::runnable())
    for (const auto& [qk_dim, v_dim] :
         {std::pair{192u, 128u}, {64u, 64u}, {128u, 128u}, {20u, 13u}, {8u, 200u}})
      for (const uint32_t num_q : {1u, 3u, 8u, 16u})
        for (const uint32_t num_keys : {1u, 5u, 16u, 40u, 129u}) {
          const Attention a(num_q, qk_dim, v_dim, num_keys, num_q != 3);
          const double error = worst_attention(a, attend(table, a));
          if (!(error <= 1.0))
            check::report(__FILE__, __LINE__,
                          table.name + " error / bound " + std::to_string(error));
          CHECK(error <= 1.0);
          Attention shorter = a;
          shorter.num_keys = num_keys - 1;
          if (num_keys > 1) CHECK(worst_attention(a, attend(table, shorter)) > 1.0);
          if (a.has_sink) CHECK(worst_attention(a, attend(table, a, {}, false)) > 1.0);
        }
}

TEST_CASE("segment boundaries never change a bit of attention") {
  for (const Table& table : kernel_tables::runnable()) {
    const Attention a(3, 192, 128, 1500, true);
    const std::vector<bf16_t> whole = attend(table, a);
    CHECK(worst_attention(a, whole) <= 1.0);
    CHECK(attend(table, a, {1}) == whole);
    CHECK(attend(table, a, {16, 17, 48, 700, 701, 1499}) == whole);
    Attention rotated = a;  // the order of keys is part of the result
    std::rotate(rotated.k.begin(), rotated.k.begin() + 192 * 100, rotated.k.end());
    CHECK(attend(table, rotated) != whole);
  }
}

TEST_CASE("a token's attention has the same bits alone and beside tokens that see more or fewer keys") {
  constexpr uint32_t kKeys = 150;
  for (const Table& table : kernel_tables::runnable())
    for (const uint32_t num_q : {1u, 2u, 3u}) {
      const std::vector<uint32_t> num_keys = {150, 1, 129, 128, 65, 64, 17, 149};
      const auto num_rows = static_cast<uint32_t>(num_keys.size());
      const Attention all(num_q * num_rows, 64, 48, kKeys, true);
      std::vector<bf16_t> out(size_t{all.num_q} * all.v_dim, 0x7fff);
      std::vector<cpu::AttendRow> rows;
      for (uint32_t r = 0; r < num_rows; ++r)
        rows.push_back({all.q.data() + size_t{r} * num_q * all.qk_dim,
                        out.data() + size_t{r} * num_q * all.v_dim, num_keys[r]});
      const KvSegment segment{all.k.data(), all.v.data(), kKeys};
      const Aligned scratch(
          table.kernels->attend_scratch_floats(all.num_q, all.qk_dim, all.v_dim) * 4);
      table.kernels->attend({rows.data(), num_rows, num_q, all.qk_dim, all.v_dim, all.scale,
                             all.sink.data(), &segment, 1, scratch.floats()});
      for (uint32_t r = 0; r < num_rows; ++r) {
        Attention alone(num_q, 64, 48, kKeys, true);
        alone.q.assign(rows[r].q, rows[r].q + size_t{num_q} * 64);
        alone.sink = all.sink;
        alone.sink.resize(num_q);
        alone.k = all.k;
        alone.v = all.v;
        alone.num_keys = num_keys[r];
        const std::vector<bf16_t> shared(rows[r].out, rows[r].out + size_t{num_q} * 48);
        CHECK(attend(table, alone) == shared);
        if (num_keys[r] == kKeys) continue;
        alone.num_keys = num_keys[r] + 1;  // one key too many must show
        CHECK(attend(table, alone) != shared);
      }
    }
}

TEST_CASE("attention on AVX-512 has the same bits with BF16 products and without") {
  // Random values are far from subnormal, where they may differ. Results are rounded to BF16: this sees other factors,
  // hardly another order.
  std::vector<Table> with, without;
  for (const Table& table : kernel_tables::runnable())
    if (table.name.starts_with("cpu-avx512")) (table.flushes ? with : without).push_back(table);
  for (const Table& table : with)
    for (const auto& [qk_dim, v_dim] : {std::pair{192u, 128u}, {64u, 64u}, {20u, 13u}}) {
      const Attention a(3, qk_dim, v_dim, 129, true);
      CHECK(!without.empty());
      for (const Table& other : without) CHECK(attend(table, a) == attend(other, a));
    }
}

TEST_CASE("attention survives extreme scores and sinks") {
  for (const Table& table : kernel_tables::runnable()) {
    Attention a(2, 64, 64, 50, true);
    for (bf16_t& q : a.q) q = f32_to_bf16(bf16_to_f32(q) * 100.0f);
    a.sink = {-INFINITY, 3000.0f};
    const std::vector<bf16_t> out = attend(table, a);
    for (uint32_t i = 0; i < 64; ++i) {
      CHECK(std::isfinite(bf16_to_f32(out[i])));
      CHECK_EQ(bf16_to_f32(out[64 + i]), 0.0f);  // the sink takes everything
    }
  }
}

TEST_CASE("rms_norm") {
  for (const Table& table : kernel_tables::runnable())
    for (const uint32_t n : lengths()) {
      const std::vector<bf16_t> x = random_bf16(n, n, 3.0f);
      const std::vector<float> weight = random_f32(n, n + 1);
      double squares = 0;
      for (const bf16_t value : x) squares += double{bf16_to_f32(value)} * bf16_to_f32(value);
      for (const float eps : {1e-6f, 0.5f}) {
        std::vector<bf16_t> y(n + 1, 0x1234);
        table.kernels->rms_norm(x.data(), weight.data(), eps, n, y.data());
        double worst = 0, control = 0;
        for (uint32_t i = 0; i < n; ++i) {
          const double r = bf16_to_f32(x[i]) / std::sqrt(squares / n + eps) * weight[i];
          // Half of the sum's n + 3 roundings (square root), then root, division and two products.
          const double bound = (kRounded + ((n + 3) / 2.0 + 5) * kU) * std::abs(r);
          worst = std::max(worst, std::abs(bf16_to_f32(y[i]) - r) / bound);
          control = std::max(control, std::abs(bf16_to_f32(y[i]) - r * 1.01) / bound);
        }
        CHECK(worst <= 1.0);
        CHECK(control > 1.0);
        CHECK_EQ(y[n], 0x1234);
      }
    }
}

TEST_CASE("silu_mul over the whole range of gates") {
  for (const Table& table : kernel_tables::runnable())
    for (const uint32_t n : lengths()) {
      std::vector<float> gate = random_f32(n, n, 8.0f), up = random_f32(n, n + 1);
      const float special[] = {0.0f, -0.0f, -88.0f, 88.0f, -1e4f, 1e4f, -87.0f, 1e-30f};
      for (uint32_t i = 0; i < n && i < 8; ++i) gate[n - 1 - i] = special[i];
      std::vector<bf16_t> y(n + 1, 0x1234);
      table.kernels->silu_mul(gate.data(), up.data(), n, y.data());
      double worst = 0, control = 0;
      for (uint32_t i = 0; i < n; ++i) {
        const double r = gate[i] / (1.0 + std::exp(-double{gate[i]})) * up[i];
        // exp 4 u, sum, division and two products; exp(-87) and below may vanish.
        const double bound =
            (kRounded + 12 * kU) * std::abs(r) + 1e4 * 2e-38 * std::abs(up[i]) + 0x1p-133;
        worst = std::max(worst, std::abs(bf16_to_f32(y[i]) - r) / bound);
        control = std::max(control, std::abs(bf16_to_f32(y[i]) - gate[i] * up[i]) / bound);
      }
      CHECK(worst <= 1.0);
      if (n > 1) CHECK(control > 1.0);
      CHECK_EQ(y[n], 0x1234);
    }
}

TEST_CASE("add_residual rounds once, ties to even; NaN stays NaN") {
  for (const Table& table : kernel_tables::runnable())
    for (const uint32_t n : lengths()) {
      const std::vector<bf16_t> before = random_bf16(n, n);
      std::vector<float> delta = random_f32(n, n + 1);
      delta[0] = n == 7 ? NAN : delta[0];
      if (n > 7) delta[7] = 0x1p-9f * bf16_to_f32(before[7]);  // about half an ulp
      std::vector<bf16_t> residual = before;
      residual.push_back(0x1234);
      table.kernels->add_residual(delta.data(), n, residual.data());
      for (uint32_t i = 0; i < n; ++i)
        CHECK_EQ(residual[i], f32_to_bf16(bf16_to_f32(before[i]) + delta[i]));
      CHECK_EQ(residual[n], 0x1234);
    }
}

TEST_CASE("axpy") {
  for (const Table& table : kernel_tables::runnable())
    for (const uint32_t n : lengths()) {
      const std::vector<float> y = random_f32(n, n), before = random_f32(n, n + 1);
      std::vector<float> acc = before;
      acc.push_back(5.0f);
      table.kernels->axpy(0.37f, y.data(), n, acc.data());
      for (uint32_t i = 0; i < n; ++i) {
        const double product = double{0.37f} * y[i], r = before[i] + product;
        CHECK(std::abs(acc[i] - r) <= kU * (std::abs(product) + 1.01 * std::abs(r)));
        CHECK(acc[i] != before[i]);
      }
      CHECK_EQ(acc[n], 5.0f);
    }
}

CHECK_MAIN()
