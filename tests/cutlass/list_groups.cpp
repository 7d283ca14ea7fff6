// The groups that csrc/cuda/gemm/block_scaled_groups.h lists, multiplied through CuTe as CUTLASS is
// asked to: each with its own pointers, strides and layouts. The products are those of the model
// which stands for CUTLASS in tests/cpp, bit for bit. test_cutlass.py builds this with CUTLASS's
// headers and runs it; no GPU is needed. What CUTLASS does with the groups is not tested here.
#include "host_block_scaled.h"  // first: CUTLASS brings another namespace cuda

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "cuda/gemm/block_scaled_groups.h"

using namespace mimo_rt;
using namespace mimo_rt::cuda;

namespace {

constexpr uint32_t kRows = 48, kK = 256, kNumExperts = 6;

/// Random operands of a layer, and a route with so many slots of each active expert.
struct Layer {
  std::vector<uint32_t> active, slot_begin{0};
  uint32_t num_active;
  std::vector<uint8_t> weights, codes, scales, workspace;

  Layer(std::vector<uint32_t> experts, const std::vector<uint32_t>& num_slots)
      : active(std::move(experts)),
        num_active(static_cast<uint32_t>(active.size())),
        weights(kNumExperts * CudaMxShape{kRows, kK}.bytes()),
        workspace(block_scaled_workspace_bytes(kNumExperts), 0xff) {
    for (const uint32_t n : num_slots) slot_begin.push_back(slot_begin.back() + n);
    codes.resize(uint64_t{slot_begin.back()} * kK);
    scales.resize(cuda_mx_scale_bytes(cuda_mx_scale_row(slot_begin.back(), num_active), kK));
    std::mt19937 random(7);
    const CudaMxShape shape{kRows, kK};
    for (uint64_t i = 0; i < weights.size(); ++i) {
      const bool is_code = i % shape.bytes() < shape.code_bytes();
      weights[i] = static_cast<uint8_t>(is_code ? random() : 120 + random() % 15);
    }
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random() & 0x7e);  // no NaN
    for (uint8_t& scale : scales) scale = static_cast<uint8_t>(120 + random() % 15);
  }

  BlockScaledGemm gemm(std::vector<float>& out) {
    out.assign(uint64_t{slot_begin.back()} * kRows, NAN);
    BlockScaledGemm p;
    p.weights = weights.data();
    p.rows = kRows;
    p.k = kK;
    p.codes = codes.data();
    p.scales = scales.data();
    p.out = out.data();
    p.route.num_active = &num_active;
    p.route.active_experts = active.data();
    p.route.slot_begin = slot_begin.data();
    p.num_experts = kNumExperts;
    p.max_slots = slot_begin.back();
    p.workspace = workspace.data();
    return p;
  }
};

/// One group with nothing but what is listed of it, in float64.
void multiply_group(const Groups& groups, uint32_t i) {
  const auto [rows, slots, k] = groups.shapes[i];
  const auto* bytes = reinterpret_cast<const uint8_t*>(groups.weights[i]);
  const auto a = cute::make_tensor(cute::recast_ptr<const cutlass::float_e2m1_t>(bytes),
                                   cute::make_shape(rows, k, 1), groups.weight_strides[i]);
  const auto b = cute::make_tensor(groups.codes[i], cute::make_shape(slots, k, 1),
                                   groups.code_strides[i]);
  const auto a_scales = cute::make_tensor(groups.weight_scales[i], groups.weight_scale_layouts[i]);
  const auto b_scales = cute::make_tensor(groups.scales[i], groups.scale_layouts[i]);
  const auto out = cute::make_tensor(groups.out[i], cute::make_shape(rows, slots, 1),
                                     groups.out_strides[i]);
  const auto value = [](const auto& codes, const auto& scales, int row, int j) {
    using Code = std::remove_cv_t<typename std::remove_cvref_t<decltype(codes)>::value_type>;
    const Code code = codes(row, j, 0);
    const cutlass::float_ue8m0_t scale = scales(row, j, 0);
    return double{static_cast<float>(code)} * double{static_cast<float>(scale)};
  };
  for (int slot = 0; slot < slots; ++slot)
    for (int row = 0; row < rows; ++row) {
      double sum = 0;
      for (int j = 0; j < k; ++j) sum += value(a, a_scales, row, j) * value(b, b_scales, slot, j);
      out(row, slot, 0) = static_cast<float>(sum);
    }
}

