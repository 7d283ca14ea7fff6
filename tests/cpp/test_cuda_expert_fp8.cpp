// The expert kernels with FP8 activations, their own source under the emulated GPU: every code and
// scale exactly, the rounding of rows, results within the bound of float64 and what the rounding
// costs, the same bits for every batch and schedule. native_cuda_expert_fp8.cpp builds the same
// tests for a real GPU.
#include "expert_errors.h"
#include "expert_run.h"

#if !defined(MIMO_RT_TEST_ON_GPU)
#include "cuda/device/tasks/expert_fp8_kernels.cuh"
#include "planted_faults.h"
#endif
#include "cuda/expert_fp8.h"

using namespace mimo_rt;
using namespace fixture;

namespace {

#if defined(MIMO_RT_TEST_ON_GPU)
void run(const cuda::ExpertGateUpFp8Params& params, const Launch& launch) {
  cuda::launch_expert_gate_up_fp8(params, {.num_blocks = launch.num_blocks});
  finish();
}
void run(const cuda::ExpertDownFp8Params& params, const Launch& launch) {
  cuda::launch_expert_down_fp8(params, {.num_blocks = launch.num_blocks});
  finish();
}
#else
emulation::LaunchOptions round_options(const Launch& launch) {
  return options_of(launch, cuda::kComputeWarps * 32, 0);
}
void run(const cuda::ExpertGateUpFp8Params& params, const Launch& launch) {
  cuda::check_expert_gate_up_fp8(params);
  run_emulated(cuda::expert_round_x_kernel, params, round_options(launch));
  run_emulated(cuda::expert_gate_up_fp8_kernel, params, expert_options(launch));
}
void run(const cuda::ExpertDownFp8Params& params, const Launch& launch) {
  cuda::check_expert_down_fp8(params);
  run_emulated(cuda::expert_round_act_kernel, params, round_options(launch));
  run_emulated(cuda::expert_down_fp8_kernel, params, expert_options(launch));
}
#endif

/// Rounded rows, as the kernels leave them.
struct Rounded {
  AlignedRows<uint8_t> codes;
  KernelVector<float> scales;

  Rounded(uint32_t num_rows, uint32_t k)
      : codes(std::max(num_rows, 1u), (k + 15) / 16 * 16, 0xff), scales(num_rows + 1, -77.0f) {}
  cuda::ExpertFp8Rows view() { return {{codes.data, codes.stride}, scales.data()}; }
  /// Element `k` of a row: the codes of 8 neighbours lie as 4 2 0 6 5 3 1 7.
  double value(uint32_t row, uint32_t k) const {
    constexpr uint32_t kPlace[8] = {2, 6, 1, 5, 0, 4, 3, 7};
    const uint8_t code = codes.at(row, k / 8 * 8 + kPlace[k % 8]);
    return double{fp8_e4m3_to_f32(code)} * double{scales[row]};
  }
};

std::vector<bf16_t> gate_up_fp8(Experts& experts, Route& route, const AlignedRows<bf16_t>& x,
                                const Launch& launch = {}) {
  return run_gate_up(experts, route, x, [&](const cuda::ExpertGateUpParams& params) {
    Rounded rounded(params.num_tokens, params.hidden_size);
    run(cuda::ExpertGateUpFp8Params{params, rounded.view()}, launch);
    CHECK_EQ(rounded.scales[params.num_tokens], -77.0f);
  });
}

std::vector<float> down_fp8(Experts& experts, Route& route, const AlignedRows<bf16_t>& act,
                            uint32_t num_segments = 1, const Launch& launch = {}) {
  return run_down(experts, route, act, num_segments, [&](const cuda::ExpertDownParams& params) {
    Rounded rounded(params.max_slots, params.width);
    run(cuda::ExpertDownFp8Params{params, rounded.view()}, launch);
    CHECK_EQ(rounded.scales[params.max_slots], -77.0f);
  });
}

/// The exact product, its magnitude, and what rounding the activations to FP8 may change: 2^-4 of
/// each, or half a step of the smallest codes (2^-10 of the row's scale).
struct Fp8Product {
  Product exact;
  double error = 0;

