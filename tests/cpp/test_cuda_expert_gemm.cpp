// The expert kernels for many tokens, their own source under the emulated GPU: the bits of the
// kernels for few tokens, with the products of a warp group (sm_90a) and with those of warps
// (others); against float64; exact where sums are; the same in every schedule; and every fence and
// wait is needed. native_cuda_expert_gemm.cpp builds the same tests for a real GPU.
#include "expert_run.h"

#if !defined(MIMO_RT_TEST_ON_GPU)
#include "cuda/device/tasks/expert_gemm_kernels.cuh"
#include "planted_faults.h"
#endif
#include "cuda/expert_gemm.h"

using namespace mimo_rt;
using namespace fixture;

namespace {

#if defined(MIMO_RT_TEST_ON_GPU)
/// Those of the device.
constexpr bool kAllProducts[] = {true};
void run_gemm(const cuda::ExpertGateUpGemmParams& params, const Launch& launch, bool) {
  cuda::launch_expert_gate_up_gemm(params, {.num_blocks = launch.num_blocks});
  finish();
}
void run_gemm(const cuda::ExpertDownGemmParams& params, const Launch& launch, bool) {
  cuda::launch_expert_down_gemm(params, {.num_blocks = launch.num_blocks});
  finish();
}
#else
/// Of a warp group, and of warps.
constexpr bool kAllProducts[] = {true, false};
using cuda::WarpProducts, cuda::GateUpGemm, cuda::DownGemm;
__global__ void warp_pack_x_kernel(cuda::ExpertGateUpGemmParams p) {
  cuda::pack_x<WarpProducts>(p);
}
__global__ void warp_pack_act_kernel(cuda::ExpertDownGemmParams p) {
  cuda::pack_act<WarpProducts>(p);
}
__global__ void warp_gate_up_kernel(cuda::ExpertGateUpGemmParams p) {
  cuda::run_gemm<GateUpGemm, WarpProducts>(p);
}
__global__ void warp_down_kernel(cuda::ExpertDownGemmParams p) {
  cuda::run_gemm<DownGemm, WarpProducts>(p);
}

emulation::LaunchOptions gemm_options(const Launch& launch) {
  return options_of(launch, cuda::kGemmThreads, sizeof(cuda::ExpertGemmShared));
}
emulation::LaunchOptions other_options(const Launch& launch) {
  return options_of(launch, cuda::kComputeWarps * 32, sizeof(cuda::CombineShared));
}
void run_gemm(const cuda::ExpertGateUpGemmParams& params, const Launch& launch, bool of_group) {
  cuda::check_expert_gate_up_gemm(params);
  run_emulated(of_group ? cuda::expert_pack_x_kernel : warp_pack_x_kernel, params,
               other_options(launch));
  run_emulated(of_group ? cuda::expert_gate_up_gemm_kernel : warp_gate_up_kernel, params,
               gemm_options(launch));
}
void run_gemm(const cuda::ExpertDownGemmParams& params, const Launch& launch, bool of_group) {
  cuda::check_expert_down_gemm(params);
  run_emulated(of_group ? cuda::expert_pack_act_kernel : warp_pack_act_kernel, params,
               other_options(launch));
  run_emulated(of_group ? cuda::expert_down_gemm_kernel : warp_down_kernel, params,
               gemm_options(launch));
  run_emulated(cuda::expert_combine_kernel, params, other_options(launch));
}
#endif

/// Memory for the packed slots, and what lies behind it.
struct Packed {
  static constexpr size_t kMargin = 64;
  KernelVector<uint8_t> bytes;
  size_t size;

