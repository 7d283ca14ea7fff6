// The projection kernels of the CUDA engine, their own source under the emulated GPU: against
// float64 within a derived bound, bit for bit where the sums are exact, and against themselves for
// every batch, number of blocks and schedule. native_cuda_projection.cpp builds the same tests for
// a real GPU.
#include "projection_run.h"
#if !defined(MIMO_RT_TEST_ON_GPU)
#include "planted_faults.h"
#endif

using namespace mimo_rt;
using namespace fixture;

namespace {

constexpr PackedFormat kFormats[] = {PackedFormat::fp8_e4m3, PackedFormat::bf16};

/// Largest error over its bound: k additions (the products are exact), one FMA per scale, the parts
/// and the segments; `input_error`: relative error of the activations.
double worst_error(const Dense& dense, const std::vector<double>& a, const std::vector<float>& y,
                   double input_error = 0) {
  const double n = dense.k() + dense.shape.tiles_per_group() + 2.0 * 8;
  double worst = 0;
  for (uint32_t i = 0; i < y.size(); ++i) {
    const Product p = dense.dot(i % dense.rows(), &a[i / dense.rows() * dense.k()]);
    const double bound =
        (gamma_of(n, kSumUnit) * (1 + input_error) + input_error) * p.magnitude + 0x1p-120;
    const double error = std::abs(y[i] - p.value) / bound;
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
  }
  return worst;
}

struct Case {
  uint32_t rows, k, num_tokens, num_segments;
};
/// One token and one row group; ragged rows, tiles and scale blocks; parts of K without tiles;
/// several stages per part, more than the ring has; all column groups.
constexpr Case kCases[] = {{16, 32, 1, 1},   {40, 160, 3, 1},  {150, 96, 9, 2}, {16, 2912, 2, 1},
                           {32, 1088, 64, 8}, {24, 4192, 5, 3}, {16, 576, 33, 2},
                           {16, 8224, 2, 1}};

/// The rows that a fused norm multiplies, in the order of its sums: see tasks/rms_norm.cuh.
std::vector<bf16_t> normalised(const bf16_t* x, const float* weight, float eps, uint32_t k) {
  float lanes[8][32] = {};  // of the parts
  for (uint32_t i = 0; i < k; ++i) {
    const float value = bf16_to_f32(x[i]);
    float& lane = lanes[i / 256 % 8][i / 8 % 32];
    lane = std::fma(value, value, lane);
  }
  float sum = 0.0f;
  for (auto& part : lanes) {
    for (uint32_t step = 16; step != 0; step /= 2)
      for (uint32_t i = 0; i < step; ++i) part[i] += part[i + step];
    sum += part[0];
  }
  const float inverse = 1.0f / std::sqrt(sum / static_cast<float>(k) + eps);
  std::vector<bf16_t> row;
  for (uint32_t i = 0; i < k; ++i)
    row.push_back(f32_to_bf16(bf16_to_f32(x[i]) * inverse * weight[i]));
  return row;
}

/// The same in float64.
std::vector<double> normalised_exactly(const bf16_t* x, const float* weight, double eps, uint32_t k) {
  double sum = 0;
  for (uint32_t i = 0; i < k; ++i) sum += std::pow(bf16_to_f32(x[i]), 2.0);
  std::vector<double> row;
  for (uint32_t i = 0; i < k; ++i)
    row.push_back(bf16_to_f32(x[i]) / std::sqrt(sum / k + eps) * double{weight[i]});
  return row;
}

/// Relative error of a normalised value: its rounding, and the sum's of the lanes, parts and squares.
double norm_error(uint32_t k) { return kBf16Unit + gamma_of(k / 32 + 16.0, kFloatUnit) * 1.01; }

struct NormWeights : AlignedRows<float> {
  explicit NormWeights(uint32_t k) : AlignedRows(1, k, 0.0f) {
    std::mt19937 random(k);
    for (uint32_t i = 0; i < k; ++i) at(0, i) = static_cast<float>(random() % 64) / 32;
  }
};

}  // namespace

TEST_CASE("projections are within the bound of float64; changed inputs are not") {
  for (const PackedFormat format : kFormats)
    for (const Case& c : kCases) {
      Dense dense(format, c.rows, c.k, c.k);
      AlignedRows<bf16_t> x(c.num_tokens, c.k + 8, kUntouched);
      fill_rows(x, c.k, 3);
      ProjectionParams params = dense.params(x, c.num_tokens);
      params.num_segments = c.num_segments;
      const std::vector<float> y = project(params);
      std::vector<double> a = widened(x, c.num_tokens, c.k);
      CHECK(worst_error(dense, a, y) <= 1.0);
      a[c.k - 1] += 64;
      CHECK(worst_error(dense, a, y) > 1.0);
      a[c.k - 1] -= 64;
      if (dense.shape.is_fp8()) dense.matrix->scale_data()[3] ^= std::byte{1};  // times or over 4
      else dense.matrix->weight_data()[1] ^= std::byte{0x40};  // times or over 2^128
      CHECK(worst_error(dense, a, y) > 1.0);
    }
}