  Fp8Product(const StoredMatrix& matrix, uint32_t row, const bf16_t* x)
      : exact(dot(matrix, row, x)) {
    double largest = 0;
    for (uint32_t k = 0; k < matrix.source.k; ++k)
      largest = std::max(largest, std::abs(double{bf16_to_f32(x[k])}));
    for (uint32_t k = 0; k < matrix.source.k; ++k)
      error += std::abs(Experts::value(matrix, row, k)) *
               std::max(0x1.01p-4 * std::abs(double{bf16_to_f32(x[k])}), 0x1p-10 * largest / 448);
    // Products of E4M3 are exact in FP32: 64 additions in a tile; one FMA per tile, and 70 for the
    // row's scale, the segments and a token's experts.
    error += (gamma(64, kSumUnit) + gamma(matrix.source.k / 64 + 70.0, kFloatUnit)) *
             (exact.magnitude + error);
  }
};

Errors errors_of_act(const Experts& experts, const Route& route, const AlignedRows<bf16_t>& x,
                     const std::vector<bf16_t>& act) {
  return act_errors<Fp8Product>(experts, route, x, act);
}
Errors errors_of_sums(const Experts& experts, const Route& route, const AlignedRows<bf16_t>& act,
                      const std::vector<float>& sums) {
  return sum_errors<Fp8Product>(experts, route, act, sums);
}

struct Case {
  ExpertShape shape;
  Route route;
};

/// One token; experts without any; all tokens to one expert; ragged last tiles; an odd number of
/// active experts; nothing to do at all.
std::vector<Case> awkward_cases() {
  return {{{64, 32, 3}, Route::random(1, 1, 3, 1)},
          {{288, 96, 4}, Route::random(9, 3, 4, 4)},
          {{160, 32, 2}, Route::random(64, 1, 1, 5, 1)},
          {{96, 352, 7}, Route::random(11, 2, 4, 3, 2)},
          {{32, 32, 6}, Route(3, {{1, 2, 0.5f}, {3, 0, 1.0f}, {4, 2, 0.25f}})},
          {{64, 32, 2}, Route(2, {})}};
}

/// Integers up to 3 and one 7 in each row: its scale is 1 / 64 and every code exact.
AlignedRows<bf16_t> integer_rows(uint32_t num_rows, uint32_t k, int least, uint32_t seed) {
  AlignedRows<bf16_t> rows(std::max(num_rows, 1u), k, 0);
  fill_integers(rows, k, least, 3, seed);
  for (uint32_t row = 0; row < rows.rows; ++row)
    rows.at(row, (row * 37 + seed) % k) = f32_to_bf16(least < 0 && row % 2 ? -7.0f : 7.0f);
  return rows;
}

/// The product of such a row, of which FP32 rounds nothing: weights times integers are multiples of
/// `unit`, and their magnitudes add up to less than 2^24 of it.
double exact_product(const StoredMatrix& matrix, uint32_t row, const bf16_t* x, double unit) {
  double sum = 0, magnitude = 0;
  for (uint32_t k = 0; k < matrix.source.k; ++k) {
    const double product = Experts::value(matrix, row, k) * double{bf16_to_f32(x[k])};
    sum += product;
    magnitude += std::abs(product);
    CHECK(magnitude < 0x1p+24 * unit);
  }
  return sum;
}

}  // namespace

