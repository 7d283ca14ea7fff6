// The expert kernels of the CUDA engine, their own source under the emulated GPU: against float64
// within a derived bound, bit for bit where the sums are exact, and against themselves for every
// batch, number of blocks and schedule. native_cuda_experts.cpp builds the same tests for a real
// GPU.
#include "expert_run.h"
#if !defined(MIMO_RT_TEST_ON_GPU)
#include "planted_faults.h"
#endif

using namespace mimo_rt;
using namespace fixture;

namespace {

struct Case {
  ExpertShape shape;
  Route route;
};

/// One token; tokens that share nothing; an odd number of active experts and experts without
/// tokens; all tokens to one expert; ragged last tiles; nothing to do at all.
std::vector<Case> awkward_cases() {
  return {{{64, 32, 3}, Route::random(1, 1, 3, 1)},
          {{256, 64, 5}, Route::random(1, 3, 5, 2)},
          {{96, 32, 7}, Route::random(3, 2, 4, 3, 2)},
          {{288, 96, 4}, Route::random(9, 3, 4, 4)},
          {{160, 32, 2}, Route::random(64, 1, 1, 5, 1)},
          {{32, 32, 4}, Route::random(17, 1, 4, 6)},
          {{64, 32, 2}, Route(2, {})}};
}

}  // namespace

TEST_CASE("act is within the bound of float64; swapped experts are not") {
  for (Case& c : awkward_cases()) {
    Experts experts(c.shape, Weights::random, c.shape.hidden_size);
    AlignedRows<bf16_t> x(c.route.num_tokens, c.shape.hidden_size + 8, kUntouched);
    fill_normal(x, c.shape.hidden_size, 3);
    const std::vector<bf16_t> act = gate_up(experts, c.route, x);
    CHECK(worst_act(experts, c.route, x, act) <= 1.0);
    if (c.route.num_active == 0) continue;
    const uint32_t e = c.route.active_experts[0], other = (e + 1) % c.shape.num_experts;
    std::swap(experts.gate[e], experts.gate[other]);
    CHECK(worst_act(experts, c.route, x, act) > 1.0);
    std::swap(experts.gate[e], experts.gate[other]);
    experts.up[e]->scale_data()[0] = std::byte{126};  // twice the largest
    CHECK(worst_act(experts, c.route, x, act) > 1.0);
  }
}

TEST_CASE("sums are within the bound of float64; swapped experts are not") {
  for (Case& c : awkward_cases())
    for (const uint32_t num_segments : {1u, 2u, 8u}) {
      Experts experts(c.shape, Weights::random, c.shape.hidden_size + 1);
      AlignedRows<bf16_t> act(std::max(1u, c.route.num_slots()), c.shape.width + 8, kUntouched);
      fill_normal(act, c.shape.width, 4);
      const std::vector<float> sums = down(experts, c.route, act, num_segments);
      CHECK(worst_sum(experts, c.route, act, sums) <= 1.0);
      if (c.route.num_active == 0) {
        for (const float sum : sums) CHECK_EQ(sum, 0.0f);
        continue;
      }
      const uint32_t e = c.route.active_experts[0], other = (e + 1) % c.shape.num_experts;
      std::swap(experts.down[e], experts.down[other]);
      CHECK(worst_sum(experts, c.route, act, sums) > 1.0);
      std::swap(experts.down[e], experts.down[other]);
      experts.down[e]->scale_data()[0] = std::byte{126};
      CHECK(worst_sum(experts, c.route, act, sums) > 1.0);
    }
}

TEST_CASE("act is exact where every partial sum is") {
  for (Case& c : awkward_cases()) {
    Experts experts(c.shape, Weights::exact_positive, 9);
    AlignedRows<bf16_t> x(c.route.num_tokens, c.shape.hidden_size, 0);
    fill_integers(x, c.shape.hidden_size, 1, 3, 5);
    const std::vector<bf16_t> act = gate_up(experts, c.route, x);
    CHECK_EQ(num_inexact(experts, c.route, x, act), 0u);
  }
}

