// The attention kernels of the CUDA engine, their own source under the emulated GPU: against
// float64 within a derived bound, bit for bit where weights are equal or 0, and against themselves
// for every number of rows, blocks and schedule. native_cuda_attention.cpp builds the same tests
// for a real GPU.
#if !defined(MIMO_RT_TEST_ON_GPU)
#define MIMO_RT_HOST_EMULATION
#include "cuda/device/tasks/attention_kernels.cuh"
#endif

#include "attention_fixture.h"
#include "cuda/attention.h"
#include "kernel_launch.h"

using namespace mimo_rt;
using namespace fixture;

namespace {

constexpr bf16_t kUntouched = 0x7fc1;  // a NaN

#if defined(MIMO_RT_TEST_ON_GPU)
void run(const cuda::AttentionParams& params, const Launch& launch) {
  cuda::launch_attention(params, {.num_blocks = launch.num_blocks});
  finish();
}
#else
emulation::LaunchOptions attention_options(const Launch& launch) {
  return options_of(launch, cuda::kBlockThreads, sizeof(cuda::AttentionShared));
}
/// @return an error text, or ""
std::string run_both(const cuda::AttentionParams& params, emulation::LaunchOptions options) {
  const std::string error = emulation::launch(options, cuda::attention_kernel, params).error;
  if (!error.empty()) return error;
  options.num_threads = cuda::kComputeWarps * 32;
  options.shared_bytes = 0;
  options.skip = emulation::Skip::none;
  return emulation::launch(options, cuda::attention_combine_kernel, params).error;
}
void run(const cuda::AttentionParams& params, const Launch& launch) {
  cuda::check_attention(params);
  expect_none(run_both(params, attention_options(launch)));
}

struct GroupShiftProbe {
  cuda::AttentionParams params;
  uint32_t* shift;
};
void keep_group_shift(GroupShiftProbe probe) {
  if (blockIdx.x == 0 && threadIdx.x == 0)
    *probe.shift = cuda::AttentionCall(probe.params).group_shift;
}
#endif

/// out[num_rows, num_q_heads * v_head_dim]
std::vector<bf16_t> attend(Attention& call, const Launch& launch = {}) {
  const uint32_t width = call.shape.num_q_heads * call.shape.v_head_dim;
  AlignedRows<bf16_t> out(call.shape.num_rows + 1, width, kUntouched);
  run(call.params(out), launch);
  for (uint32_t i = 0; i < width; ++i) CHECK_EQ(out.at(call.shape.num_rows, i), kUntouched);
  return {out.data, out.data + uint64_t{call.shape.num_rows} * width};
}

/// Largest error over its bound.
double worst(const Attention& call, const std::vector<bf16_t>& out, int extra_keys = 0) {
  double ratio = 0;
  size_t i = 0;
  for (uint32_t r = 0; r < call.shape.num_rows; ++r)
    for (uint32_t h = 0; h < call.shape.num_q_heads; ++h)
      for (const Bounded& element : call.reference(r, h, extra_keys)) {
        const double error = std::abs(double{bf16_to_f32(out[i++])} - element.value);
        ratio = std::max(ratio, std::isnan(error) ? INFINITY : error / element.bound);
      }
  return ratio;
}

/// {rows, q heads, kv heads, qk dim, v dim, position, window, split}. The target's heads and the
/// draft's; one token at position 0; product tiles that are not full; one, two, three, five, eight
/// and nine tiles; windows that begin and end inside tiles, chunks and splits; rings that wrap.
std::vector<AttentionShape> awkward_shapes() {
  using Shape = AttentionShape;
  return {
      {1, 16, 1, 192, 128, 0, 0, 128},
      Shape{1, 32, 2, 192, 128, 300, 0, 128}.with_sinks(),
      {3, 12, 2, 32, 16, 63, 0, 64},
      Shape{4, 8, 1, 48, 48, 130, 20, 64}.with_ring(32).with_sinks(),
      Shape{8, 16, 1, 192, 128, 200, 128, 64}.with_ring(144).with_sinks(),
      Shape{8, 5, 1, 16, 80, 61, 7, 128}.with_ring(16),
      Shape{6, 8, 1, 64, 32, 190, 70, 128}.without_padding(),
      {9, 16, 1, 16, 16, 57, 0, 64},
      Shape{8, 16, 1, 128, 128, 150, 33, 64}.with_ring(48).as_draft().with_sinks(),
      Shape{2, 4, 2, 256, 16, 0, 0, 64}.as_draft(),
      Shape{5, 3, 3, 80, 128, 129, 0, 64}.as_draft(),
  };
}

/// More splits than a warp has lanes.
constexpr AttentionShape kLongShape{2, 8, 1, 16, 16, 2100, 0, 64};

}  // namespace

