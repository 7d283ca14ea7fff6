// Attention as the persistent kernel's tasks cut it: the shares of a kv head divide its splits, and the last to be done
// combines them. Against the kernels that do all rows and splits in one call (test_cuda_attention.cpp compares those with
// float64), for any number of shares and blocks, in random schedules.
#define MIMO_RT_HOST_EMULATION
#include "cuda/device/tasks/attend_rows.cuh"
#include "cuda/device/tasks/attention_kernels.cuh"

#include "attention_fixture.h"
#include "cuda/attention.h"
#include "cuda/step_layout.h"
#include "kernel_launch.h"
#include "planted_faults.h"

#include <algorithm>
#include <numeric>
#include <optional>

using namespace mimo_rt;
using namespace fixture;

namespace {

/// The shares of all rows are dealt out to the blocks.
struct AttendRowsCall {
  cuda::AttendRowsParams params;
  uint32_t num_shares;  ///< of a row
};

void attend_rows_kernel(AttendRowsCall call) {
  auto& shared = *reinterpret_cast<cuda::AttendRowsShared*>(ptx::dynamic_shared_memory());
  if (threadIdx.x == 0) shared.attention.ring.init();
  ptx::named_barrier_sync(0, cuda::kBlockThreads);
  Task task{};
  task.tile_first = blockIdx.x;
  task.tile_stride = gridDim.x;
  task.tile_end = call.num_shares;
  uint32_t ticket = 0;
  if (threadIdx.x / 32 == cuda::kComputeWarps)
    cuda::load_attended_rows(shared, call.params, task, ticket);
  else
    cuda::compute_attended_rows(shared, call.params, task, ticket);
}

std::vector<bf16_t> results(const AlignedRows<bf16_t>& out, const AttentionShape& shape) {
  return {out.data, out.data + uint64_t{shape.num_rows} * shape.num_q_heads * shape.v_head_dim};
}

/// All rows in one call: [num_rows, num_q_heads * v_head_dim]
std::vector<bf16_t> attend_at_once(Attention& attention) {
  const AttentionShape& shape = attention.shape;
  AlignedRows<bf16_t> out(shape.num_rows, shape.num_q_heads * shape.v_head_dim, 0);
  const cuda::AttentionParams params = attention.params(out);
  cuda::check_attention(params);
  run_emulated(cuda::attention_kernel, params, options_of({}, cuda::kBlockThreads, sizeof(cuda::AttentionShared)));
  run_emulated(cuda::attention_combine_kernel, params, options_of({}, cuda::kComputeWarps * 32, 0));
  return results(out, shape);
}

/// A step of the rows of `attention`, with what its tasks look up.
class RowStep {
 public:
  explicit RowStep(Attention& attention)
      : attention_(attention), out_(attention.shape.num_rows, width(), 0),
        positions_(attention.shape.num_rows), arrived_(attention.shape.num_rows * attention.shape.num_kv_heads, 0) {
    const uint32_t num_rows = attention.shape.num_rows;
    cuda::AttentionParams call = attention.params(out_);
    std::iota(positions_.begin(), positions_.end(), attention.shape.position);
    call.num_rows = 1;
    params_.partial_floats = cuda::row_partial_floats(call);
    partials_.emplace(num_rows, params_.partial_floats, NAN);
    call.partials = partials_->data;
    tables_.positions = positions_.data();
    tables_.arrived = arrived_.data();
    params_.call = call;
    std::fill_n(tables_.kv, num_rows, cuda::KvSequence{.layers = &params_.call.kv, .features = {}});
    params_.step = &tables_;
    params_.num_tokens = num_rows;
  }

  /// @return an error text, or ""
  std::string try_run(uint32_t parts, const emulation::LaunchOptions& options) {
    std::fill_n(out_.data, results(out_, attention_.shape).size(), bf16_t{0x7fc1});  // a NaN
    const AttendRowsCall call{params_, parts * attention_.shape.num_kv_heads};
    return emulation::launch(options, attend_rows_kernel, call).error;
  }
  std::vector<bf16_t> run(uint32_t parts, const Launch& launch) {
    expect_none(try_run(parts, options(launch)));
    for (const uint32_t count : arrived_) CHECK_EQ(count, 0u);  // as the next layer wants them
    return out();
  }
  std::vector<bf16_t> out() const { return results(out_, attention_.shape); }
  static emulation::LaunchOptions options(const Launch& launch) {
    return options_of(launch, cuda::kBlockThreads, sizeof(cuda::AttendRowsShared));
  }

