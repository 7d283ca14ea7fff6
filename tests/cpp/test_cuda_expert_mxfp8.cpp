// The expert kernels with MXFP8 activations: what they round, where it lies, what it costs, what
// stays exact. The products are CUTLASS's, here a float64 model of them that reads the same bytes;
// native_cuda_expert_mxfp8.cpp builds the same tests for a real GPU, with the real ones.
#include "expert_errors.h"
#include "expert_mxfp8_run.h"
#if !defined(MIMO_RT_TEST_ON_GPU)
#include "planted_faults.h"
#endif

using namespace mimo_rt;
using namespace fixture;

namespace {

#if defined(MIMO_RT_TEST_ON_GPU)
/// Whether the kernels are there to be run: built, and the device is theirs.
bool must_be_runnable() {
#if defined(MIMO_RT_HAVE_CUTLASS)
  int device = 0, major = 0, minor = 0;
  CHECK(cudaGetDevice(&device) == cudaSuccess);
  CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess);
  CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess);
  return major == 10 && minor == 0;
#else
  return false;
#endif
}

/// Whether this device and this build have the kernels. If not, they must say so.
bool is_runnable() {
  Experts experts({32, 32, 1}, Weights::exact, 1);
  MxExperts packed(experts);
  Route route(1, {{0, 0, 1.0f}});
  const AlignedRows<bf16_t> act(1, 32, 0);
  try {
    down_mxfp8(experts, packed, route, act);
    return true;
  } catch (const Error& error) {
    const std::string what = error.what();
    CHECK(error.code() == ErrorCode::unavailable && !must_be_runnable());
    CHECK(what.find("compute capability 10.0") != std::string::npos ||
          what.find("MIMO_RT_CUTLASS=ON") != std::string::npos);
    return false;
  }
}
#else
constexpr bool is_runnable() { return true; }
#endif

Errors errors_of_act(const Experts& experts, const Route& route, const AlignedRows<bf16_t>& x,
                     const std::vector<bf16_t>& act) {
  return act_errors<MxProduct>(experts, route, x, act);
}
Errors errors_of_sums(const Experts& experts, const Route& route, const AlignedRows<bf16_t>& act,
                      const std::vector<float>& sums) {
  return sum_errors<MxProduct>(experts, route, act, sums);
}

/// silu(gate) == gate: the gates are large and positive.
uint32_t count_different_act(const Experts& experts, const Route& route,
                             const AlignedRows<bf16_t>& x, const std::vector<bf16_t>& act) {
  uint32_t num_different = 0;
  for (uint32_t s = 0; s < route.num_slots(); ++s)
    for (uint32_t i = 0; i < experts.shape.width; ++i) {
      const bf16_t* row = &x.at(route.slots[s].token, 0);
      const auto gate = static_cast<float>(dot(*experts.gate[route.slots[s].expert], i, row).value);
      const auto up = static_cast<float>(dot(*experts.up[route.slots[s].expert], i, row).value);
      num_different += act[s * experts.shape.width + i] != f32_to_bf16(gate * up);
    }
  return num_different;
}

uint32_t count_different_sums(const Experts& experts, const Route& route,
                              const AlignedRows<bf16_t>& act, const std::vector<float>& sums) {
  const uint32_t hidden_size = experts.shape.hidden_size;
  std::vector<double> exact(sums.size());
  for (uint32_t s = 0; s < route.num_slots(); ++s)
    for (uint32_t i = 0; i < hidden_size; ++i)
      exact[route.slots[s].token * hidden_size + i] +=
          double{route.slots[s].weight} *
          dot(*experts.down[route.slots[s].expert], i, &act.at(s, 0)).value;
  uint32_t num_different = 0;
  for (size_t i = 0; i < sums.size(); ++i) num_different += sums[i] != exact[i];
  return num_different;
}

struct Case {
  ExpertShape shape;
  Route route;
};

/// One token; experts without any; all of 300 to one expert, three atoms of scales, the last
/// ragged; rows and k that end inside an atom; more rows than an atom; nothing to do.
std::vector<Case> awkward_cases() {
  return {{{96, 32, 3}, Route::random(1, 2, 3, 1)},
          {{288, 96, 4}, Route::random(19, 3, 4, 4)},
          {{160, 64, 9}, Route::random(65, 2, 5, 3, 2)},
          {{32, 32, 2}, Route::random(300, 1, 1, 5, 1)},
          {{160, 352, 7}, Route::random(11, 2, 4, 3, 2)},
          {{64, 32, 2}, Route(2, {})}};
}

AlignedRows<bf16_t> make_rows(uint32_t num_rows, uint32_t width) {
  return {std::max(num_rows, 1u), width + 8, kUntouched};
}

}  // namespace