TEST_CASE("results are within the bound of float64; one key more or less is not") {
  for (const AttentionShape& shape : awkward_shapes()) {
    Attention call(shape, Values::random, shape.qk_head_dim + shape.position);
    const std::vector<bf16_t> out = attend(call);
    CHECK(worst(call, out) <= 1.0);
    if (shape.window_tokens) CHECK(worst(call, out, -1) > 1.0);
    const uint32_t last = shape.is_draft ? shape.num_rows - 1 : call.end() - 1;
    std::swap(call.key(0, last, shape.is_draft, true)[1], call.q.data[0]);
    CHECK(worst(call, out) > 1.0);
  }
}

TEST_CASE("keys of equal score are averaged exactly, the sink counts as one of value 0") {
  std::vector<AttentionShape> shapes = awkward_shapes();
  shapes.push_back(kLongShape);
  for (const AttentionShape& shape : shapes) {
    Attention call(shape, Values::equal_scores, 7);
    const std::vector<bf16_t> out = attend(call);
    uint32_t num_different = 0, num_without_one_key = 0;
    size_t i = 0;
    for (uint32_t r = 0; r < shape.num_rows; ++r)
      for (uint32_t h = 0; h < shape.num_q_heads; ++h) {
        const uint32_t kv_head = h / (shape.num_q_heads / shape.num_kv_heads);
        const auto [first, last] = call.seen(r);
        for (uint32_t d = 0; d < shape.v_head_dim; ++d, ++i) {
          float sum = 0, count = shape.has_sinks ? 1 : 0;
          const auto add = [&](uint32_t pos, bool is_block) {
            sum += bf16_to_f32(call.key(kv_head, pos, is_block, true)[d]);
            ++count;
          };
          for (uint32_t pos = first; pos < last; ++pos) add(pos, false);
          for (uint32_t b = 0; shape.is_draft && b < shape.num_rows; ++b) add(b, true);
          num_different += out[i] != f32_to_bf16(sum / count);
          num_without_one_key += out[i] != f32_to_bf16(sum / (count + 1));
        }
      }
    CHECK_EQ(num_different, 0u);
    CHECK(num_without_one_key > 0);
  }
}

TEST_CASE("a key that scores high alone is selected exactly, whichever it is") {
  for (AttentionShape shape : awkward_shapes()) {
    shape.has_sinks = false;
    Attention call(shape, Values::selecting, 11);
    const std::vector<bf16_t> out = attend(call);
    uint32_t num_different = 0;
    size_t i = 0;
    for (uint32_t r = 0; r < shape.num_rows; ++r)
      for (uint32_t h = 0; h < shape.num_q_heads; ++h) {
        const uint32_t kv_head = h / (shape.num_q_heads / shape.num_kv_heads);
        const bf16_t* q = &call.q.at(r, h * shape.qk_head_dim);
        const auto wanted = static_cast<uint32_t>(
            std::find_if(q, q + shape.qk_head_dim, [](bf16_t x) { return x != 0; }) - q);
        const auto [first, last] = call.seen(r);
        std::vector<const bf16_t*> best, others;
        for (uint32_t pos = first; pos < last; ++pos)
          (pos % shape.qk_head_dim == wanted ? best : others)
              .push_back(call.key(kv_head, pos, false, true));
        for (uint32_t b = 0; shape.is_draft && b < shape.num_rows; ++b)
          (b % shape.qk_head_dim == wanted ? best : others)
              .push_back(call.key(kv_head, b, true, true));
        const auto& averaged = best.empty() ? others : best;
        for (uint32_t d = 0; d < shape.v_head_dim; ++d, ++i) {
          float sum = 0;
          for (const bf16_t* v : averaged) sum += bf16_to_f32(v[d]);
          num_different += out[i] != f32_to_bf16(sum / static_cast<float>(averaged.size()));
        }
      }
    CHECK_EQ(num_different, 0u);
  }
}