  Packed(uint32_t num_slots, uint32_t num_experts, uint32_t k)
      : size(cuda::packed_slots_bytes(num_slots, num_experts, k)) {
    bytes.assign(size + kMargin + 16, 0xff);  // NaN: what is not packed is not used
  }
  uint8_t* data() { return Experts::aligned(bytes); }
  ~Packed() {
    for (size_t i = 0; i < kMargin; ++i) CHECK_EQ(data()[size + i], 0xff);
  }
};

std::vector<bf16_t> gate_up_gemm(Experts& experts, Route& route, const AlignedRows<bf16_t>& x,
                                 bool of_group = true, const Launch& launch = {.num_blocks = 3}) {
  return run_gate_up(experts, route, x, [&](const cuda::ExpertGateUpParams& params) {
    Packed packed(params.max_slots, experts.shape.num_experts, params.hidden_size);
    run_gemm(cuda::ExpertGateUpGemmParams{params, packed.data(), experts.shape.num_experts}, launch,
             of_group);
  });
}

std::vector<float> down_gemm(Experts& experts, Route& route, const AlignedRows<bf16_t>& act,
                             uint32_t num_segments, bool of_group = true,
                             const Launch& launch = {.num_blocks = 3}) {
  return run_down(experts, route, act, num_segments, [&](const cuda::ExpertDownParams& params) {
    Packed packed(params.max_slots, experts.shape.num_experts, params.width);
    const AlignedRows<float> partials(num_segments * params.max_slots + 1, params.hidden_size, NAN);
    run_gemm(cuda::ExpertDownGemmParams{params, packed.data(), partials.data,
                                        experts.shape.num_experts},
             launch, of_group);
  });
}

/// The tokens [begin, end) of a route, and which of its slots are theirs.
struct Part {
  Route route;
  std::vector<uint32_t> slots;

  Part(const Route& whole, uint32_t begin, uint32_t end) : route(end - begin, {}) {
    std::vector<Route::Choice> choices;
    for (uint32_t s = 0; s < whole.num_slots(); ++s) {
      const Route::Choice& slot = whole.slots[s];
      if (slot.token < begin || slot.token >= end) continue;
      choices.push_back({slot.expert, slot.token - begin, slot.weight});
      slots.push_back(s);
    }
    route = Route(end - begin, choices);
  }
};

struct Case {
  ExpertShape shape;
  Route route;
  uint32_t num_segments;
};

/// One token; few; 65 tokens with experts that have none; all of 300 to one expert: three tiles of
/// slots, the last ragged; groups that are padded; half a tile of rows, and ragged ones; K of half a
/// tile, shorter than its segments, and longer than the rings; nothing to do at all.
std::vector<Case> awkward_cases() {
  return {{{96, 32, 3}, Route::random(1, 2, 3, 1), 1},
          {{288, 96, 4}, Route::random(19, 3, 4, 4), 2},
          {{160, 64, 9}, Route::random(65, 2, 5, 3, 2), 1},
          {{288, 32, 2}, Route::random(300, 1, 1, 5, 1), 1},
          {{32, 320, 3}, Route::random(131, 2, 3, 6), 8},
          {{2400, 32, 2}, Route::random(70, 1, 2, 7), 1},
          {{64, 32, 2}, Route(2, {}), 2}};
}

AlignedRows<bf16_t> rows_of(const std::vector<bf16_t>& values, uint32_t num_rows, uint32_t width) {
  AlignedRows<bf16_t> rows(std::max(num_rows, 1u), width, 0);
  std::copy(values.begin(), values.end(), rows.data);
  return rows;
}

}  // namespace

TEST_CASE("a token's results have the bits of the kernels for few tokens") {
  for (const bool of_group : kAllProducts)
    for (Case& c : awkward_cases()) {
      const uint32_t hidden_size = c.shape.hidden_size, width = c.shape.width;
      Experts experts(c.shape, Weights::random, hidden_size);
      AlignedRows<bf16_t> x(c.route.num_tokens, hidden_size + 8, kUntouched);
      fill_normal(x, hidden_size, 3);
      const std::vector<bf16_t> act = gate_up_gemm(experts, c.route, x, of_group);
      const AlignedRows<bf16_t> rows = rows_of(act, c.route.num_slots(), width);
      const std::vector<float> sums = down_gemm(experts, c.route, rows, c.num_segments, of_group);
      for (uint32_t begin = 0; begin < c.route.num_tokens; begin += cuda::kMaxTokens) {
        const uint32_t end = std::min(begin + cuda::kMaxTokens, c.route.num_tokens);
        Part part(c.route, begin, end);
        AlignedRows<bf16_t> own_x(end - begin, hidden_size, 0);
        for (uint32_t t = begin; t < end; ++t)
          std::copy_n(&x.at(t, 0), hidden_size, &own_x.at(t - begin, 0));
        const std::vector<bf16_t> own_act = gate_up(experts, part.route, own_x);
        for (uint32_t i = 0; i < part.slots.size(); ++i)
          CHECK(!std::memcmp(&own_act[i * width], &act[part.slots[i] * width], width * 2));
        const std::vector<float> own_sums =
            down(experts, part.route, rows_of(own_act, part.route.num_slots(), width),
                 c.num_segments);
        CHECK(!std::memcmp(own_sums.data(), &sums[begin * hidden_size], own_sums.size() * 4));
      }
      if (c.route.num_slots() == 0) continue;
      x.at(c.route.slots.back().token, hidden_size - 1) ^= 0x4000;  // the comparison sees it
      CHECK(gate_up_gemm(experts, c.route, x, of_group) != act);
    }
}