TEST_CASE("projections are exact where every partial sum is; other signs are seen") {
  for (const PackedFormat format : kFormats)
    for (const Case& c : kCases) {
      Dense dense(format, c.rows, c.k, 5, true);
      AlignedRows<bf16_t> x(c.num_tokens, c.k, 0);
      fill_rows(x, c.k, 4, true);
      ProjectionParams params = dense.params(x, c.num_tokens);
      params.num_segments = c.num_segments;
      const auto count_different = [&] {
        const std::vector<float> y = project(params);
        const std::vector<double> a = widened(x, c.num_tokens, c.k);
        uint32_t num_different = 0;
        for (uint32_t i = 0; i < y.size(); ++i) {
          const Product p = dense.dot(i % c.rows, &a[i / c.rows * c.k]);
          CHECK(p.magnitude < 0x1p+23);  // integers
          num_different += y[i] != p.value;
        }
        return num_different;
      };
      CHECK_EQ(count_different(), 0u);
      if (c.k > 200) continue;
      for (uint32_t i = 1; i < c.rows * c.k; i += 2)  // signs as stored, no longer as packed
        dense.matrix->weight_data()[i] ^= std::byte{0x80};
      CHECK(count_different() > 0);
    }
}

TEST_CASE("every E4M3 code becomes the exact weight") {
  Dense dense(PackedFormat::fp8_e4m3, 256, 128, 1, true);
  const float scale = 0x1p-3f;
  for (uint32_t block = 0; block < 2; ++block)
    std::memcpy(dense.matrix->scale_data() + block * 4, &scale, 4);
  std::memset(dense.matrix->weight_data(), 0, 256 * 128);
  for (uint32_t code = 0; code < 256; ++code)
    if ((code & 0x7f) != 0x7f)
      dense.matrix->weight_data()[code * 128 + code * 37 % 128] = static_cast<std::byte>(code);
  dense.pack();
  AlignedRows<bf16_t> x(1, 128, f32_to_bf16(1.0f));
  const std::vector<float> y = project(dense.params(x, 1));
  for (uint32_t code = 0; code < 256; ++code)
    if ((code & 0x7f) != 0x7f)
      CHECK_EQ(y[code], fp8_e4m3_to_f32(static_cast<uint8_t>(code)) * scale);
  CHECK(y[1] == 0x1p-12f && y[0x81] == -0x1p-12f);  // the smallest subnormals
}

TEST_CASE("a token's results have the same bits alone and in any batch, schedule and row") {
  for (const PackedFormat format : kFormats) {
    constexpr uint32_t k = 2592;  // up to 7 rows are kept in shared memory, 8 are not
    Dense dense(format, 40, k, 7);
    AlignedRows<bf16_t> x(64, k, 0);
    fill_rows(x, k, 8);
    const NormWeights weights(k);
    for (const bool is_normed : {false, true}) {
      ProjectionParams params = dense.params(x, 64);
      params.num_segments = 2;
      params.norm_weight = is_normed ? weights.data : nullptr;
      const std::vector<float> all = project(params);
      KernelVector<uint32_t> row_ids;
      for (const uint32_t num_tokens : {1u, 7u, 8u, 9u, 31u}) {
        row_ids.clear();
        for (uint32_t t = 0; t < num_tokens; ++t) row_ids.push_back(63 - t * 2);
        params.row_ids = row_ids.data();
        params.num_tokens = num_tokens;
        const Launch launch{.num_blocks = num_tokens % 4 + 1, .seed = num_tokens};
        std::vector<float> y = project(params, launch);
        for (uint32_t t = 0; t < num_tokens; ++t)
          CHECK(!std::memcmp(&y[t * 40], &all[row_ids[t] * 40], 40 * 4));
        x.at(63, 5) ^= 0x40;  // the comparison sees a bit of one activation
        y = project(params, launch);
        CHECK(std::memcmp(&y[0], &all[63 * 40], 40 * 4) != 0);
        x.at(63, 5) ^= 0x40;
      }
    }
  }
}