TEST_CASE("a key that scores high alone is selected, also where only the last of many splits has it") {
  constexpr uint32_t kDim = 15, kKey = 2095;  // in split 32
  Attention call(kLongShape, Values::selecting, 13);
  for (uint32_t pos = kDim; pos < kKey; pos += kLongShape.qk_head_dim)
    call.key(0, pos, false, false)[kDim] = 0;
  for (uint32_t i = 0; i < kLongShape.num_rows * call.q.stride; ++i)
    call.q.data[i] = i % kLongShape.qk_head_dim == kDim ? f32_to_bf16(1024.0f) : 0;
  const std::vector<bf16_t> out = attend(call);
  const bf16_t* value = call.key(0, kKey, false, true);
  for (uint32_t i = 0; i < out.size(); ++i) CHECK_EQ(out[i], value[i % kLongShape.v_head_dim]);
}

TEST_CASE("a row's results have the same bits alone and with any number of others") {
  for (AttentionShape shape :
       {AttentionShape{11, 16, 1, 48, 32, 120, 0, 128},
        AttentionShape{64, 5, 1, 16, 16, 250, 40, 64}.with_ring(112).with_sinks()}) {
    Attention whole(shape, Values::random, 21);
    const std::vector<bf16_t> out = attend(whole);
    const uint32_t width = shape.num_q_heads * shape.v_head_dim;
    for (const auto& [first, num_rows] :
         {std::pair{0u, 1u}, {10u, 1u}, {3u, 2u}, {5u, 3u}, {2u, 7u}}) {
      AttentionShape part_shape = shape;
      part_shape.num_rows = num_rows;
      part_shape.position += first;
      Attention part(part_shape, Values::random, 1);
      part.sinks = whole.sinks;
      for (uint32_t pos = part.begin(); pos < part.end(); ++pos)
        for (const bool is_value : {false, true})
          std::copy_n(whole.key(0, pos, false, is_value),
                      is_value ? shape.v_head_dim : shape.qk_head_dim,
                      part.key(0, pos, false, is_value));
      std::copy_n(&whole.q.at(first, 0), num_rows * whole.q.stride, part.q.data);
      const std::vector<bf16_t> own = attend(part, {.num_blocks = 1 + first, .seed = first});
      CHECK(!std::memcmp(own.data(), &out[first * width], own.size() * 2));
      part.q.data[1] ^= 0x40;  // the comparison sees one bit of one query
      const std::vector<bf16_t> changed = attend(part);
      CHECK(std::memcmp(changed.data(), own.data(), own.size() * 2) != 0);
    }
  }
}

TEST_CASE("rows of a block may be apart: each has the bits that it has with the others") {
  for (const AttentionShape& shape :
       {AttentionShape{6, 16, 1, 32, 16, 70, 30, 64}.with_ring(48).as_draft(),
        AttentionShape{8, 4, 2, 48, 32, 100, 0, 64}.as_draft(),
        AttentionShape{8, 4, 2, 32, 32, 3, 5, 64}.with_ring(16).as_draft()}) {
    Attention call(shape, Values::random, 7);
    const std::vector<bf16_t> whole = attend(call);
    const uint32_t width = shape.num_q_heads * shape.v_head_dim;
    call.num_call_rows = 1;
    for (call.first_row = 0; call.first_row < shape.num_rows; ++call.first_row) {
      const std::vector<bf16_t> own = attend(call, {.num_blocks = 2, .seed = call.first_row});
      CHECK(!std::memcmp(own.data(), &whole[call.first_row * width], 2 * width));
      if (call.first_row != 0)  // control
        CHECK(std::memcmp(own.data(), whole.data(), 2 * width) != 0);
    }
  }
}

TEST_CASE("the schedule and the number of blocks do not change a bit") {
  for (const AttentionShape& shape :
       {AttentionShape{2, 16, 1, 48, 48, 170, 0, 64},
        AttentionShape{6, 16, 1, 32, 16, 70, 30, 64}.with_ring(48).as_draft()}) {
    Attention call(shape, Values::random, 31);
    const std::vector<bf16_t> out = attend(call);
    for (uint64_t seed = 1; seed <= 10; ++seed)
      CHECK(attend(call, {.num_blocks = static_cast<uint32_t>(1 + seed % 5), .seed = seed}) == out);
  }
}