TEST_CASE("sums are exact where every partial sum is; one activation changes them") {
  for (Case& c : awkward_cases()) {
    Experts experts(c.shape, Weights::exact, 11);
    AlignedRows<bf16_t> act(std::max(1u, c.route.num_slots()), c.shape.width, 0);
    fill_integers(act, c.shape.width, -4, 4, 6);
    const std::vector<float> sums = down(experts, c.route, act, 2);
    CHECK_EQ(num_inexact(experts, c.route, act, sums), 0u);
    if (c.route.num_slots() == 0) continue;
    act.at(0, c.shape.width - 1) = f32_to_bf16(5.0f);
    CHECK(num_inexact(experts, c.route, act, sums) > 0);
  }
}

TEST_CASE("every E2M1 code and scale of the layout becomes the exact weight") {
  // Row r, k = r: code c alone in its row, activation 1: act is not linear, so through `down`.
  for (uint32_t e8m0 = 19; e8m0 <= kCudaMaxE8m0; e8m0 += e8m0 < 24 || e8m0 > 146 ? 1 : 7) {
    Experts experts({32, 32, 1}, Weights::exact, 1);
    StoredMatrix& matrix = *experts.down[0];
    std::memset(matrix.weight_data(), 0, 32 * 16);
    std::memset(matrix.scale_data(), static_cast<int>(e8m0), 32);
    for (uint32_t row = 0; row < 32; ++row)
      matrix.weight_data()[row * 16 + row / 2] = static_cast<std::byte>(row % 16 << row % 2 * 4);
    experts.pack();
    Route route(1, {{0, 0, 1.0f}});
    AlignedRows<bf16_t> act(1, 32, f32_to_bf16(1.0f));
    const std::vector<float> sums = down(experts, route, act);
    for (uint32_t row = 0; row < 32; ++row) {
      const float weight = fp4_e2m1_to_f32(static_cast<uint8_t>(row % 16));
      CHECK_EQ(sums[row], weight * e8m0_to_f32(static_cast<uint8_t>(e8m0)));
    }
  }
}

TEST_CASE("a token's results have the same bits alone and in any batch") {
  const ExpertShape shape{288, 160, 6};
  Experts experts(shape, Weights::random, 21);
  for (const uint32_t num_tokens : {2u, 7u, 24u, 64u}) {  // 64: all to the same three experts
    Route route = Route::random(num_tokens, 3, num_tokens == 64 ? 3 : 6, num_tokens);
    AlignedRows<bf16_t> x(num_tokens, shape.hidden_size, 0), one(1, shape.hidden_size, 0);
    fill_normal(x, shape.hidden_size, num_tokens);
    const std::vector<bf16_t> act = gate_up(experts, route, x);
    AlignedRows<bf16_t> rows(route.num_slots(), shape.width, 0), own(3, shape.width, 0);
    std::copy(act.begin(), act.end(), rows.data);
    const std::vector<float> sums = down(experts, route, rows, 8);
    for (uint32_t t = 0; t < num_tokens; t += num_tokens / 6 + 1) {
      Route alone = route.of_token(t);
      std::copy(&x.at(t, 0), &x.at(t, 0) + shape.hidden_size, one.data);
      const std::vector<bf16_t> own_act =
          gate_up(experts, alone, one, {.num_blocks = 3, .seed = 1});
      for (uint32_t s = 0, i = 0; s < route.num_slots(); ++s)
        if (route.slots[s].token == t)
          CHECK(!std::memcmp(&own_act[i++ * shape.width], &act[s * shape.width], shape.width * 2));
      std::copy(own_act.begin(), own_act.end(), own.data);
      const std::vector<float> own_sums =
          down(experts, alone, own, 8, {.num_blocks = 1});
      CHECK(!std::memcmp(own_sums.data(), &sums[t * shape.hidden_size], shape.hidden_size * 4));
      own.data[5] ^= 1;  // the comparison sees one bit of one activation
      const std::vector<float> changed = down(experts, alone, own, 8);
      CHECK(std::memcmp(changed.data(), own_sums.data(), changed.size() * 4) != 0);
    }
  }
}