TEST_CASE("results are within the bound of float64; swapped experts are not") {
  Case c{{288, 96, 5}, Route::random(90, 3, 4, 9), 2};
  Experts experts(c.shape, Weights::random, 2);
  AlignedRows<bf16_t> x(c.route.num_tokens, c.shape.hidden_size, 0);
  fill_normal(x, c.shape.hidden_size, 4);
  const std::vector<bf16_t> act = gate_up_gemm(experts, c.route, x);
  CHECK(worst_act(experts, c.route, x, act) <= 1.0);
  const AlignedRows<bf16_t> rows = rows_of(act, c.route.num_slots(), c.shape.width);
  const std::vector<float> sums = down_gemm(experts, c.route, rows, c.num_segments);
  CHECK(worst_sum(experts, c.route, rows, sums) <= 1.0);
  std::swap(experts.gate[0], experts.gate[4]);
  std::swap(experts.down[0], experts.down[4]);
  CHECK(worst_act(experts, c.route, x, act) > 1.0);
  CHECK(worst_sum(experts, c.route, rows, sums) > 1.0);
}

TEST_CASE("act of many tokens is exact where every partial sum is; one activation changes it") {
  for (const bool of_group : kAllProducts)
    for (Case& c : awkward_cases()) {
      Experts experts(c.shape, Weights::exact_positive, 9);
      AlignedRows<bf16_t> x(c.route.num_tokens, c.shape.hidden_size, 0);
      fill_integers(x, c.shape.hidden_size, 1, 3, 5);
      const std::vector<bf16_t> act = gate_up_gemm(experts, c.route, x, of_group);
      CHECK_EQ(num_inexact(experts, c.route, x, act), 0u);
      if (c.route.num_slots() == 0) continue;
      x.at(c.route.slots.back().token, c.shape.hidden_size - 1) = f32_to_bf16(50.0f);
      CHECK(num_inexact(experts, c.route, x, act) > 0);
    }
}

TEST_CASE("sums of many tokens are exact where every partial sum is; one activation changes them") {
  for (const bool of_group : kAllProducts)
    for (Case& c : awkward_cases()) {
      Experts experts(c.shape, Weights::exact, 11);
      AlignedRows<bf16_t> act(std::max(1u, c.route.num_slots()), c.shape.width, 0);
      fill_integers(act, c.shape.width, -4, 4, 6);
      const std::vector<float> sums = down_gemm(experts, c.route, act, c.num_segments, of_group);
      CHECK_EQ(num_inexact(experts, c.route, act, sums), 0u);
      if (c.route.num_slots() == 0) continue;
      act.at(c.route.num_slots() - 1, c.shape.width - 1) = f32_to_bf16(5.0f);
      CHECK(num_inexact(experts, c.route, act, sums) > 0);
    }
}

TEST_CASE("with a residual the sums are added and rounded once") {
  const ExpertShape shape{96, 64, 3};
  Experts experts(shape, Weights::random, 12);
  Route route = Route::random(70, 2, 3, 8);
  AlignedRows<bf16_t> act(route.num_slots(), 64, 0), residual(70, 96, 0), before(70, 96, 0);
  fill_normal(act, 64, 1);
  fill_normal(residual, 96, 2);
  fill_normal(before, 96, 2);
  const std::vector<float> sums = down_gemm(experts, route, act, 2);
  auto params = layer_params<cuda::ExpertDownParams>(experts.down_tiles, shape, route);
  Packed packed(route.num_slots(), 3, 64);
  const AlignedRows<float> partials(2 * route.num_slots(), 96, NAN);
  params.act = {act.data, act.stride};
  params.residual = {residual.data, residual.stride};
  params.num_segments = 2;
  run_gemm(cuda::ExpertDownGemmParams{params, packed.data(), partials.data, 3}, {}, true);
  for (uint32_t t = 0; t < 70; ++t)
    for (uint32_t i = 0; i < 96; ++i)
      CHECK_EQ(residual.at(t, i), f32_to_bf16(bf16_to_f32(before.at(t, i)) + sums[t * 96 + i]));
}

