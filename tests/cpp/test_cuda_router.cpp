// The router kernels of the CUDA engine, their own source under the emulated GPU: logits against
// float64 within a derived bound and bit for bit where sums are exact; the choice against a sort;
// both against themselves for every batch, number of blocks and schedule. native_cuda_router.cpp
// builds the same tests for a real GPU.
#include <list>

#include "router_fixture.h"

using namespace mimo_rt;
using namespace fixture;

namespace {

using cuda::RouterFormat;

/// One token and one expert; units that are not full; 512 experts; rows whose segments are empty,
/// ragged, or need more than one stage of the ring.
std::list<Router> awkward_routers(bool is_exact) {
  std::list<Router> routers;
  const uint32_t shapes[][3] = {{1, 32, 1}, {7, 64, 3}, {512, 96, 2}, {6, 2080, 9}, {3, 8512, 8}};
  for (const RouterFormat format : {RouterFormat::f32, RouterFormat::bf16})
    for (const auto& [experts, hidden, tokens] : shapes)
      routers.emplace_back(format, experts, format == RouterFormat::bf16 ? 2 * hidden : hidden,
                           tokens, experts, is_exact);
  return routers;
}

/// Largest error over its bound: hidden_size FMAs, 5 levels of the tree, 8 segments.
double worst_logit(const Router& router, const std::vector<float>& logits) {
  const double n = router.hidden_size + 13.0, u = 0x1p-24;
  double worst = 0;
  for (uint32_t t = 0; t < router.num_tokens; ++t)
    for (uint32_t e = 0; e < router.num_experts; ++e) {
      const Product exact = router.dot(t, e);
      const double error = std::abs(double{logits[t * router.num_experts + e]} - exact.value);
      const double bound = n * u / (1 - n * u) * exact.magnitude;
      worst = std::max(worst, std::isnan(error) ? INFINITY : error / bound);
    }
  return worst;
}

/// Whether the route is what the tokens' choices make, slots by expert, then by token.
bool is_route_of(const Selection& selection, const RouteTable& route) {
  std::vector<Route::Choice> choices;
  for (uint32_t t = 0; t < selection.num_tokens; ++t)
    for (const auto& [expert, weight] : selection.reference(t))
      choices.push_back({expert, t, static_cast<float>(weight)});
  const Route expected(selection.num_tokens, choices);
  const auto is_equal = [](const KernelVector<uint32_t>& list, const uint32_t* other) {
    return std::equal(list.begin(), list.end(), other);
  };
  bool is_right = *route.num_active == expected.num_active && is_equal(expected.active_experts, route.active_experts) &&
                  is_equal(expected.slot_begin, route.slot_begin) && is_equal(expected.slot_token, route.slot_token);
  // The exponential to 2 units, 3 roundings; as many sums as experts; a division and a product.
  const double bound = (selection.experts_per_token + 12) * 0x1p-24;
  for (uint32_t s = 0; s < expected.num_slots(); ++s) {
    const double weight = double{expected.slot_weight[s]};
    is_right &= std::abs(double{route.slot_weight[s]} - weight) <= bound * weight;
  }
  return is_right && selection.words[selection.num_words()] == 0xdeadbeefu;
}

/// {tokens, experts, experts per token}
constexpr uint32_t kSelections[][3] = {{1, 1, 1},   {1, 384, 8}, {8, 384, 8}, {3, 33, 32},
                                       {64, 512, 8}, {17, 7, 2}, {5, 100, 5}};

}  // namespace

TEST_CASE("logits are within the bound of float64; with 32 signs changed they are not") {
  for (Router& router : awkward_routers(false)) {
    const std::vector<float> logits = route_logits(router);
    CHECK(worst_logit(router, logits) <= 1.0);
    for (uint32_t k = router.hidden_size - 32; k < router.hidden_size; ++k)
      router.x.at(router.num_tokens - 1, k) ^= 0x8000;
    CHECK(worst_logit(router, logits) > 1.0);
  }
}

TEST_CASE("logits are exact where every partial sum is") {
  for (const Router& router : awkward_routers(true)) {
    const std::vector<float> logits = route_logits(router);
    uint32_t num_different = 0;
    for (uint32_t t = 0; t < router.num_tokens; ++t)
      for (uint32_t e = 0; e < router.num_experts; ++e) {
        const Product exact = router.dot(t, e);
        CHECK(exact.magnitude < 0x1p+19);  // multiples of 2^-4
        num_different += logits[t * router.num_experts + e] != exact.value;
      }
    CHECK_EQ(num_different, 0u);
  }
}