TEST_CASE("results are within the bound of float64, a few percent off; swapped experts are not") {
  for (Case& c : awkward_cases()) {
    Experts experts(c.shape, Weights::random, c.shape.hidden_size);
    AlignedRows<bf16_t> x(c.route.num_tokens, c.shape.hidden_size + 8, kUntouched);
    AlignedRows<bf16_t> act(std::max(c.route.num_slots(), 1u), c.shape.width + 8, kUntouched);
    fill_normal(x, c.shape.hidden_size, 3);
    fill_normal(act, c.shape.width, 4);
    const std::vector<bf16_t> got = gate_up_fp8(experts, c.route, x);
    const std::vector<float> sums = down_fp8(experts, c.route, act, 2);
    if (c.route.num_slots() == 0) {
      for (const float sum : sums) CHECK_EQ(sum, 0.0f);
      continue;
    }
    const Errors of_act = errors_of_act(experts, c.route, x, got);
    const Errors of_sums = errors_of_sums(experts, c.route, act, sums);
    CHECK(of_act.worst <= 1.0 && of_sums.worst <= 1.0);
    // A rounding to 4 bits is off by 2^-5 / sqrt(3) to twice that: 1.8 to 3.6 percent, of gate and of up.
    CHECK(of_sums.relative() > 0.01 && of_sums.relative() < 0.04);
    CHECK(of_act.relative() > 0.01 && of_act.relative() < 0.08);
    CHECK(worst_sum(experts, c.route, act, sums) > 1.0);  // it is not the result of BF16
    const uint32_t e = c.route.active_experts[0], other = (e + 1) % c.shape.num_experts;
    std::swap(experts.gate[e], experts.gate[other]);
    std::swap(experts.down[e], experts.down[other]);
    CHECK(errors_of_act(experts, c.route, x, got).worst > 1.0);
    CHECK(errors_of_sums(experts, c.route, act, sums).worst > 1.0);
  }
}

TEST_CASE("results are exact where activations need no rounding; one activation changes them") {
  for (Case& c : awkward_cases()) {
    const uint32_t hidden_size = c.shape.hidden_size, width = c.shape.width;
    Experts experts(c.shape, Weights::exact_positive, 9);
    AlignedRows<bf16_t> x = integer_rows(c.route.num_tokens, hidden_size, 1, 5);
    AlignedRows<bf16_t> act = integer_rows(c.route.num_slots(), width, -3, 6);
    const auto count_different = [&](const std::vector<bf16_t>& got, const std::vector<float>& sums) {
      uint32_t num_different = 0;
      std::vector<double> exact(sums.size());
      for (uint32_t s = 0; s < c.route.num_slots(); ++s) {
        const auto& [expert, token, weight] = c.route.slots[s];
        for (uint32_t i = 0; i < width; ++i) {
          const double gate = exact_product(*experts.gate[expert], i, &x.at(token, 0), 0.5);
          const double up = exact_product(*experts.up[expert], i, &x.at(token, 0), 0.25);
          CHECK(gate >= 20.0);  // silu(gate) == gate in FP32
          num_different += got[s * width + i] != f32_to_bf16(static_cast<float>(gate) * static_cast<float>(up));
        }
        for (uint32_t i = 0; i < hidden_size; ++i)
          exact[token * hidden_size + i] +=
              double{weight} * exact_product(*experts.down[expert], i, &act.at(s, 0), 0.25);
      }
      for (size_t i = 0; i < sums.size(); ++i) num_different += sums[i] != exact[i];
      return num_different;
    };
    const std::vector<bf16_t> got = gate_up_fp8(experts, c.route, x);
    const std::vector<float> sums = down_fp8(experts, c.route, act, 2);
    CHECK_EQ(count_different(got, sums), 0u);
    if (c.route.num_slots() == 0) continue;
    act.at(0, width - 1) = f32_to_bf16(5.0f);
    CHECK(count_different(got, sums) > 0);
  }
}

TEST_CASE("every E2M1 code is exact at every ratio of two neighbouring scales, up to 2^11") {
  // Row r, k = r and 32 + r: codes alone in their blocks; activation 448, whose code is exact.
  for (uint32_t shift = 0; shift <= 13; ++shift)
    for (const bool is_first_larger : {true, false}) {
      Experts experts({32, 64, 1}, Weights::exact, 1);
      StoredMatrix& matrix = *experts.down[0];
      std::memset(matrix.weight_data(), 0, 32 * 32);
      for (uint32_t row = 0; row < 32; ++row) {
        for (const uint32_t k : {row, 32 + row})
          matrix.weight_data()[row * 32 + k / 2] |= static_cast<std::byte>(row % 16 << k % 2 * 4);
        for (uint32_t block = 0; block < 2; ++block)
          matrix.scale_data()[row * 2 + block] =
              static_cast<std::byte>(130 - (is_first_larger == (block == 1) ? shift : 0));
      }
      experts.pack();
      Route route(1, {{0, 0, 1.0f}});
      AlignedRows<bf16_t> act(1, 64, f32_to_bf16(448.0f));
      const std::vector<float> sums = down_fp8(experts, route, act);
      for (uint32_t row = 0; row < 32; ++row) {
        const float weight = fp4_e2m1_to_f32(static_cast<uint8_t>(row % 16)) * 8;
        const float smaller = shift > 11 ? 0.0f : std::ldexp(weight, -static_cast<int>(shift));
        CHECK_EQ(sums[row], 448.0f * (weight + smaller));
      }
    }
}