TEST_CASE("partial sums that do not fit at once follow in passes, same bits") {
  const ExpertShape shape{32, 512, 8};
  Experts experts(shape, Weights::random, 31);
  Route route = Route::random(32, 8, 8, 7);  // 256 slots: two of eight segments at a time
  AlignedRows<bf16_t> act(route.num_slots(), shape.width, 0), own(8, shape.width, 0);
  fill_normal(act, shape.width, 8);
  const std::vector<float> sums = down(experts, route, act, 8);
  for (const uint32_t t : {0u, 13u, 31u}) {
    Route alone = route.of_token(t);
    for (uint32_t s = 0, i = 0; s < route.num_slots(); ++s)
      if (route.slots[s].token == t)
        std::copy(&act.at(s, 0), &act.at(s, 0) + shape.width, &own.at(i++, 0));
    const std::vector<float> own_sums = down(experts, alone, own, 8);
    CHECK(!std::memcmp(own_sums.data(), &sums[t * shape.hidden_size], shape.hidden_size * 4));
    const std::vector<float> other = down(experts, alone, own, 1);
    CHECK(std::memcmp(other.data(), own_sums.data(), other.size() * 4) != 0);  // another order
  }
}

TEST_CASE("as many slots as a call may have: within the bound of float64, and a token's bits as alone") {
  const ExpertShape shape{32, 512, 16};
  Experts experts(shape, Weights::random, 31);
  Route route = Route::random(cuda::kMaxExpertTokens, 8, 16, 7);
  CHECK_EQ(route.num_slots(), cuda::kMaxExpertSlots);
  AlignedRows<bf16_t> act(route.num_slots(), shape.width, 0), own(8, shape.width, 0);
  fill_normal(act, shape.width, 8);
  const std::vector<float> sums = down(experts, route, act, 8);
  CHECK(worst_sum(experts, route, act, sums) <= 1.0);
  for (const uint32_t t : {0u, 63u}) {
    Route alone = route.of_token(t);
    for (uint32_t s = 0, i = 0; s < route.num_slots(); ++s)
      if (route.slots[s].token == t) std::copy_n(&act.at(s, 0), shape.width, &own.at(i++, 0));
    const std::vector<float> own_sums = down(experts, alone, own, 8);
    CHECK(!std::memcmp(own_sums.data(), &sums[t * shape.hidden_size], shape.hidden_size * 4));
  }
  std::swap(experts.down[route.slots.back().expert], experts.down[route.slots.front().expert]);  // control
  CHECK(worst_sum(experts, route, act, sums) > 1.0);
}

TEST_CASE("with a residual the sums are added and rounded once, and captured in rows of the caller's") {
  constexpr uint32_t kTokens = 20, kHidden = 96, kFirst = 8;
  const ExpertShape shape{kHidden, 64, 3};
  Experts experts(shape, Weights::random, 12);
  Route route = Route::random(kTokens, 2, 3, 8);
  AlignedRows<bf16_t> act(route.num_slots(), 64, 0), residual(kTokens, kHidden, 0), before(kTokens, kHidden, 0);
  AlignedRows<bf16_t> captured(kTokens, kHidden + 2 * kFirst, kUntouched);
  fill_normal(act, 64, 1);
  fill_normal(residual, kHidden, 2);
  fill_normal(before, kHidden, 2);
  const std::vector<float> sums = down(experts, route, act, 2);
  auto params = layer_params<cuda::ExpertDownParams>(experts.down_tiles, shape, route);
  params.act = {act.data, act.stride};
  params.residual = {residual.data, residual.stride};
  params.num_segments = 2;
  KernelVector<uint16_t*> rows;
  for (uint32_t t = 0; t < kTokens; ++t) rows.push_back(&captured.at(t * 7 % kTokens, 0));
  params.capture = {rows.data(), kFirst};
  run(params, {.num_blocks = 3, .seed = 2});
  for (uint32_t t = 0; t < kTokens; ++t)
    for (uint32_t i = 0; i < captured.stride; ++i) {
      const bf16_t copy = captured.at(t * 7 % kTokens, i);
      if (i < kFirst || i >= kFirst + kHidden) {
        CHECK_EQ(copy, kUntouched);
        continue;
      }
      const uint32_t column = i - kFirst;
      const float sum = sums[t * kHidden + column];
      CHECK_EQ(copy, f32_to_bf16(bf16_to_f32(before.at(t, column)) + sum));
      CHECK_EQ(residual.at(t, column), copy);
    }
}

