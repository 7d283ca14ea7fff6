// What becomes of the results of the projection kernels: residual, qkv with RoPE, best scores; and
// the checks of their arguments. native_cuda_projection_stores.cpp: the same on a real GPU.
#include "projection_run.h"
#include "sampling_fixture.h"

using namespace mimo_rt;
using namespace fixture;

TEST_CASE("results are rounded, or added to the residual, once") {
  Dense dense(PackedFormat::bf16, 40, 96, 15);
  AlignedRows<bf16_t> x(10, 96, 0);
  fill_rows(x, 96, 16);
  ProjectionParams params = dense.params(x, 10);
  const std::vector<float> y = project(params);
  for (const bool is_residual : {false, true}) {
    AlignedRows<bf16_t> out(11, 48, kUntouched), before(11, 48, kUntouched);
    fill_rows(out, 40, 17);
    fill_rows(before, 40, 17);
    params.store = is_residual ? ProjectionStore::add_residual : ProjectionStore::bf16;
    params.out_bf16 = {out.data, out.stride};
    run(params, {});
    uint32_t num_different = 0, num_other = 0;
    for (uint32_t t = 0; t < 11; ++t)
      for (uint32_t i = 0; i < 48; ++i) {
        if (t == 10 || i >= 40) {
          CHECK_EQ(out.at(t, i), before.at(t, i));
          continue;
        }
        const float old = is_residual ? bf16_to_f32(before.at(t, i)) : 0.0f;
        num_different += out.at(t, i) != f32_to_bf16(old + y[t * 40 + i]);
        const float rounded = bf16_to_f32(f32_to_bf16(y[t * 40 + i]));  // twice, or not added
        num_other += out.at(t, i) != f32_to_bf16(is_residual ? old + rounded : old);
      }
    CHECK_EQ(num_different, 0u);
    CHECK(num_other > 0);
  }
}

TEST_CASE("gate and up become columns of a gated MLP") {
  constexpr uint32_t kWidth = 28, kTokens = 9, k = 160;
  Dense gate(PackedFormat::fp8_e4m3, kWidth, k, 31), up(PackedFormat::fp8_e4m3, kWidth, k, 32);
  AlignedRows<bf16_t> x(kTokens, k, 0), out(kTokens + 1, 32, kUntouched);
  fill_rows(x, k, 33);
  const std::vector<float> gates = project(gate.params(x, kTokens));
  const std::vector<float> ups = project(up.params(x, kTokens));
  const std::vector<MatrixSource> sources{gate.matrix->source, up.matrix->source};
  gate.pack({sources, RowOrder::alternate});
  ProjectionParams params = gate.params(x, kTokens);
  params.store = ProjectionStore::gate_up;
  params.out_bf16 = {out.data, out.stride};
  run(params, {});
  uint32_t num_swapped = 0;
  for (uint32_t i = 0; i < kTokens * kWidth; ++i) {
    const double exact = silu_f64(gates[i]) * ups[i];
    const double swapped = silu_f64(ups[i]) * gates[i];
    const double bound = (kBf16Unit + gamma_of(9, kFloatUnit)) * 1.01;
    const double y = bf16_to_f32(out.at(i / kWidth, i % kWidth));
    CHECK(std::abs(y - exact) <= bound * std::abs(exact) + 0x1p-110);  // expf underflows
    num_swapped += std::abs(y - swapped) > bound * std::abs(swapped) + 0x1p-110;
  }
  CHECK(num_swapped > 200);
  for (uint32_t i = 0; i < 32; ++i) CHECK_EQ(out.at(kTokens, i), kUntouched);
  for (uint32_t i = kWidth; i < 32; ++i) CHECK_EQ(out.at(0, i), kUntouched);
}