 private:
  uint32_t width() const { return attention_.shape.num_q_heads * attention_.shape.v_head_dim; }

  Attention& attention_;
  AlignedRows<bf16_t> out_;
  KernelVector<uint32_t> positions_, arrived_;
  std::optional<AlignedRows<float>> partials_;
  cuda::StepTables tables_;
  cuda::AttendRowsParams params_;
};

/// {rows, q heads, kv heads, qk dim, v dim, position, window, split}: five splits and more shares than that; rows of
/// one split beside rows of two; a window that touches three splits; a draft's block behind two splits of context, and
/// alone.
std::vector<AttentionShape> shapes() {
  using Shape = AttentionShape;
  return {
      {2, 16, 1, 48, 32, 300, 0, 64},
      Shape{3, 8, 2, 32, 16, 62, 0, 64}.with_sinks(),
      Shape{2, 4, 2, 32, 16, 190, 100, 64}.with_ring(112).with_sinks(),
      Shape{3, 6, 2, 32, 16, 100, 0, 64}.as_draft(),
      Shape{2, 4, 1, 16, 16, 0, 0, 64}.as_draft(),
  };
}

}  // namespace

TEST_CASE("any number of shares gives the bits of one call, in every schedule") {
  for (const AttentionShape& shape : shapes()) {
    Attention attention(shape, Values::random, 17);
    const std::vector<bf16_t> expected = attend_at_once(attention);
    RowStep step(attention);
    for (const uint32_t parts : {1u, 2u, 3u, 7u})
      for (uint64_t seed = 0; seed <= 2; ++seed)
        CHECK(step.run(parts, {.num_blocks = static_cast<uint32_t>(1 + (seed + parts) % 5), .seed = seed}) == expected);
    attention.q.data[1] ^= 0x40;  // the comparison sees one bit of one query
    CHECK(step.run(2, {}) != expected);
  }
}

TEST_CASE("shares of several rows count apart, whoever comes last") {
  Attention attention({3, 8, 2, 32, 16, 62, 0, 64}, Values::random, 19);
  const std::vector<bf16_t> expected = attend_at_once(attention);
  RowStep step(attention);
  for (uint64_t seed = 1; seed <= 4; ++seed) CHECK(step.run(2, {.num_blocks = 3, .seed = seed}) == expected);
}

TEST_CASE("every barrier that is left out is found") {
  Attention attention({2, 16, 1, 32, 32, 150, 0, 64}, Values::random, 41);
  const std::vector<bf16_t> expected = attend_at_once(attention);
  RowStep step(attention);
  const KnownLaunch launch{RowStep::options({.num_blocks = 2}),
                           [&](const emulation::LaunchOptions& options) { return step.try_run(2, options); },
                           [&] { return step.out() == expected; }};
  for (uint64_t seed = 1; seed <= 20; ++seed) CHECK(!launch.is_seen(emulation::Skip::none, 0, seed));
  // Of the ring; of q; of the scores and the end of a chunk; of who combines; of the end of a share. Before its count (of
  // the second share: with the first the other block would have to be faster than the warps beside). Without that of the
  // call (1) a division by zero ends the test.
  launch.expect_seen(emulation::Skip::named_barrier, {0, 2, 3, 4, 6, 7, 12});
}

TEST_CASE("a share that counts itself in without order looks right: only ThreadSanitizer finds it") {
  Attention attention({1, 16, 1, 32, 32, 100, 0, 64}, Values::random, 43);
  const std::vector<bf16_t> expected = attend_at_once(attention);
  RowStep step(attention);
  emulation::LaunchOptions options = RowStep::options({.num_blocks = 2});
  options.skip = emulation::Skip::count_order;
  CHECK(step.try_run(2, options).empty());
  CHECK(step.out() == expected);
}

CHECK_MAIN()