TEST_CASE("any size of the groups of pairs gives the same bits") {
  for (const AttentionShape& shape :
       {AttentionShape{11, 16, 1, 48, 32, 200, 128, 64}.with_ring(144).with_sinks(),
        AttentionShape{8, 16, 2, 32, 16, 70, 30, 64}.with_ring(48).as_draft()}) {
    Attention call(shape, Values::random, 51);
    const std::vector<bf16_t> whole = attend(call);
    AlignedRows<bf16_t> out(shape.num_rows, shape.num_q_heads * shape.v_head_dim, kUntouched);
    const cuda::AttentionParams params = call.params(out);
    for (const uint32_t num_blocks : {2u, 10u, 20u, 40u}) {  // all sizes, the largest first
      std::fill_n(out.data, whole.size(), kUntouched);
      run(params, {.num_blocks = num_blocks, .seed = num_blocks});
      CHECK(std::equal(whole.begin(), whole.end(), out.data));
    }
    call.q.data[1] ^= 0x40;  // control
    run(params, {});
    CHECK(!std::equal(whole.begin(), whole.end(), out.data));
  }
}

#if !defined(MIMO_RT_TEST_ON_GPU)
TEST_CASE("groups are as small as it takes to give most blocks keys") {
  const auto shift_of = [](uint32_t num_rows, uint32_t num_kv_heads, uint32_t window_tokens,
                           uint32_t split_keys, uint32_t position) {
    cuda::AttentionParams p;
    p.num_rows = num_rows;
    p.num_kv_heads = num_kv_heads;
    p.num_q_heads = 16 * num_kv_heads;
    p.window_tokens = window_tokens;
    p.split_keys = split_keys;
    p.max_context = 1u << 20;
    p.position = &position;
    uint32_t shift = 0;
    run_emulated(keep_group_shift, {p, &shift}, options_of({.num_blocks = 132}, 32, 0));
    return shift;
  };
  CHECK_EQ(shift_of(8, 1, 128, 64, 1020), 4u);    // a window of a rank of eight: 32 units, not 4
  CHECK_EQ(shift_of(8, 8, 128, 64, 1020), 5u);    // of the whole model: 128 units, not 32
  CHECK_EQ(shift_of(64, 8, 128, 64, 1020), 7u);   // many rows: 256 units
  CHECK_EQ(shift_of(8, 1, 0, 256, 8184), 5u);     // all keys: 128 units
  CHECK_EQ(shift_of(8, 1, 0, 256, 1000), 4u);     // of a short text, however long it may grow: 32
  CHECK_EQ(shift_of(8, 1, 0, 256, 1000000), 7u);  // of a long one: thousands
}
#endif