TEST_CASE("q, k and v are rotated, scaled and stored where the caller says") {
  LayerConfig layer{};
  layer.num_q_heads = 3;
  layer.num_kv_heads = 2;
  layer.qk_head_dim = 40;
  layer.v_head_dim = 24;
  layer.rotary_dim = 20;  // 10 pairs: the second tile of a head is ragged
  constexpr uint32_t kTokens = 5, kMissing = 3, k = 160, kHeadStride = 56, kQ = 120, kK = 80;
  constexpr float kValueScale = 0.612f;
  Dense dense(PackedFormat::fp8_e4m3, kQ + kK + 48, k, 19);
  MatrixSource q = dense.matrix->source, keys = q, values = q;
  q.rows = kQ;
  keys.rows = kK;
  keys.first_row = kQ;
  values.rows = 48;
  values.first_row = kQ + kK;
  AlignedRows<bf16_t> x(kTokens, k, 0);
  fill_rows(x, k, 20);
  const std::vector<float> y = project(dense.params(x, kTokens));  // the plain matrix

  const std::vector<QkvTile> tile_list = qkv_tiles(layer);
  KernelVector<QkvTile> tiles(tile_list.begin(), tile_list.end());
  dense.pack({{q, keys, values}, RowOrder::qkv, &layer, &tile_list});
  AlignedRows<bf16_t> q_out(kTokens + 1, kQ + 8, kUntouched);
  // A ring of 4 rows and pages in any order: token t has row 7 * t % 6, token 3 none.
  AlignedRows<bf16_t> cache_k(6, 2 * kHeadStride, kUntouched);
  AlignedRows<bf16_t> cache_v(6, 2 * kHeadStride, kUntouched);
  KernelVector<uint16_t*> k_rows(kTokens), v_rows(kTokens);
  KernelVector<float> cos_sin(kTokens * 20);
  for (uint32_t t = 0; t < kTokens; ++t) {
    k_rows[t] = t == kMissing ? nullptr : &cache_k.at(7 * t % 6, 0);
    v_rows[t] = t == kMissing ? nullptr : &cache_v.at(5 * t % 6, 0);
    for (uint32_t pair = 0; pair < 10; ++pair) {
      cos_sin[t * 20 + 2 * pair] = std::cos(0.3f * static_cast<float>(t * (pair + 1)));
      cos_sin[t * 20 + 2 * pair + 1] = std::sin(0.3f * static_cast<float>(t * (pair + 1)));
    }
  }
  ProjectionParams params = dense.params(x, kTokens);
  params.store = ProjectionStore::qkv;
  params.qkv = {tiles.data(),   {q_out.data, q_out.stride}, k_rows.data(), v_rows.data(),
                kHeadStride,    kHeadStride,                cos_sin.data(), 40,
                20,             kValueScale,                layer.num_q_heads};
  run(params, {.num_blocks = 3, .seed = 4});

  // Every stored value from the plain results; `sign` -1 turns the wrong way.
  const auto count_different = [&](double sign) {
    uint32_t num_different = 0;
    const auto check_head = [&](const float* head, const bf16_t* stored, uint32_t t) {
      for (uint32_t dim = 0; dim < 40; ++dim) {
        double exact = head[dim], magnitude = std::abs(exact);
        if (dim < 20) {
          const uint32_t pair = dim % 10, partner = dim < 10 ? dim + 10 : pair;
          const double turned = double{head[partner]} * cos_sin[t * 20 + 2 * pair + 1];
          exact = exact * cos_sin[t * 20 + 2 * pair] + sign * (dim < 10 ? -turned : turned);
          magnitude += std::abs(turned);
        }
        const double bound = kBf16Unit * std::abs(exact) + gamma_of(3, kFloatUnit) * magnitude;
        const double error = std::abs(bf16_to_f32(stored[dim]) - exact);
        num_different += !(error <= bound);
      }
    };
    for (uint32_t t = 0; t < kTokens; ++t) {
      const float* row = &y[t * dense.rows()];
      for (uint32_t h = 0; h < 3; ++h) check_head(row + h * 40, &q_out.at(t, h * 40), t);
      for (uint32_t h = 0; h < 2 && t != kMissing; ++h) {
        check_head(row + kQ + h * 40, k_rows[t] + h * kHeadStride, t);
        for (uint32_t dim = 0; dim < 24; ++dim)
          num_different += v_rows[t][h * kHeadStride + dim] !=
                           f32_to_bf16(kValueScale * row[kQ + kK + h * 24 + dim]);
      }
    }
    return num_different;
  };
  CHECK_EQ(count_different(1), 0u);
  CHECK(count_different(-1) > 50);
  uint32_t num_written = 0;
  for (uint32_t r = 0; r < 6; ++r)
    for (uint32_t i = 0; i < 2 * kHeadStride; ++i) {
      num_written += cache_k.at(r, i) != kUntouched;
      num_written += cache_v.at(r, i) != kUntouched;
    }
  CHECK_EQ(num_written, 4 * 2 * (40u + 24u));
  for (uint32_t i = 0; i < kQ + 8; ++i) CHECK_EQ(q_out.at(kTokens, i), kUntouched);
  for (uint32_t i = kQ; i < kQ + 8; ++i) CHECK_EQ(q_out.at(0, i), kUntouched);
}