TEST_CASE("rows are rounded to the nearest codes of their scale; a row of zeros stays one") {
  Experts experts({32, 96, 1}, Weights::random, 1);
  Route route(3, {{0, 0, 1.0f}, {0, 1, 1.0f}, {0, 2, 1.0f}});
  AlignedRows<bf16_t> act(3, 96, 0);
  fill_normal(act, 96, 5);
  for (uint32_t k = 0; k < 96; ++k) act.at(1, k) = k % 2 ? 0x8000 : 0;
  auto params = layer_params<cuda::ExpertDownParams>(experts.down_tiles, experts.shape, route);
  AlignedRows<float> sums(3, 32, 0.0f);
  Rounded rounded(3, 96);
  params.act = {act.data, act.stride};
  params.sums = {sums.data, sums.stride};
  run(cuda::ExpertDownFp8Params{params, rounded.view()}, {});
  for (const uint32_t row : {0u, 1u, 2u}) {
    float largest = 0;
    for (uint32_t k = 0; k < 96; ++k)
      largest = std::max(largest, std::abs(bf16_to_f32(act.at(row, k))));
    CHECK_EQ(rounded.scales[row], largest / 448.0f);
    for (uint32_t k = 0; k < 96; ++k) {
      const double exact = bf16_to_f32(act.at(row, k));
      const double step = std::max(0x1p-4 * std::abs(exact), 0x1p-10 * largest / 448);
      CHECK(std::abs(rounded.value(row, k) - exact) <= step * 1.001);
    }
  }
  for (uint32_t i = 0; i < 32; ++i) CHECK_EQ(sums.at(1, i), 0.0f);
}

TEST_CASE("a token's results have the same bits alone, in any batch and schedule") {
  const ExpertShape shape{288, 160, 6};
  Experts experts(shape, Weights::random, 21);
  Route route = Route::random(24, 3, 6, 24);
  AlignedRows<bf16_t> x(24, shape.hidden_size, 0), one(1, shape.hidden_size, 0);
  fill_normal(x, shape.hidden_size, 24);
  const std::vector<bf16_t> act = gate_up_fp8(experts, route, x);
  AlignedRows<bf16_t> rows(route.num_slots(), shape.width, 0), own(3, shape.width, 0);
  std::copy(act.begin(), act.end(), rows.data);
  const std::vector<float> sums = down_fp8(experts, route, rows, 8);
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    const Launch launch{.num_blocks = static_cast<uint32_t>(seed + 2), .seed = seed};
    CHECK(gate_up_fp8(experts, route, x, launch) == act);
    CHECK(down_fp8(experts, route, rows, 8, launch) == sums);
  }
  for (const uint32_t t : {0u, 11u, 23u}) {
    Route alone = route.of_token(t);
    std::copy_n(&x.at(t, 0), shape.hidden_size, one.data);
    const std::vector<bf16_t> own_act = gate_up_fp8(experts, alone, one, {.num_blocks = 3});
    for (uint32_t s = 0, i = 0; s < route.num_slots(); ++s)
      if (route.slots[s].token == t)
        CHECK(!std::memcmp(&own_act[i++ * shape.width], &act[s * shape.width], shape.width * 2));
    std::copy(own_act.begin(), own_act.end(), own.data);
    const std::vector<float> own_sums = down_fp8(experts, alone, own, 8, {.num_blocks = 1});
    CHECK(!std::memcmp(own_sums.data(), &sums[t * shape.hidden_size], shape.hidden_size * 4));
    own.data[5] ^= 0x80;  // the comparison sees one activation
    CHECK(down_fp8(experts, alone, own, 8) != own_sums);
  }
}