TEST_CASE("arguments that the kernels cannot take are refused by name") {
  Attention call({2, 4, 2, 32, 16, 100, 0, 64}, Values::random, 1);
  AlignedRows<bf16_t> out(2, 64, 0);
  const cuda::AttentionParams good = call.params(out);
  cuda::check_attention(good);
  const auto refused = check::refusal_of(good, cuda::check_attention);
  using P = cuda::AttentionParams&;
  using enum ErrorCode;
  refused(capacity, "num_rows: expected 1 .. 64, got 65", [](P p) { p.num_rows = 65; });
  refused(capacity, "num_rows", [](P p) { p.num_rows = 0; });
  refused(unsupported_shape, "qk_head_dim: expected a multiple of 16, 16 .. 256, got 40",
          [](P p) { p.qk_head_dim = 40; });
  refused(unsupported_shape, "v_head_dim: expected a multiple of 16, 16 .. 128, got 192",
          [](P p) { p.v_head_dim = 192; });
  refused(unsupported_shape, "num_q_heads: expected a multiple of num_kv_heads 2",
          [](P p) { p.num_q_heads = 3; });
  refused(unsupported_shape, "num_q_heads", [](P p) { p.num_kv_heads = 0; });
  refused(invalid_argument, "q: expected an address", [](P p) { ++p.q.data; });
  refused(invalid_argument, "q.stride: expected at least 128", [](P p) { p.q.stride = 120; });
  refused(invalid_argument, "out.stride", [](P p) { p.out.stride = 56; });
  refused(invalid_argument, "position: expected memory, got null",
          [](P p) { p.position = nullptr; });
  refused(invalid_argument, "partials: expected an address", [](P p) { ++p.partials; });
  refused(invalid_argument, "scale: expected > 0", [](P p) { p.scale = NAN; });
  refused(unsupported_shape, "split_keys: expected a multiple of 64, got 96",
          [](P p) { p.split_keys = 96; });
  refused(capacity, "max_context: expected num_rows 2", [](P p) { p.max_context = 1; });
  refused(invalid_argument, "kv.blocks", [](P p) { p.kv.blocks += 8; });
  refused(unsupported_shape, "kv.k_stride: expected a multiple of 8, 32 .. 272, got 36",
          [](P p) { p.kv.k_stride = 36; });
  refused(unsupported_shape, "kv.v_stride", [](P p) { p.kv.v_stride = 280; });
  refused(unsupported_shape, "kv.block_rows: expected a multiple of 8",
          [](P p) { p.kv.block_rows = 60; });
  refused(invalid_argument, "kv.v_begin", [](P p) { p.kv.v_begin -= 16; });
  refused(invalid_argument, "kv.block_bytes", [](P p) { p.kv.block_bytes += 8; });
  refused(capacity, "kv.block_rows: expected a ring of at least 102 rows, got 64",
          [](P p) { p.kv.pages = nullptr; });
  refused(capacity, "a ring of at least 66 rows", [](P p) {
    p.kv.pages = nullptr;
    p.window_tokens = 65;
  });
  refused(invalid_argument, "block.pages", [](P p) { p.block = p.kv; });
  refused(invalid_argument, "expected 0 without a block, got 1 and 0", [](P p) { p.first_row = 1; });
  const auto with_block = [](P p) {
    p.block = p.kv;
    p.block.pages = nullptr;
    p.num_rows = p.num_block_rows = 16;
  };
  refused(capacity, "block.block_rows: expected at least num_block_rows 16, got 8", [&](P p) {
    with_block(p);
    p.block.block_rows = 8;
  });
  refused(invalid_argument, "num_block_rows: expected at least first_row 1 + num_rows 16, got 16", [&](P p) {
    with_block(p);
    p.first_row = 1;
  });
}

#if !defined(MIMO_RT_TEST_ON_GPU)
TEST_CASE("a position beyond the context stops the kernel") {
  Attention call({2, 4, 2, 32, 16, 100, 0, 64}, Values::random, 1);
  AlignedRows<bf16_t> out(2, 64, 0);
  const cuda::AttentionParams params = call.params(out);
  call.position[0] = 101;
  CHECK(run_both(params, attention_options({})).find("trap") != std::string::npos);
}

TEST_CASE("every barrier and every wait that is left out is found") {
  Attention call({2, 32, 2, 32, 32, 150, 0, 128}, Values::random, 41);
  const std::vector<bf16_t> expected = attend(call);
  const auto is_found = [&](emulation::Skip skip, uint32_t ordinal, uint64_t seed) {
    AlignedRows<bf16_t> out(2, 1024, kUntouched);
    const cuda::AttentionParams params = call.params(out);
    emulation::LaunchOptions options = attention_options({.num_blocks = 1, .seed = seed});
    options.skip = skip;
    options.skip_ordinal = ordinal;
    // A copy that comes late shows a missing wait, one that comes at once a missing barrier.
    options.max_copy_delay = skip == emulation::Skip::mbarrier_wait ? 200 : 4;
    const std::string error = run_both(params, options);
    return !error.empty() || std::memcmp(out.data, expected.data(), expected.size() * 2) != 0;
  };
  const auto is_ever_found = [&](emulation::Skip skip, uint32_t ordinal) {
    for (uint64_t seed = 1; seed <= 200; ++seed)
      if (is_found(skip, ordinal, seed)) return true;
    return false;
  };
  using emulation::Skip;
  for (uint64_t seed = 1; seed <= 20; ++seed) CHECK(!is_found(Skip::none, 0, seed));
  // Barriers: of the ring; of q; then of each chunk's scores, and of its end. Waits: for the two
  // tiles of keys and all eight of values of the first chunk.
  for (uint32_t ordinal = 0; ordinal < 8; ++ordinal)
    CHECK(is_ever_found(Skip::named_barrier, ordinal));
  for (uint32_t ordinal = 0; ordinal < 10; ++ordinal)
    CHECK(is_ever_found(Skip::mbarrier_wait, ordinal));
}
#endif

CHECK_MAIN()