TEST_CASE("sums of 8 ranks, added in order, have the bits of one rank") {
  const ExpertShape shape{32, 512, 3};
  Experts experts(shape, Weights::random, 61);
  Route route = Route::random(4, 2, 3, 9);
  AlignedRows<bf16_t> act(route.num_slots(), shape.width, 0);
  fill_normal(act, shape.width, 9);
  const std::vector<float> whole = down(experts, route, act, 8);
  constexpr uint32_t kNumRanks = 8;
  const uint32_t width = shape.width / kNumRanks;
  std::vector<float> total(whole.size(), 0.0f);
  for (uint32_t rank = 0; rank < kNumRanks; ++rank) {
    Experts slice = experts.down_slice(rank, kNumRanks);
    AlignedRows<bf16_t> own(route.num_slots(), width, 0);
    for (uint32_t s = 0; s < route.num_slots(); ++s)
      std::copy_n(&act.at(s, rank * width), width, &own.at(s, 0));
    const std::vector<float> sums = down(slice, route, own);
    for (size_t i = 0; i < total.size(); ++i) total[i] += sums[i];
  }
  CHECK(total == whole);
  const std::vector<float> other = down(experts, route, act, 4);
  CHECK(other != whole);  // the number of segments is part of the result
}

TEST_CASE("segments longer than a stage go through the ring in parts") {
  const ExpertShape shape{4192, 32, 1};
  Experts experts(shape, Weights::random, 41);
  Route route = Route::random(2, 1, 1, 1);
  AlignedRows<bf16_t> x(2, shape.hidden_size, 0);
  fill_normal(x, shape.hidden_size, 1);
  const std::vector<bf16_t> act = gate_up(experts, route, x, {.num_blocks = 1});
  CHECK(worst_act(experts, route, x, act) <= 1.0);
}

TEST_CASE("the schedule does not change a bit") {
  const ExpertShape shape{160, 96, 4};
  Experts experts(shape, Weights::random, 51);
  Route route = Route::random(5, 2, 4, 2);
  AlignedRows<bf16_t> x(5, shape.hidden_size, 0), rows(route.num_slots(), shape.width, 0);
  fill_normal(x, shape.hidden_size, 2);
  const std::vector<bf16_t> act = gate_up(experts, route, x);
  std::copy(act.begin(), act.end(), rows.data);
  const std::vector<float> sums = down(experts, route, rows, 2);
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    const Launch launch{.num_blocks = static_cast<uint32_t>(1 + seed % 5), .seed = seed};
    CHECK(gate_up(experts, route, x, launch) == act);
    CHECK(down(experts, route, rows, 2, launch) == sums);
  }
}

TEST_CASE("arguments that the kernels cannot take are refused by name") {
  alignas(16) static uint8_t memory[64];
  uint32_t words[8] = {};
  float weights[8] = {};
  cuda::ExpertDownParams good;
  good.tiles = memory;
  good.act = {reinterpret_cast<const bf16_t*>(memory), 64};
  good.sums = {reinterpret_cast<float*>(memory), 96};
  good.route = {words, words, words, words, weights};
  good.num_tokens = 8;
  good.max_slots = 64;
  good.hidden_size = 96;
  good.width = 64;
  cuda::check_expert_down(good);
  const auto refused = check::refusal_of(good, cuda::check_expert_down);
  using P = cuda::ExpertDownParams&;
  using enum ErrorCode;
  refused(unsupported_shape, "width: expected a multiple of 32", [](P p) { p.width = 48; });
  refused(unsupported_shape, "hidden_size: expected", [](P p) { p.hidden_size = 0; });
  refused(unsupported_shape, "got 2097152", [](P p) { p.width = 1 << 21; });
  refused(capacity, "num_tokens: expected 1 .. 64, got 65", [](P p) { p.num_tokens = 65; });
  refused(capacity, "num_tokens", [](P p) { p.num_tokens = 0; });
  refused(capacity, "max_slots: expected at most 512, got 513", [](P p) { p.max_slots = 513; });
  refused(invalid_argument,
          "tiles: expected an address that is a multiple of 16, got one that is 8",
          [](P p) { p.tiles += 8; });
  refused(invalid_argument, "tiles: expected memory, got null", [](P p) { p.tiles = nullptr; });
  refused(invalid_argument, "act: expected an address", [](P p) { ++p.act.data; });
  refused(invalid_argument, "act.stride: expected at least 64", [](P p) { p.act.stride = 56; });
  refused(invalid_argument, "act.stride", [](P p) { p.act.stride = 65; });
  refused(invalid_argument, "sums.stride", [](P p) { p.sums.stride = 98; });
  refused(invalid_argument, "route.slot_weight", [](P p) { p.route.slot_weight = nullptr; });
  refused(invalid_argument, "route.num_active", [](P p) { p.route.num_active = nullptr; });
  refused(unsupported_shape, "num_segments", [](P p) { p.num_segments = 65; });
  refused(invalid_argument, "capture.rows: expected an address that is a multiple of 8",
          [](P p) { p.capture.rows = reinterpret_cast<uint16_t* const*>(memory + 4); });
  cuda::ExpertGateUpParams gate_up;
  CHECK_THROWS(unsupported_shape, "[cuda.expert_gate_up] hidden_size",
               cuda::check_expert_gate_up(gate_up));
}