TEST_CASE("results are within the bound of float64, a few percent off; swapped experts are not") {
  if (!is_runnable()) return;
  for (Case& c : awkward_cases()) {
    Experts experts(c.shape, Weights::random, c.shape.hidden_size);
    MxExperts packed(experts);
    AlignedRows<bf16_t> x = make_rows(c.route.num_tokens, c.shape.hidden_size);
    AlignedRows<bf16_t> act = make_rows(c.route.num_slots(), c.shape.width);
    fill_normal(x, c.shape.hidden_size, 3);
    fill_normal(act, c.shape.width, 4);
    const std::vector<bf16_t> got = gate_up_mxfp8(experts, packed, c.route, x);
    const std::vector<float> sums = down_mxfp8(experts, packed, c.route, act);
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

TEST_CASE("results are exact where activations need no rounding and every partial sum is") {
  if (!is_runnable()) return;
  for (Case& c : awkward_cases()) {
    Experts experts(c.shape, Weights::exact_positive, 9);
    MxExperts packed(experts);
    AlignedRows<bf16_t> x(c.route.num_tokens, c.shape.hidden_size, 0);
    AlignedRows<bf16_t> act(std::max(c.route.num_slots(), 1u), c.shape.width, 0);
    fill_integers(x, c.shape.hidden_size, 1, 3, 5);
    fill_integers(act, c.shape.width, -4, 4, 6);
    const auto count_different = [&] {
      const std::vector<bf16_t> got = gate_up_mxfp8(experts, packed, c.route, x);
      return count_different_act(experts, c.route, x, got) +
             count_different_sums(experts, c.route, act, down_mxfp8(experts, packed, c.route, act));
    };
    CHECK_EQ(count_different(), 0u);
    if (c.route.num_slots() == 0) continue;
    const uint64_t expert = c.route.active_experts[0] * packed.gate_up_shape.bytes();
    packed.gate_up.data()[expert + packed.gate_up_shape.code_bytes()] += 1;  // one scale
    CHECK(count_different() > 0);
  }
}

TEST_CASE("every scale is that of its row and block of the weights") {
  if (!is_runnable()) return;
  // One code per row and block, one activation per slot: weight 1.5 * 2^(row + 3 block - 60).
  constexpr uint32_t kRows = 160, kWidth = 160;
  Experts experts({kRows, kWidth, 1}, Weights::exact, 1);
  StoredMatrix& matrix = *experts.down[0];
  std::memset(matrix.weight_data(), 0x33, kRows * kWidth / 2);
  for (uint32_t row = 0; row < kRows; ++row)
    for (uint32_t block = 0; block < kWidth / 32; ++block)
      matrix.scale_data()[row * (kWidth / 32) + block] =
          static_cast<std::byte>(67 + row % 100 + 3 * block);
  MxExperts packed(experts);
  std::vector<Route::Choice> choices;
  for (uint32_t block = 0; block < kWidth / 32; ++block) choices.push_back({0, block, 1.0f});
  Route route(kWidth / 32, choices);
  AlignedRows<bf16_t> act(kWidth / 32, kWidth, 0);
  for (uint32_t block = 0; block < kWidth / 32; ++block)
    act.at(block, block * 32 + 7 * block % 32) = f32_to_bf16(1.0f);
  const std::vector<float> sums = down_mxfp8(experts, packed, route, act);
  for (uint32_t block = 0; block < kWidth / 32; ++block)
    for (uint32_t row = 0; row < kRows; ++row)
      CHECK_EQ(sums[block * kRows + row],
               std::ldexp(1.5f, static_cast<int>(row % 100 + 3 * block) - 60));
}

TEST_CASE("a token's results have the same bits alone, in any batch and schedule") {
  if (!is_runnable()) return;
  const ExpertShape shape{288, 160, 6};
  Experts experts(shape, Weights::random, 21);
  MxExperts packed(experts);
  Route route = Route::random(24, 3, 6, 24);
  AlignedRows<bf16_t> x(24, shape.hidden_size, 0), one(1, shape.hidden_size, 0);
  fill_normal(x, shape.hidden_size, 24);
  const std::vector<bf16_t> act = gate_up_mxfp8(experts, packed, route, x);
  AlignedRows<bf16_t> rows(route.num_slots(), shape.width, 0), own(3, shape.width, 0);
  std::copy(act.begin(), act.end(), rows.data);
  const std::vector<float> sums = down_mxfp8(experts, packed, route, rows);
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    const Launch launch{.num_blocks = static_cast<uint32_t>(seed + 2), .seed = seed};
    CHECK(gate_up_mxfp8(experts, packed, route, x, launch) == act);
    CHECK(down_mxfp8(experts, packed, route, rows, launch) == sums);
  }
  for (const uint32_t t : {0u, 11u, 23u}) {
    Route alone = route.of_token(t);
    std::copy_n(&x.at(t, 0), shape.hidden_size, one.data);
    const std::vector<bf16_t> own_act = gate_up_mxfp8(experts, packed, alone, one);
    for (uint32_t s = 0, i = 0; s < route.num_slots(); ++s)
      if (route.slots[s].token == t)
        CHECK(!std::memcmp(&own_act[i++ * shape.width], &act[s * shape.width], shape.width * 2));
    std::copy(own_act.begin(), own_act.end(), own.data);
    const std::vector<float> own_sums = down_mxfp8(experts, packed, alone, own);
    CHECK(!std::memcmp(own_sums.data(), &sums[t * shape.hidden_size], shape.hidden_size * 4));
    own.data[5] ^= 0x4000;  // the comparison sees one activation
    CHECK(down_mxfp8(experts, packed, alone, own) != own_sums);
  }
}

TEST_CASE("a block that is not finite makes its token's results NaN, and no other's") {
  if (!is_runnable()) return;
  Experts experts({64, 96, 1}, Weights::exact_positive, 1);
  MxExperts packed(experts);
  Route route(3, {{0, 0, 1.0f}, {0, 1, 1.0f}, {0, 2, 1.0f}});
  AlignedRows<bf16_t> act(3, 96, f32_to_bf16(1.0f));
  act.at(0, 40) = 0x7f80;  // infinity
  act.at(2, 95) = 0xffc0;  // a NaN
  const std::vector<float> sums = down_mxfp8(experts, packed, route, act);
  for (uint32_t i = 0; i < 64; ++i)
    CHECK(std::isnan(sums[i]) && std::isfinite(sums[64 + i]) && std::isnan(sums[128 + i]));
}

TEST_CASE("arguments that the kernels cannot take are refused by name") {
  alignas(128) static uint8_t memory[256];
  uint32_t words[8] = {};
  float weights[8] = {};
  cuda::ExpertDownMxfp8Params good;
  good.tiles = good.packed = good.workspace = memory;
  good.act = {reinterpret_cast<const bf16_t*>(memory), 64};
  good.sums = {reinterpret_cast<float*>(memory), 96};
  good.partials = reinterpret_cast<float*>(memory);
  good.route = {words, words, words, words, weights};
  good.num_tokens = 300;
  good.max_slots = 2400;
  good.hidden_size = 96;
  good.width = 64;
  good.num_experts = 384;
  cuda::check_expert_down_mxfp8(good);
  const auto refused = check::refusal_of(good, cuda::check_expert_down_mxfp8);
  using P = cuda::ExpertDownMxfp8Params&;
  using enum ErrorCode;
  refused(capacity, "num_tokens: expected 1 .. 8192, got 8193", [](P p) { p.num_tokens = 8193; });
  refused(capacity, "max_slots: expected at most 65536", [](P p) { p.max_slots = 65537; });
  refused(unsupported_shape, "[cuda.expert_down_mxfp8] width: expected a multiple of 32",
          [](P p) { p.width = 48; });
  refused(unsupported_shape, "num_experts", [](P p) { p.num_experts = 513; });
  refused(unsupported_shape, "num_segments: expected 1, got 2", [](P p) { p.num_segments = 2; });
  refused(invalid_argument, "tiles: expected an address that is a multiple of 128",
          [](P p) { p.tiles += 64; });
  uint16_t* rows[1] = {};
  refused(invalid_argument, "capture.rows: expected null", [&](P p) { p.capture.rows = rows; });
  refused(invalid_argument, "packed: expected an address", [](P p) { p.packed += 16; });
  refused(invalid_argument, "workspace: expected memory", [](P p) { p.workspace = nullptr; });
  refused(invalid_argument, "partials: expected an address", [](P p) { p.partials += 4; });
  cuda::ExpertGateUpMxfp8Params gate_up;
  CHECK_THROWS(unsupported_shape, "[cuda.expert_gate_up_mxfp8] hidden_size",
               cuda::check_expert_gate_up_mxfp8(gate_up));
}

#if !defined(MIMO_RT_TEST_ON_GPU)
TEST_CASE("slots are rounded to the nearest codes of the smallest scale that holds their block") {
  // Blocks of the rows: random; from 448 down; below 2^-126; zeros; powers of two, or infinities.
  Experts experts({32, 160, 1}, Weights::exact, 1);
  Route route(130, {});
  for (uint32_t t = 0; t < 130; ++t) route.slots.push_back({0, t, 1.0f});
  route = Route(130, route.slots);
  AlignedRows<bf16_t> act(130, 160, 0);
  fill_normal(act, 32, 5);
  for (uint32_t slot = 0; slot < 130; ++slot)
    for (uint32_t k = 0; k < 32; ++k) {
      act.at(slot, 32 + k) = static_cast<bf16_t>(0x43e0 + slot % 3 - k);  // 448 is 0x43e0
      act.at(slot, 64 + k) = static_cast<bf16_t>(slot + k);
      act.at(slot, 96 + k) = k % 2 ? 0x8000 : 0;
      act.at(slot, 128 + k) =
          slot == 129 ? bf16_t{0x7f80} : f32_to_bf16(std::ldexp(1.0f, static_cast<int>(slot) - 100));
    }
  auto base = layer_params<cuda::ExpertDownParams>(experts.down_tiles, experts.shape, route);
  base.act = {act.data, act.stride};
  MxScratch scratch(130, 1, 160, 32);
  const cuda::ExpertDownMxfp8Params params{
      {base, scratch.packed.data(), scratch.products.data(), 1}, scratch.workspace.data()};
  run_emulated(cuda::expert_round_act_mxfp8_kernel, params, mxfp8_options({.num_blocks = 3}));
  const cuda::Mxfp8Slots places(params.packed, 130, 160);
  const MxSlots rounded{places.codes, places.scales, places.padded_k};
  CHECK_EQ(rounded.padded_k, 256u);
  for (uint32_t slot = 0; slot < 130; ++slot)
    for (uint32_t k = 0; k < 256; ++k) {
      if (k >= 160) {
        CHECK_EQ(rounded.value(slot, slot, k), 0.0);
        continue;
      }
      if (slot == 129 && k >= 128) {  // infinities
        CHECK_EQ(rounded.scale(slot, k), 255);
        CHECK_EQ(rounded.codes[slot * 256 + k] & 0x7f, 0x7f);
        continue;
      }
      const double scale = scale_of_block(&act.at(slot, k / 32 * 32), 32);
      CHECK_EQ(double{e8m0_to_f32(rounded.scale(slot, k))}, scale);
      const double exact = double{bf16_to_f32(act.at(slot, k))}, got = rounded.value(slot, slot, k);
      double nearest = INFINITY;
      for (uint32_t code = 0; code < 127; ++code)
        nearest = std::min(nearest,
                           std::abs(double{fp8_e4m3_to_f32(static_cast<uint8_t>(code))} * scale -
                                    std::abs(exact)));
      CHECK_EQ(std::abs(got - exact), nearest);
    }
}

TEST_CASE("a route with more slots or experts than the call allows stops the kernels") {
  Experts experts({32, 32, 2}, Weights::random, 1);
  Route route = Route::random(4, 1, 2, 1);
  AlignedRows<bf16_t> x(4, 32, 0), act(4, 32, 0);
  auto base = layer_params<cuda::ExpertGateUpParams>(experts.gate_up_tiles, {32, 32, 2}, route);
  MxScratch scratch(4, 2, 32, 64);
  base.x = {x.data, x.stride};
  base.act = {act.data, act.stride};
  const auto error_of = [&](uint32_t max_slots, uint32_t num_experts) {
    cuda::ExpertGateUpMxfp8Params params{{base, scratch.packed.data(), num_experts},
                                         scratch.products.data(),
                                         scratch.workspace.data()};
    params.max_slots = max_slots;
    return emulation::launch(mxfp8_options({}), cuda::expert_round_x_mxfp8_kernel, params).error;
  };
  CHECK_EQ(error_of(4, 2), "");
  CHECK(error_of(3, 2).find("trap") != std::string::npos);
  CHECK(error_of(4, 1).find("trap") != std::string::npos);
}

TEST_CASE("a barrier of the combination that is left out is found") {
  // The only kernel here whose warps meet. More columns than a warp has; the second token's list.
  const ExpertShape shape{160, 64, 3};
  Experts experts(shape, Weights::random, 63);
  MxExperts packed(experts);
  Route route = Route::random(3, 2, 3, 4);
  AlignedRows<bf16_t> act(route.num_slots(), 64, 0);
  const AlignedRows<float> sums(3, 160, NAN);
  fill_normal(act, 64, 6);
  auto params = layer_params<cuda::ExpertDownParams>(experts.down_tiles, shape, route);
  MxScratch scratch(route.num_slots(), 3, 64, 160);
  params.act = {act.data, act.stride};
  params.sums = {sums.data, sums.stride};
  cuda::ExpertDownMxfp8Params call{{params, scratch.packed.data(), scratch.products.data(), 3},
                                   scratch.workspace.data()};
  call.tiles = packed.down.data();
  run(call, {});
  const std::vector<float> right(sums.data, sums.data + 3 * 160);
  const KnownLaunch launch{
      mxfp8_options({.num_blocks = 1}),
      [&](const emulation::LaunchOptions& options) {
        std::fill_n(sums.data, right.size(), NAN);
        return emulation::launch(options, cuda::expert_combine_mxfp8_kernel, call).error;
      },
      [&] { return std::equal(right.begin(), right.end(), sums.data); }};
  launch.expect_seen(emulation::Skip::named_barrier, {1, 2});
}
#endif

CHECK_MAIN()