TEST_CASE("the schedule of a projection does not change a bit") {
  Dense dense(PackedFormat::fp8_e4m3, 64, 672, 9);
  AlignedRows<bf16_t> x(10, 672, 0);
  fill_rows(x, 672, 10);
  const NormWeights weights(672);
  ProjectionParams params = dense.params(x, 10);
  params.norm_weight = weights.data;
  params.num_segments = 8;
  const std::vector<float> y = project(params);
  for (uint64_t seed = 1; seed <= 10; ++seed)
    CHECK(project(params, {static_cast<uint32_t>(1 + seed % 5), seed}) == y);
  params.num_segments = 4;
  CHECK(project(params) != y);  // the number of segments is part of the result
}

TEST_CASE("projections of 8 ranks, added in order, have the bits of one rank") {
  const uint32_t k = 2048, width = k / 8, rows = 16, num_tokens = 3;
  Dense dense(PackedFormat::bf16, rows, k, 11);
  AlignedRows<bf16_t> x(num_tokens, k, 0);
  fill_rows(x, k, 12);
  ProjectionParams params = dense.params(x, num_tokens);
  params.num_segments = 8;
  const std::vector<float> whole = project(params);
  std::vector<float> total(whole.size(), 0.0f);
  for (uint32_t rank = 0; rank < 8; ++rank) {
    Dense slice(PackedFormat::bf16, rows, width, 1);
    for (uint32_t row = 0; row < rows; ++row)
      std::memcpy(slice.matrix->weight_data() + row * width * 2,
                  dense.matrix->weight_data() + (row * k + rank * width) * 2, width * 2);
    slice.pack();
    AlignedRows<bf16_t> own(num_tokens, width, 0);
    for (uint32_t t = 0; t < num_tokens; ++t)
      std::copy_n(&x.at(t, rank * width), width, &own.at(t, 0));
    const std::vector<float> y = project(slice.params(own, num_tokens));
    for (size_t i = 0; i < total.size(); ++i) total[i] += y[i];
  }
  CHECK(total == whole);
  params.num_segments = 1;
  CHECK(project(params) != whole);
}

TEST_CASE("a fused norm multiplies rows that were rounded once") {
  for (const PackedFormat format : kFormats)
    for (const uint32_t num_tokens : {1u, 12u})
      for (const uint32_t k : {32u, 544u}) {
        Dense dense(format, 24, k, k);
        AlignedRows<bf16_t> x(num_tokens, k + 8, kUntouched), rows(num_tokens, k, 0);
        fill_rows(x, k, 14);
        const NormWeights weights(k);
        constexpr float kEps = 0.25f;
        std::vector<double> exact;
        for (uint32_t t = 0; t < num_tokens; ++t) {
          const auto row = normalised(&x.at(t, 0), weights.data, kEps, k);
          std::copy(row.begin(), row.end(), &rows.at(t, 0));
          const auto exact_row = normalised_exactly(&x.at(t, 0), weights.data, kEps, k);
          exact.insert(exact.end(), exact_row.begin(), exact_row.end());
        }
        ProjectionParams params = dense.params(x, num_tokens);
        params.norm_weight = weights.data;
        params.norm_eps = kEps;
        const std::vector<float> fused = project(params);
        CHECK(project(dense.params(rows, num_tokens)) == fused);
        const double input_error = norm_error(k);
        CHECK(worst_error(dense, exact, fused, input_error) <= 1.0);
        AlignedRows<bf16_t> out(num_tokens + 1, k + 8, kUntouched);
        const cuda::RmsNormParams norm{{x.data, x.stride}, nullptr,    weights.data,
                                       {out.data, out.stride}, kEps, num_tokens, k};
        run(norm, {.num_blocks = 1, .seed = k});
        for (uint32_t t = 0; t <= num_tokens; ++t)
          for (uint32_t i = 0; i < out.stride; ++i) {
            if (t == num_tokens || i >= k) {
              CHECK_EQ(out.at(t, i), kUntouched);
              continue;
            }
            const double y = bf16_to_f32(out.at(t, i)), a = exact[t * k + i];
            CHECK_EQ(out.at(t, i), rows.at(t, i));
            CHECK(std::abs(y - a) <= input_error * std::abs(a));
          }
        params.norm_eps = 0.5f;
        CHECK(worst_error(dense, exact, project(params), input_error) > 1.0);
      }
}