#if !defined(MIMO_RT_TEST_ON_GPU)
TEST_CASE("stages of the ring keep their owners in a group of items that is not full") {
  // 17 items of two stages: ticket 33 is stage 1 of the last item, ticket 1 is of another warp. A
  // copy may take until ticket 33 is waited for.
  const ExpertShape shape{32, 1024, 17};
  Experts experts(shape, Weights::random, 51);
  Route route = Route::random(17, 8, 17, 2);
  CHECK_EQ(route.num_active, 17u);
  AlignedRows<bf16_t> act(route.num_slots(), shape.width, 0);
  fill_normal(act, shape.width, 2);
  const std::vector<float> sums = down(experts, route, act);
  CHECK(worst_sum(experts, route, act, sums) <= 1.0);
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    emulation::LaunchOptions options = expert_options({.num_blocks = 1, .seed = seed});
    options.max_copy_delay = 400;
    const auto run_late = [&](const cuda::ExpertDownParams& params) {
      run_emulated(cuda::expert_down_kernel, params, options);
    };
    CHECK(run_down(experts, route, act, 1, run_late) == sums);
  }
}

TEST_CASE("every barrier and every wait that is left out is found") {
  using emulation::Skip;
  // 8 tiles of K are one for each warp. Barriers: of the ring; after the products of a unit; before
  // the next unit's. A block does several units.
  const ExpertShape shape{512, 32, 2}, down_shape{64, 512, 2};
  Experts experts(shape, Weights::random, 71), down_experts(down_shape, Weights::random, 72);
  Route route = Route::random(3, 1, 2, 3);
  AlignedRows<bf16_t> x(3, 512, 0), act(3, 32, 0), rows(3, 512, 0);
  AlignedRows<float> sums(3, 64, 0);
  fill_normal(x, 512, 1);
  fill_normal(rows, 512, 2);
  const std::vector<bf16_t> right_act = gate_up(experts, route, x);
  auto params = layer_params<cuda::ExpertGateUpParams>(experts.gate_up_tiles, shape, route);
  params.x = {x.data, x.stride};
  params.act = {act.data, act.stride};
  const KnownLaunch gate_up_launch{
      expert_options({.num_blocks = 1}),
      [&](const emulation::LaunchOptions& options) {
        std::fill_n(act.data, right_act.size(), kUntouched);
        return emulation::launch(options, cuda::expert_gate_up_kernel, params).error;
      },
      [&] { return std::equal(right_act.begin(), right_act.end(), act.data); }};
  gate_up_launch.expect_seen(Skip::named_barrier, {0, 1, 2, 3});
  gate_up_launch.expect_seen(Skip::mbarrier_wait, {0, 1, 3});

  const std::vector<float> right_sums = down(down_experts, route, rows, 8);
  auto down_params = layer_params<cuda::ExpertDownParams>(down_experts.down_tiles, down_shape, route);
  down_params.act = {rows.data, rows.stride};
  down_params.sums = {sums.data, sums.stride};
  down_params.num_segments = 8;
  const KnownLaunch down_launch{
      expert_options({.num_blocks = 1}),
      [&](const emulation::LaunchOptions& options) {
        std::fill_n(sums.data, right_sums.size(), NAN);
        return emulation::launch(options, cuda::expert_down_kernel, down_params).error;
      },
      [&] { return std::equal(right_sums.begin(), right_sums.end(), sums.data); }};
  down_launch.expect_seen(Skip::named_barrier, {0, 2, 3});
  down_launch.expect_seen(Skip::mbarrier_wait, {0, 1, 3});
}
#endif

CHECK_MAIN()