TEST_CASE("the token is the lowest of the largest, for any number of blocks") {
  constexpr uint32_t kRows = 90, kTokens = cuda::kMaxScoredTokens, kOverflow = 8, kNone = 9, k = 64;
  Dense dense(PackedFormat::bf16, kRows, k, 23);
  const auto copy_row = [&](uint32_t to, uint32_t from) {
    std::memcpy(dense.matrix->weight_data() + to * k * 2,
                dense.matrix->weight_data() + from * k * 2, k * 2);
  };
  for (uint32_t row = 0; row < 40; ++row) copy_row(row + 45, row);  // every maximum is there twice
  dense.pack();
  AlignedRows<bf16_t> x(kTokens, k, 0);
  fill_rows(x, k, 24);
  std::fill_n(&x.at(7, 0), k, bf16_t{0});  // all equal: column 0
  std::fill_n(&x.at(kOverflow, 0), k, f32_to_bf16(0x1.8p+127f));
  std::fill_n(&x.at(kNone, 0), k, f32_to_bf16(NAN));
  ProjectionParams params = dense.params(x, kTokens);
  const std::vector<float> y = project(params);
  CHECK(std::count(&y[kOverflow * kRows], &y[(kOverflow + 1) * kRows], INFINITY) > 0);
  for (const uint32_t num_blocks : {1u, 3u, 7u}) {  // equal columns of one block or two; blocks without a column
    SampleCall call({.temperature = 0.0f}, kTokens, kRows, Logits::none, 5);
    KernelVector<uint64_t> memory(cuda::SampleScratch::bytes(kTokens, kRows, num_blocks) / 8, 0);
    KernelVector<cuda::SampleParams> calls(1, call.kernel_params());
    calls[0].scratch = cuda::SampleScratch::view(reinterpret_cast<uint8_t*>(memory.data()), kTokens, kRows, num_blocks);
    KernelVector<uint32_t> num_rows(1, kTokens), arrived(kTokens, 0);
    KernelVector<cuda::SampledRows> rows(1, {calls.data(), num_rows.data(), arrived.data(), false});
    params.store = ProjectionStore::scores;
    params.out_f32 = {call.logits.data, call.logits.stride};
    params.sampled = rows.data();
    run(params, {.num_blocks = num_blocks, .seed = num_blocks});
    run(cuda::SampleRowsParams{rows.data(), kTokens}, {.num_blocks = num_blocks, .seed = num_blocks});
    uint32_t num_ties = 0;
    for (uint32_t t = 0; t < kTokens; ++t) {
      CHECK(!std::memcmp(call.row(t), &y[t * kRows], kRows * 4));
      int32_t best = -1, last = -1;
      for (uint32_t i = 0; i < kRows; ++i) {
        const float logit = y[t * kRows + i], value = best < 0 ? -INFINITY : y[t * kRows + static_cast<uint32_t>(best)];
        if (!std::isfinite(logit) || logit < value) continue;
        last = static_cast<int32_t>(i);
        if (logit > value) best = last;
      }
      CHECK_EQ(call.tokens[t], best);
      CHECK_EQ(best < 0, t == kNone);
      num_ties += best != last;
    }
    CHECK(num_ties > kTokens / 2);  // they are common: the rule decides
    CHECK_EQ(call.tokens[kTokens], -77);
  }
}