TEST_CASE("rows of more than one trip through a norm are those of float64, and the fused norm's") {
  constexpr uint32_t kTokens = 3;  // 8224: more than is kept in registers, and than fits into shared memory
  constexpr float kEps = 0.25f;
  for (const uint32_t k : {2080u, 6144u, 8224u}) {
    AlignedRows<bf16_t> x(kTokens, k, 0), out(kTokens, k, kUntouched);
    fill_rows(x, k, k);
    const NormWeights weights(k);
    const cuda::RmsNormParams norm{{x.data, x.stride}, nullptr, weights.data, {out.data, out.stride}, kEps, kTokens, k};
    run(norm, {.num_blocks = 2, .seed = k});
    uint32_t num_outside = 0, num_outside_of_another = 0, num_different = 0;
    for (uint32_t t = 0; t < kTokens; ++t) {
      const auto exact = normalised_exactly(&x.at(t, 0), weights.data, kEps, k);
      const auto another = normalised_exactly(&x.at(t, 0), weights.data, kEps + 0.25, k);  // control
      const auto row = normalised(&x.at(t, 0), weights.data, kEps, k);
      for (uint32_t i = 0; i < k; ++i) {
        const double y = bf16_to_f32(out.at(t, i)), bound = norm_error(k) * std::abs(exact[i]);
        num_outside += !(std::abs(y - exact[i]) <= bound);
        num_outside_of_another += !(std::abs(y - another[i]) <= bound);
        num_different += out.at(t, i) != row[i];
      }
    }
    CHECK_EQ(num_outside, 0u);
    CHECK_EQ(num_different, 0u);
    CHECK(num_outside_of_another > k);
    Dense dense(PackedFormat::bf16, 16, k, k);
    ProjectionParams fused = dense.params(x, kTokens);
    fused.norm_weight = weights.data;
    fused.norm_eps = kEps;
    const std::vector<float> y = project(fused);
    CHECK(y == project(dense.params(out, kTokens)));
    x.at(0, k - 1) = f32_to_bf16(32.0f);  // in the last chunk: every column's sum is another one
    CHECK(y != project(fused));
  }
}

#if !defined(MIMO_RT_TEST_ON_GPU)
TEST_CASE("every barrier and every wait that is left out is found") {
  using emulation::Skip;
  for (const PackedFormat format : kFormats)
    for (const uint32_t num_tokens : {2u, 9u}) {  // rows kept in shared memory, and rows measured there
      constexpr uint32_t kRows = 48, kWidth = 1024;
      Dense dense(format, kRows, kWidth, 15);
      AlignedRows<bf16_t> x(num_tokens, kWidth, 0);
      AlignedRows<float> out(num_tokens, kRows, 0);
      fill_rows(x, kWidth, 16);
      const NormWeights weights(kWidth);
      ProjectionParams params = dense.params(x, num_tokens);
      params.norm_weight = weights.data;
      const std::vector<float> right = project(params);
      params.store = ProjectionStore::f32;
      params.out_f32 = {out.data, out.stride};
      const KnownLaunch launch{
          projection_options({.num_blocks = 1}, cuda::kBlockThreads),
          [&](const emulation::LaunchOptions& options) {
            std::fill_n(out.data, right.size(), NAN);
            return emulation::launch(options, cuda::projection_kernel(params), params).error;
          },
          [&] { return std::equal(right.begin(), right.end(), out.data); }};
      // Of the ring; of the rows; after the products of a unit; before the next unit's. (Without that
      // of the rows' places they are read from address 0.)
      launch.expect_seen(Skip::named_barrier, {0, 2, 3, 4, 5});
      launch.expect_seen(Skip::mbarrier_wait, {0, 1, 2});
    }
}

TEST_CASE("the barrier of a norm that is left out is found") {
  constexpr uint32_t kWidth = 1024;
  AlignedRows<bf16_t> x(3, kWidth, 0), out(3, kWidth, 0);
  fill_rows(x, kWidth, 16);
  const NormWeights weights(kWidth);
  const cuda::RmsNormParams params{.x = {x.data, x.stride}, .weight = weights.data, .out = {out.data, out.stride},
                                   .eps = 1e-5f, .num_tokens = 3, .k = kWidth};
  run(params, {.num_blocks = 1});
  const std::vector<bf16_t> right(out.data, out.data + 3 * out.stride);
  const KnownLaunch launch{
      projection_options({.num_blocks = 1}, cuda::kComputeWarps * 32),
      [&](const emulation::LaunchOptions& options) {
        std::fill_n(out.data, right.size(), bf16_t{0x7fc1});
        return emulation::launch(options, cuda::rms_norm_kernel, params).error;
      },
      [&] { return std::equal(right.begin(), right.end(), out.data); }};
  launch.expect_seen(emulation::Skip::named_barrier, {0, 1, 2});  // one for each row
}
#endif

CHECK_MAIN()