/// All groups, listed in any order; `change` may spoil what was listed.
template <typename Change>
std::vector<float> multiply_listed(Layer& layer, const Change& change) {
  std::vector<float> out;
  const BlockScaledGemm p = layer.gemm(out);
  Groups groups;
  CHECK(place_groups(p, groups) <= block_scaled_workspace_bytes(kNumExperts));
  for (uint32_t i = kNumExperts; i-- > 0;) list_group(p, groups, i);
  change(groups);
  for (uint32_t i = 0; i < kNumExperts; ++i) multiply_group(groups, i);
  return out;
}

std::vector<float> expected(Layer& layer) {
  std::vector<float> out;
  fixture::multiply_on_host(layer.gemm(out));
  return out;
}

}  // namespace

TEST_CASE("listed groups are the products of the route, bit for bit") {
  const std::vector<std::vector<uint32_t>> routes[] = {
      {{0, 3, 5}, {2, 1, 7}},           // some experts have no slots
      {{4}, {133}},                     // all to one: more than an atom of scales
      {{1, 2, 4, 5}, {127, 130, 1, 3}}  // begins within atoms
  };
  for (const auto& route : routes) {
    Layer layer(route[0], route[1]);
    const std::vector<float> out = multiply_listed(layer, [](const Groups&) {});
    CHECK(out == expected(layer));
    CHECK(std::none_of(out.begin(), out.end(), [](float x) { return std::isnan(x); }));
  }
}

TEST_CASE("a group that is off is seen; groups without slots are empty") {
  Layer layer({0, 3, 5}, {2, 1, 130});
  const std::vector<float> right = expected(layer);
  const auto is_seen = [&](const auto& change) {
    const std::vector<float> out = multiply_listed(layer, change);
    return out != right;  // NaN: not written
  };
  CHECK(is_seen([](Groups& g) { std::swap(g.weights[1], g.weights[2]); }));
  CHECK(is_seen([](Groups& g) { std::swap(g.weight_scales[1], g.weight_scales[2]); }));
  CHECK(is_seen([](Groups& g) { g.codes[1] += kK; }));
  CHECK(is_seen([](Groups& g) { g.scales[1] -= kCudaMxAtomBytes; }));
  CHECK(is_seen([](Groups& g) { g.out[0] += kRows; }));
  CHECK(is_seen([](Groups& g) { cute::get<0>(g.weight_strides[2]) -= 32; }));
  CHECK(is_seen([](Groups& g) { cute::get<0>(g.code_strides[2]) -= 32; }));
  CHECK(is_seen([](Groups& g) { cute::get<1>(g.out_strides[2]) -= 1; }));
  CHECK(is_seen([](Groups& g) {
    const GroupShape half{static_cast<int>(kRows), 130, static_cast<int>(kK / 2)};
    g.scale_layouts[2] = ScaleConfig::tile_atom_to_shape_SFB(half);
  }));
  CHECK(is_seen([](Groups& g) { cute::get<1>(g.shapes[2]) -= 1; }));
  multiply_listed(layer, [](const Groups& g) {
    for (uint32_t i = 0; i < kNumExperts; ++i) {
      const int slots[] = {2, 1, 130, 0, 0, 0};
      CHECK_EQ(cute::get<0>(g.shapes[i]), static_cast<int>(kRows));
      CHECK_EQ(cute::get<1>(g.shapes[i]), slots[i]);
      CHECK_EQ(cute::get<2>(g.shapes[i]), static_cast<int>(kK));
    }
  });
}

CHECK_MAIN()