TEST_CASE("the schedule does not change a bit") {
  const ExpertShape shape{416, 96, 4};
  Experts experts(shape, Weights::random, 51);
  Route route = Route::random(40, 2, 4, 2);
  AlignedRows<bf16_t> x(40, shape.hidden_size, 0);
  fill_normal(x, shape.hidden_size, 2);
  for (const bool of_group : kAllProducts) {
    const std::vector<bf16_t> act = gate_up_gemm(experts, route, x, of_group);
    const AlignedRows<bf16_t> rows = rows_of(act, route.num_slots(), shape.width);
    const std::vector<float> sums = down_gemm(experts, route, rows, 2, of_group);
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      const Launch launch{.num_blocks = static_cast<uint32_t>(1 + seed % 5), .seed = seed};
      CHECK(gate_up_gemm(experts, route, x, of_group, launch) == act);
      CHECK(down_gemm(experts, route, rows, 2, of_group, launch) == sums);
    }
  }
}

TEST_CASE("arguments that the kernels cannot take are refused by name") {
  alignas(16) static uint8_t memory[64];
  uint32_t words[8] = {};
  float weights[8] = {};
  cuda::ExpertDownGemmParams good;
  good.tiles = good.packed = memory;
  good.act = {reinterpret_cast<const bf16_t*>(memory), 64};
  good.sums = {reinterpret_cast<float*>(memory), 96};
  good.partials = reinterpret_cast<float*>(memory);
  good.route = {words, words, words, words, weights};
  good.num_tokens = 300;
  good.max_slots = 2400;
  good.hidden_size = 96;
  good.width = 64;
  good.num_experts = 384;
  cuda::check_expert_down_gemm(good);
  const auto refused = check::refusal_of(good, cuda::check_expert_down_gemm);
  using P = cuda::ExpertDownGemmParams&;
  using enum ErrorCode;
  refused(capacity, "num_tokens: expected 1 .. 8192, got 8193", [](P p) { p.num_tokens = 8193; });
  refused(capacity, "max_slots: expected at most 65536", [](P p) { p.max_slots = 65537; });
  refused(unsupported_shape, "num_experts: expected 1 .. 512, got 0",
          [](P p) { p.num_experts = 0; });
  refused(unsupported_shape, "num_segments", [](P p) { p.num_segments = 0; });
  refused(invalid_argument, "packed: expected memory, got null", [](P p) { p.packed = nullptr; });
  uint16_t* rows[1] = {};
  refused(invalid_argument, "capture.rows: expected null", [&](P p) { p.capture.rows = rows; });
  refused(invalid_argument, "packed: expected an address", [](P p) { p.packed += 8; });
  refused(invalid_argument, "partials", [](P p) { p.partials = nullptr; });
  refused(invalid_argument, "act.stride", [](P p) { p.act.stride = 56; });
  refused(invalid_argument, "route.slot_weight", [](P p) { p.route.slot_weight = nullptr; });
  cuda::ExpertGateUpGemmParams gate_up;
  CHECK_THROWS(unsupported_shape, "[cuda.expert_gate_up_gemm] hidden_size",
               cuda::check_expert_gate_up_gemm(gate_up));
}

#if !defined(MIMO_RT_TEST_ON_GPU)
TEST_CASE("a route with more slots than the call allows stops the kernels") {
  Experts experts({32, 32, 2}, Weights::random, 1);
  Route route = Route::random(4, 1, 2, 1);
  AlignedRows<bf16_t> x(4, 32, 0), act(4, 32, 0);
  auto params = layer_params<cuda::ExpertGateUpParams>(experts.gate_up_tiles, {32, 32, 2}, route);
  Packed packed(4, 2, 32);
  params.x = {x.data, x.stride};
  params.act = {act.data, act.stride};
  params.max_slots = 3;
  const cuda::ExpertGateUpGemmParams bad{params, packed.data(), 2};
  const auto error_of = [&](auto kernel, const emulation::LaunchOptions& options) {
    return emulation::launch(options, kernel, bad).error;
  };
  CHECK(error_of(cuda::expert_pack_x_kernel, other_options({})).find("trap") != std::string::npos);
  CHECK(error_of(cuda::expert_gate_up_gemm_kernel, gemm_options({})).find("trap") !=
        std::string::npos);
}