TEST_CASE("the best score of each block is that of its columns, by the rules of the row; rows that are not drawn have none") {
  constexpr uint32_t kRows = 150, kTokens = 7, kSampled = 5, k = 64;
  Dense dense(PackedFormat::bf16, kRows, k, 27);
  AlignedRows<bf16_t> x(kTokens, k, 0);
  fill_rows(x, k, 28);
  std::fill_n(&x.at(2, 0), k, bf16_t{0});         // all equal
  std::fill_n(&x.at(3, 0), k, f32_to_bf16(NAN));  // no token
  ProjectionParams params = dense.params(x, kTokens);
  const std::vector<float> y = project(params);
  const SamplingParams plain{.temperature = 0.0f};
  const SamplingParams ruled{.repetition_penalty = 1.4f, .logit_bias = {{3, 9.0f}, {70, -9.0f}}};
  for (const SamplingParams& sampling : {plain, ruled})
    for (const bool has_call_per_row : {false, true})
      for (const uint32_t num_blocks : {1u, 4u}) {
        SampleCall call(sampling, kSampled, kRows, Logits::normal, 5);
        for (uint32_t t = 0; t < kSampled; ++t)
          std::copy_n(&y[t * kRows], kRows, &call.logits.at(t, 0));
        call.masked = {0, 9, 40};
        call.num_masked_rows = 2;
        (void)call.sample();  // finds the best of each slice, and a row has one
        KernelVector<uint64_t> memory(cuda::SampleScratch::bytes(kSampled, kRows, num_blocks) / 8, 0);
        KernelVector<cuda::SampleParams> calls;
        for (uint32_t t = 0; t < (has_call_per_row ? kSampled : 1); ++t) {
          calls.push_back(call.kernel_params());
          auto* own = reinterpret_cast<uint8_t*>(memory.data()) + t * cuda::SampleScratch::bytes(1, kRows, num_blocks);
          calls[t].scratch = cuda::SampleScratch::view(own, has_call_per_row ? 1 : kSampled, kRows, num_blocks);
          if (has_call_per_row) calls[t].num_masked_rows = t < call.num_masked_rows;
        }
        KernelVector<uint32_t> num_rows(1, kSampled);
        KernelVector<cuda::SampledRows> rows(1);
        rows[0] = {calls.data(), num_rows.data(), nullptr, has_call_per_row};
        AlignedRows<float> out(kTokens, 152, -77.0f);
        params.store = ProjectionStore::scores;
        params.out_f32 = {out.data, out.stride};
        params.sampled = rows.data();
        run(params, {.num_blocks = num_blocks, .seed = num_blocks});
        for (uint32_t t = 0; t < kTokens; ++t) CHECK(!std::memcmp(&out.at(t, 0), &y[t * kRows], 4 * kRows));
        for (uint32_t t = 0; t < kSampled; ++t) {
          const cuda::SampleScratch& scratch = calls[has_call_per_row ? t : 0].scratch;
          double score = -INFINITY;
          uint32_t id = ~0u;
          for (uint32_t block = 0; block < num_blocks; ++block) {
            const uint32_t place = (has_call_per_row ? 0 : t) * num_blocks + block;
            if (scratch.best_ids[place] == ~0u) continue;
            if (scratch.best_scores[place] < score) continue;
            if (scratch.best_scores[place] > score) id = ~0u;
            score = scratch.best_scores[place];
            id = std::min(id, scratch.best_ids[place]);
          }
          CHECK_EQ(id, call.view().best_ids[t]);
          if (id != ~0u) CHECK_EQ(score, call.view().best_scores[t]);
          CHECK_EQ(id == ~0u, t == 3);
        }
      }
}