TEST_CASE("a token's logits have the same bits alone, in any batch and schedule") {
  for (const RouterFormat format : {RouterFormat::f32, RouterFormat::bf16}) {
    const Router router(format, 10, 736, 21, 5);
    const std::vector<float> logits = route_logits(router);
    for (uint64_t seed = 1; seed <= 4; ++seed)
      CHECK(route_logits(router, {.num_blocks = static_cast<uint32_t>(2 * seed - 1),
                                  .seed = seed}) == logits);
    for (const uint32_t t : {0u, 8u, 20u}) {
      Router alone(format, 10, 736, 1, 5);
      std::copy_n(&router.x.at(t, 0), router.hidden_size, alone.x.data);
      const std::vector<float> own = route_logits(alone, {.num_blocks = 3});
      CHECK(!std::memcmp(own.data(), &logits[t * 10], 40));
      alone.x.data[3] ^= 1;  // the comparison sees one bit
      CHECK(route_logits(alone) != own);
    }
  }
}

TEST_CASE("the route is that of a sort, ties to the lower expert, in every schedule") {
  for (const auto& [tokens, experts, chosen] : kSelections)
    for (const uint32_t variant : {0u, 1u, 2u}) {
      Selection selection(tokens, experts, chosen, experts + variant);
      selection.has_bias = variant != 1;
      selection.is_normalised = variant != 2;
      selection.factor = variant == 2 ? 2.5f : 1.0f;
      const cuda::SelectExpertsParams params = selection.params();
      run(params, {});
      CHECK(is_route_of(selection, params.route));
      const std::vector<uint32_t> words(selection.words.begin(), selection.words.end());
      run(selection.params(), {.seed = 3 + variant});
      CHECK(std::equal(words.begin(), words.end(), selection.words.begin()));
      selection.factor *= 1.00001f;  // controls: weights, and one choice
      CHECK(!is_route_of(selection, params.route));
      selection.factor = params.routed_scaling_factor;
      if (chosen == experts) continue;
      selection.logits.at(tokens - 1, selection.reference(tokens - 1).front().first) = NAN;
      CHECK(!is_route_of(selection, params.route));
    }
}

TEST_CASE("equal logits choose the lowest experts; NaN loses, but there are always enough") {
  for (const float value : {0.5f, -INFINITY, static_cast<float>(NAN)}) {
    Selection selection(2, 70, 4, 1);
    selection.has_bias = false;
    std::fill_n(selection.logits.data, 2 * selection.logits.stride, value);
    selection.logits.at(1, 69) = 100.0f;
    selection.logits.at(1, 30) = std::isnan(value) ? -INFINITY : NAN;
    const cuda::SelectExpertsParams params = selection.params();
    run(params, {});
    const RouteTable& route = params.route;
    const std::vector<uint32_t> token_1 = std::isnan(value)
                                              ? std::vector<uint32_t>{0, 1, 30, 69}
                                              : std::vector<uint32_t>{0, 1, 2, 69};
    std::vector<uint32_t> of_token[2];
    for (uint32_t i = 0; i < *route.num_active; ++i)
      for (uint32_t s = route.slot_begin[i]; s < route.slot_begin[i + 1]; ++s)
        of_token[route.slot_token[s]].push_back(route.active_experts[i]);
    CHECK(of_token[0] == (std::vector<uint32_t>{0, 1, 2, 3}));
    CHECK(of_token[1] == token_1);
  }
}

TEST_CASE("a token's weights have the same bits alone and in any batch") {
  Selection whole(64, 512, 8, 9);
  const cuda::SelectExpertsParams params = whole.params();
  run(params, {});
  for (const uint32_t t : {0u, 31u, 63u}) {
    Selection alone(1, 512, 8, 9);
    std::copy_n(&whole.logits.at(t, 0), 512, alone.logits.data);
    const cuda::SelectExpertsParams own = alone.params();
    run(own, {.seed = t});
    std::vector<float> expected;
    for (uint32_t s = 0; s < 512; ++s)
      if (params.route.slot_token[s] == t) expected.push_back(params.route.slot_weight[s]);
    CHECK(std::equal(expected.begin(), expected.end(), own.route.slot_weight));
    CHECK_EQ(expected.size(), 8u);
  }
}