TEST_CASE("arguments that the kernels cannot take are refused by name") {
  alignas(16) static uint8_t memory[64];
  uint32_t words[8] = {};
  cuda::ExpertGateUpFp8Params good;
  good.tiles = memory;
  good.x = {reinterpret_cast<const bf16_t*>(memory), 96};
  good.act = {reinterpret_cast<bf16_t*>(memory), 64};
  good.x8 = {{memory, 96}, reinterpret_cast<float*>(memory)};
  good.route = {words, words, words, words, nullptr};
  good.num_tokens = 8;
  good.max_slots = 64;
  good.hidden_size = 96;
  good.width = 64;
  cuda::check_expert_gate_up_fp8(good);
  const auto refused = check::refusal_of(good, cuda::check_expert_gate_up_fp8);
  using P = cuda::ExpertGateUpFp8Params&;
  using enum ErrorCode;
  refused(capacity, "[cuda.expert_gate_up_fp8] num_tokens", [](P p) { p.num_tokens = 65; });
  refused(invalid_argument, "x8.codes: expected memory", [](P p) { p.x8.codes.data = nullptr; });
  refused(invalid_argument, "x8.codes.stride: expected at least 96",
          [](P p) { p.x8.codes.stride = 80; });
  refused(invalid_argument, "x8.scales", [](P p) { p.x8.scales = nullptr; });
  CHECK_THROWS(unsupported_shape, "[cuda.expert_down_fp8] hidden_size",
               cuda::check_expert_down_fp8({}));
}

#if !defined(MIMO_RT_TEST_ON_GPU)
TEST_CASE("every barrier and every wait that is left out is found") {
  using emulation::Skip;
  // 8 tiles of K are one for each warp; a block does several units (test_cuda_experts.cpp).
  const ExpertShape shape{512, 32, 2}, down_shape{64, 512, 2};
  Experts experts(shape, Weights::random, 71), down_experts(down_shape, Weights::random, 72);
  Route route = Route::random(3, 1, 2, 3);
  AlignedRows<bf16_t> x(3, 512, 0), act(3, 32, 0);
  AlignedRows<float> sums(3, 64, 0);
  Rounded rounded(3, 512);
  fill_normal(x, 512, 1);
  const std::vector<bf16_t> right_act = gate_up_fp8(experts, route, x);
  auto params = layer_params<cuda::ExpertGateUpParams>(experts.gate_up_tiles, shape, route);
  params.x = {x.data, x.stride};
  params.act = {act.data, act.stride};
  const cuda::ExpertGateUpFp8Params call{params, rounded.view()};
  run_emulated(cuda::expert_round_x_kernel, call, round_options({}));
  const KnownLaunch gate_up_launch{
      expert_options({.num_blocks = 1}),
      [&](const emulation::LaunchOptions& options) {
        std::fill_n(act.data, right_act.size(), kUntouched);
        return emulation::launch(options, cuda::expert_gate_up_fp8_kernel, call).error;
      },
      [&] { return std::equal(right_act.begin(), right_act.end(), act.data); }};
  gate_up_launch.expect_seen(Skip::named_barrier, {0, 1, 2, 3});
  gate_up_launch.expect_seen(Skip::mbarrier_wait, {0, 1, 3});

  const std::vector<float> right_sums = down_fp8(down_experts, route, x, 8);
  auto down_params = layer_params<cuda::ExpertDownParams>(down_experts.down_tiles, down_shape, route);
  down_params.act = {x.data, x.stride};
  down_params.sums = {sums.data, sums.stride};
  down_params.num_segments = 8;
  const cuda::ExpertDownFp8Params down_call{down_params, rounded.view()};
  run_emulated(cuda::expert_round_act_kernel, down_call, round_options({}));
  const KnownLaunch down_launch{
      expert_options({.num_blocks = 1}),
      [&](const emulation::LaunchOptions& options) {
        std::fill_n(sums.data, right_sums.size(), NAN);
        return emulation::launch(options, cuda::expert_down_fp8_kernel, down_call).error;
      },
      [&] { return std::equal(right_sums.begin(), right_sums.end(), sums.data); }};
  down_launch.expect_seen(Skip::named_barrier, {0, 2, 3});
  down_launch.expect_seen(Skip::mbarrier_wait, {0, 1, 3});
}
#endif

CHECK_MAIN()