TEST_CASE("arguments that the projections cannot take are refused by name") {
  alignas(16) static uint8_t memory[64];
  ProjectionParams good;
  good.tiles = memory;
  good.x = {reinterpret_cast<const bf16_t*>(memory), 96};
  good.num_tokens = 8;
  good.rows = 48;
  good.k = 96;
  good.num_columns = 40;
  good.out_f32 = {reinterpret_cast<float*>(memory), 40};
  good.out_bf16 = {reinterpret_cast<bf16_t*>(memory), 40};
  cuda::check_projection(good);
  const auto refused = check::refusal_of(good, cuda::check_projection);
  using P = ProjectionParams&;
  using enum ErrorCode;
  refused(unsupported_shape, "[cuda.projection] rows: expected a multiple of 16",
          [](P p) { p.rows = 40; });
  refused(unsupported_shape, "k: expected a multiple of 32", [](P p) { p.k = 80; });
  refused(capacity, "num_tokens: expected 1 .. 64, got 65", [](P p) { p.num_tokens = 65; });
  refused(capacity, "num_tokens", [](P p) { p.num_tokens = 0; });
  refused(invalid_argument, "tiles: expected an address", [](P p) { ++p.tiles; });
  refused(invalid_argument, "x.stride: expected at least 96", [](P p) { p.x.stride = 88; });
  refused(invalid_argument, "norm_weight: expected an address that is a multiple of 16",
          [](P p) { p.norm_weight = reinterpret_cast<const float*>(memory + 4); });
  refused(unsupported_shape, "num_segments: expected 1 .. 8", [](P p) { p.num_segments = 9; });
  refused(unsupported_shape, "num_columns: expected 1 .. 48, got 49",
          [](P p) { p.num_columns = 49; });
  refused(unsupported_shape, "num_columns: expected 1 .. 24, got 40",
          [](P p) { p.store = ProjectionStore::gate_up; });
  refused(invalid_argument, "out_f32: expected memory", [](P p) { p.out_f32.data = nullptr; });
  refused(capacity, "num_tokens: expected at most 16 to be scored, got 17", [](P p) {
    p.store = ProjectionStore::scores;
    p.num_tokens = 17;
  });
  refused(invalid_argument, "sampled: expected memory, got null", [](P p) {
    p.store = ProjectionStore::scores;
    p.sampled = nullptr;
  });
  refused(invalid_argument, "out_bf16.stride", [](P p) {
    p.store = ProjectionStore::add_residual;
    p.out_bf16.stride = 36;
  });
  refused(invalid_argument, "row_ids: expected an address that is a multiple of 4",
          [](P p) { p.row_ids = reinterpret_cast<const uint32_t*>(memory + 2); });
  refused(invalid_argument, "capture.rows: expected an address that is a multiple of 8", [](P p) {
    p.store = ProjectionStore::add_residual;
    p.capture.rows = reinterpret_cast<uint16_t* const*>(memory + 4);
  });
  refused(invalid_argument, "qkv.tiles", [](P p) { p.store = ProjectionStore::qkv; });
  const auto with_qkv = [](P p, uint32_t num_q_heads, uint32_t stride) {
    const auto* places = reinterpret_cast<uint16_t* const*>(memory);
    p.store = ProjectionStore::qkv;
    p.qkv = {.tiles = reinterpret_cast<const QkvTile*>(memory), .q = {p.out_bf16.data, stride}, .k_rows = places,
             .v_rows = places, .qk_head_dim = 16, .num_q_heads = num_q_heads};
  };
  ProjectionParams good_qkv = good;
  with_qkv(good_qkv, 2, 32);
  cuda::check_projection(good_qkv);
  refused(invalid_argument, "qkv.q.stride: expected at least 32", [&](P p) { with_qkv(p, 2, 24); });
  refused(unsupported_shape, "qkv.num_q_heads: expected 1 .. 3", [&](P p) { with_qkv(p, 0, 32); });
  refused(unsupported_shape, "qkv.num_q_heads", [&](P p) { with_qkv(p, 4, 64); });
  refused(invalid_argument, "store", [](P p) { p.store = static_cast<ProjectionStore>(9); });
  refused(invalid_argument, "format", [](P p) { p.format = cuda::ProjectionFormat{7}; });
  cuda::RmsNormParams norm{good.x, nullptr, good.out_f32.data, {good.out_bf16.data, 96}, 0, 9, 96};
  cuda::check_rms_norm(norm);
  norm.row_ids = reinterpret_cast<const uint32_t*>(memory + 1);
  CHECK_THROWS(invalid_argument, "[cuda.rms_norm] row_ids", cuda::check_rms_norm(norm));
  norm.row_ids = nullptr;
  norm.out.stride = 88;
  CHECK_THROWS(invalid_argument, "[cuda.rms_norm] out.stride", cuda::check_rms_norm(norm));
  norm.num_tokens = 0;
  CHECK_THROWS(capacity, "num_tokens", cuda::check_rms_norm(norm));
}

CHECK_MAIN()