TEST_CASE("arguments that the kernels cannot take are refused by name") {
  using enum ErrorCode;
  const Router router(RouterFormat::f32, 8, 64, 2, 1);
  AlignedRows<float> logits(2, 8, 0);
  const cuda::RouterLogitsParams good = router.params(logits);
  const auto refused = check::refusal_of(good, cuda::check_router_logits);
  using P = cuda::RouterLogitsParams&;
  refused(unsupported_shape, "hidden_size: expected a multiple of 32",
          [](P p) { p.hidden_size = 48; });
  refused(unsupported_shape, "num_experts: expected 1 .. 512, got 513",
          [](P p) { p.num_experts = 513; });
  refused(capacity, "num_tokens: expected 1 .. 64, got 65", [](P p) { p.num_tokens = 65; });
  refused(invalid_argument, "weights: expected an address", [](P p) { p.weights += 4; });
  refused(invalid_argument, "x.stride", [](P p) { p.x.stride = 56; });
  refused(invalid_argument, "logits.stride", [](P p) { p.logits.stride = 4; });

  Selection selection(8, 64, 8, 1);
  const cuda::SelectExpertsParams good_selection = selection.params();
  const auto refused_selection = [&](ErrorCode code, const std::string& needle,
                                     const auto& change) {
    cuda::SelectExpertsParams bad = good_selection;
    change(bad);
    check::throws(__FILE__, __LINE__, code, needle, [&] { cuda::check_select_experts(bad); });
  };
  using S = cuda::SelectExpertsParams&;
  refused_selection(unsupported_shape, "num_experts", [](S p) { p.num_experts = 0; });
  refused_selection(capacity, "num_tokens", [](S p) { p.num_tokens = 0; });
  refused_selection(unsupported_shape, "experts_per_token: expected 1 .. 32, got 33",
                    [](S p) { p.experts_per_token = 33; });
  refused_selection(unsupported_shape, "experts_per_token: expected 1 .. 4, got 8", [](S p) {
    p.num_experts = 4;
  });
  refused_selection(capacity, "num_tokens * experts_per_token: expected at most 512, got 576",
                    [](S p) {
                      p.num_tokens = 64;
                      p.experts_per_token = 9;
                    });
  refused_selection(invalid_argument, "logits: expected an address", [](S p) { ++p.logits.data; });
  refused_selection(invalid_argument, "route.slot_weight",
                    [](S p) { p.route.slot_weight = nullptr; });
}

#if !defined(MIMO_RT_TEST_ON_GPU)
TEST_CASE("weights come once for every 8 tokens") {
  for (const auto& [num_tokens, num_passes] : {std::pair{1u, 1u}, {8u, 1u}, {9u, 2u}, {64u, 8u}}) {
    const Router router(RouterFormat::bf16, 10, 736, num_tokens, 5);
    AlignedRows<float> logits(num_tokens, 12, 0);
    const cuda::RouterLogitsParams params = router.params(logits);
    emulation::LaunchOptions options = options_of(params, {});
    uint64_t num_bytes = 0;
    options.on_copy = [&](const emulation::BulkCopy& copy) { num_bytes += copy.num_bytes; };
    run_emulated(kernel_of(params), params, options);
    CHECK_EQ(num_bytes, num_passes * uint64_t{10} * 736 * 2);
  }
}

TEST_CASE("every barrier and every wait that is left out is found") {
  using emulation::Skip;
  const auto is_ever_found = [](const auto& is_found) {
    for (uint64_t seed = 1; seed <= 200; ++seed)
      if (is_found(seed)) return true;
    return false;
  };
  const Router router(RouterFormat::f32, 12, 512, 2, 3);
  const std::vector<float> expected = route_logits(router);
  for (const auto& [skip, ordinal] : {std::pair{Skip::named_barrier, 0u},
                                      {Skip::named_barrier, 1u},
                                      {Skip::named_barrier, 2u},
                                      {Skip::mbarrier_wait, 0u},
                                      {Skip::mbarrier_wait, 3u}})
    CHECK(is_ever_found([&, skip = skip, ordinal = ordinal](uint64_t seed) {
      AlignedRows<float> out(2, 12, -77.0f);
      const cuda::RouterLogitsParams params = router.params(out);
      emulation::LaunchOptions options = options_of(params, {.num_blocks = 1, .seed = seed});
      options.skip = skip;
      options.skip_ordinal = ordinal;
      options.max_copy_delay = skip == Skip::mbarrier_wait ? 200 : 4;
      const auto result = emulation::launch(options, kernel_of(params), params);
      return !result.error.empty() || !std::equal(expected.begin(), expected.end(), out.data);
    }));
  Selection selection(9, 60, 6, 5);
  run(selection.params(), {});
  const std::vector<uint32_t> words(selection.words.begin(), selection.words.end());
  for (const auto& [skip, ordinal] : {std::pair{Skip::named_barrier, 0u},
                                      {Skip::named_barrier, 1u},
                                      {Skip::named_barrier, 2u},
                                      {Skip::sync_warp, 0u},
                                      {Skip::sync_warp, 1u}})
    CHECK(is_ever_found([&, skip = skip, ordinal = ordinal](uint64_t seed) {
      const cuda::SelectExpertsParams params = selection.params();
      emulation::LaunchOptions options = options_of(params, {.seed = seed});
      options.skip = skip;
      options.skip_ordinal = ordinal;
      const auto result = emulation::launch(options, kernel_of(params), params);
      return !result.error.empty() ||
             !std::equal(words.begin(), words.end(), selection.words.begin());
    }));
}
#endif

CHECK_MAIN()