TEST_CASE("every fence, commit and wait that is left out is found") {
  using emulation::Skip;
  // 7 tiles of K in 8 segments: the first is empty, then each product has a segment of its own.
  constexpr uint32_t kTokens = 68;
  const ExpertShape shape{448, 32, 1}, down_shape{32, 448, 1};
  Experts experts(shape, Weights::random, 61), down_experts(down_shape, Weights::random, 62);
  Route route = Route::random(kTokens, 1, 1, 2);
  AlignedRows<bf16_t> x(kTokens, 448, 0), act(kTokens, 32, 0);
  fill_normal(x, 448, 5);
  const auto expect_seen = [&](const KnownLaunch& launch) {
    launch.expect_seen(Skip::named_barrier, {0});
    launch.expect_seen(Skip::wgmma_fence, {0, 1, 6});
    launch.expect_seen(Skip::wgmma_commit, {0, 1, 6});
    launch.expect_seen(Skip::wgmma_wait, {2, 4});
    launch.expect_seen(Skip::mbarrier_wait, {0, 1, 3});
  };
  const std::vector<bf16_t> right_act = gate_up_gemm(experts, route, x);
  auto params = layer_params<cuda::ExpertGateUpParams>(experts.gate_up_tiles, shape, route);
  Packed packed(kTokens, 1, 448), down_packed(kTokens, 1, 448);
  params.x = {x.data, x.stride};
  params.act = {act.data, act.stride};
  const cuda::ExpertGateUpGemmParams call{params, packed.data(), 1};
  run_emulated(cuda::expert_pack_x_kernel, call, other_options({}));
  expect_seen({gemm_options({.num_blocks = 1}),
               [&](const emulation::LaunchOptions& options) {
                 std::fill_n(act.data, right_act.size(), kUntouched);
                 return emulation::launch(options, cuda::expert_gate_up_gemm_kernel, call).error;
               },
               [&] { return std::equal(right_act.begin(), right_act.end(), act.data); }});

  auto down_params = layer_params<cuda::ExpertDownParams>(down_experts.down_tiles, down_shape, route);
  AlignedRows<float> partials(8 * kTokens, 32, NAN), sums(kTokens, 32, NAN);
  down_params.act = {x.data, x.stride};
  down_params.sums = {sums.data, sums.stride};
  down_params.num_segments = 8;
  const cuda::ExpertDownGemmParams down_call{down_params, down_packed.data(), partials.data, 1};
  run_gemm(down_call, {}, true);
  const std::vector<float> right_partials(partials.data, partials.data + 8 * kTokens * 32);
  expect_seen({gemm_options({.num_blocks = 1}),
               [&](const emulation::LaunchOptions& options) {
                 std::fill_n(partials.data, right_partials.size(), NAN);
                 return emulation::launch(options, cuda::expert_down_gemm_kernel, down_call).error;
               },
               [&] { return std::equal(right_partials.begin(), right_partials.end(), partials.data); }});
}

TEST_CASE("a barrier of the combination that is left out is found") {
  const ExpertShape shape{160, 64, 3};  // more columns than a warp has
  Experts experts(shape, Weights::random, 63);
  Route route = Route::random(3, 2, 3, 4);
  AlignedRows<bf16_t> act(route.num_slots(), 64, 0);
  fill_normal(act, 64, 6);
  Packed packed(route.num_slots(), 3, 64);
  const AlignedRows<float> partials(route.num_slots(), 160, NAN), sums(3, 160, NAN);
  auto params = layer_params<cuda::ExpertDownParams>(experts.down_tiles, shape, route);
  params.act = {act.data, act.stride};
  params.sums = {sums.data, sums.stride};
  const cuda::ExpertDownGemmParams call{params, packed.data(), partials.data, 3};
  run_gemm(call, {}, true);
  const std::vector<float> right(sums.data, sums.data + 3 * 160);
  const KnownLaunch launch{
      other_options({.num_blocks = 1}),
      [&](const emulation::LaunchOptions& options) {
        std::fill_n(sums.data, right.size(), NAN);
        return emulation::launch(options, cuda::expert_combine_kernel, call).error;
      },
      [&] { return std::equal(right.begin(), right.end(), sums.data); }};
  // Before the second token's list, and after it. (Without the first list there are slots anywhere.)
  launch.expect_seen(emulation::Skip::named_barrier, {1, 2});
}
#endif

CHECK_MAIN()
