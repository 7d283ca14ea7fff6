// The CUDA subjects of `mimo-rt kbench` with fused parts, with a draft, and of several kernels: right
// ones pass their check, wrong ones do not, and what no kernel can take is refused by name. They run
// the kernels' own source under emulation.
#include "emulated_bench_device.h"
#include "kbench/cuda_subjects.h"

#include <cmath>

using namespace mimo_rt;
using namespace fixture;

namespace {

using Make = std::unique_ptr<kbench::Subject> (*)(const KernelCase&, const KernelBenchOptions&,
                                                  std::unique_ptr<cuda::BenchDevice>);

KernelCase named(const char* kernel, const char* format, uint32_t num_tokens) {
  KernelCase c;
  c.kernel = kernel;
  c.format = format;
  c.num_tokens = num_tokens;
  return c;
}

KernelCase matrix(const char* kernel, const char* format, uint32_t num_tokens) {
  KernelCase c = named(kernel, format, num_tokens);
  c.rows = 80;
  c.k = 160;
  return c;
}

KernelCase qkv(const char* format, uint32_t num_tokens) {
  KernelCase c = named("gemm_qkv", format, num_tokens);
  c.k = 96;
  c.num_kv_heads = 2;
  c.num_q_per_kv = 2;
  c.qk_head_dim = 48;  // 16 of them rotate
  c.v_head_dim = 24;   // ends inside a tile
  return c;
}

KernelCase draft(uint32_t num_tokens, uint32_t num_keys, bool is_ring) {
  KernelCase c = named("attention_draft", "bf16", num_tokens);
  c.num_kv_heads = 2;
  c.num_q_per_kv = 3;
  c.qk_head_dim = c.v_head_dim = 32;
  c.num_keys = num_keys;
  c.window_tokens = is_ring ? num_keys : 0;
  c.split_keys = 64;
  return c;
}

KernelCase route(const char* format, uint32_t num_tokens) {
  KernelCase c = named("route", format, num_tokens);
  c.num_experts = 21;
  c.experts_per_token = 4;
  c.hidden_size = 352;
  return c;
}

KernelCase norm(uint32_t num_tokens) {
  KernelCase c = named("rms_norm", "bf16", num_tokens);
  c.hidden_size = 352;
  return c;
}

KernelCase verification(uint32_t num_tokens, uint32_t vocab_size) {
  KernelCase c = named("sample_verify", "f32", num_tokens);
  c.vocab_size = vocab_size;
  return c;
}

KernelBenchOptions small() {
  KernelBenchOptions options;
  options.rotation_bytes = 100'000;
  return options;
}

/// Something wrong in the parameters of one kind of launch.
template <typename Params>
struct BrokenDevice : EmulatedBenchDevice {
  explicit BrokenDevice(void (*change_)(Params&)) : change(change_) {}
  using EmulatedBenchDevice::launch;
  void launch(const Params& params) override {
    Params broken = params;
    change(broken);
    EmulatedBenchDevice::launch(broken);
  }
  void (*change)(Params&);
};

/// Whose first block alone says which of its columns is the best.
struct OneBlockDevice : EmulatedBenchDevice {
  using EmulatedBenchDevice::launch;
  void launch(const cuda::SampleRowsParams& params) override {
    const cuda::SampleScratch& scratch = params.rows->calls[0].scratch;
    for (uint32_t i = 0; i < params.num_rows * scratch.num_parts; ++i)
      if (i % scratch.num_parts != 0) scratch.best_ids[i] = ~0u;
    EmulatedBenchDevice::launch(params);
  }
};

double worst_error(Make make, const KernelCase& c,
                   std::unique_ptr<cuda::BenchDevice> device = std::make_unique<EmulatedBenchDevice>()) {
  return make(c, small(), std::move(device))->worst_error();
}
template <typename Params>
double worst_with(Make make, const KernelCase& c, void (*change)(Params&)) {
  return worst_error(make, c, std::make_unique<BrokenDevice<Params>>(change));
}

void expect_right(double error) { CHECK(error > 0 && error <= 1.0); }

}  // namespace

TEST_CASE("memory that the GPU lacks: what was asked for and what is free") {
  EmulatedBenchDevice device;
  device.free_bytes_left = 1000;
  CHECK_THROWS(out_of_memory, "expected room for 2000 bytes on emulated, where 1000 are free.", device.allocate(2000));
  CHECK_THROWS(out_of_memory, "reads: expected 1001 free bytes on emulated, got 1000; 1 are missing. Close others.",
               cuda::check_free(device, 1001, "reads", "Close others."));
  cuda::check_free(device, 1000, "reads", "Close others.");
}

TEST_CASE("projections with fused parts pass their check; with another norm or residual they do not") {
  using P = cuda::ProjectionParams;
  for (const char* format : {"fp8_e4m3", "bf16"})
    for (const uint32_t num_tokens : {1u, 5u, 9u}) {
      for (const char* kernel : {"gemm_normed", "gemm_gate_up", "gemm_residual"}) {
        const KernelCase c = matrix(kernel, format, num_tokens);
        expect_right(worst_error(kbench::make_cuda_gemm, c));
        CHECK(worst_with<P>(kbench::make_cuda_gemm, c, [](P& p) {  // leaves columns as they were
                p.rows -= 16;
                p.num_columns -= p.store == cuda::ProjectionStore::gate_up ? 8 : 16;
              }) > 1.0);
      }
      CHECK(worst_with<P>(kbench::make_cuda_gemm, matrix("gemm_normed", format, num_tokens),
                          [](P& p) { p.norm_eps = 0.1f; }) > 1.0);
      CHECK(worst_with<P>(kbench::make_cuda_gemm, matrix("gemm_residual", format, num_tokens),
                          [](P& p) { p.store = cuda::ProjectionStore::bf16; }) > 1.0);
      CHECK(worst_with<P>(kbench::make_cuda_gemm, matrix("gemm_gate_up", format, num_tokens), [](P& p) {
              p.store = cuda::ProjectionStore::bf16;  // gate without up
            }) > 1.0);
    }
}

TEST_CASE("q, k and v pass their check; turned otherwise, unscaled or of another cache row they do not") {
  using P = cuda::ProjectionParams;
  for (const char* format : {"fp8_e4m3", "bf16"})
    for (const uint32_t num_tokens : {1u, 5u}) {
      const KernelCase c = qkv(format, num_tokens);
      expect_right(worst_error(kbench::make_cuda_qkv, c));
      for (void (*change)(P&) : {+[](P& p) { p.qkv.cos_sin += 2; }, +[](P& p) { p.qkv.value_scale = 1.0f; },
                                 +[](P& p) { p.qkv.k_head_stride = 0; }})
        CHECK(worst_with<P>(kbench::make_cuda_qkv, c, change) > 1.0);
    }
}

TEST_CASE("the best token passes its check; of a part of the columns, blocks or rows it does not") {
  for (const uint32_t num_tokens : {1u, 16u}) {
    KernelCase c = matrix("gemm_best", "bf16", num_tokens);
    const auto subject = kbench::make_cuda_best(c, small(), std::make_unique<EmulatedBenchDevice>());
    expect_right(subject->worst_error());
    c.rows = 16 * 300;  // rows repeat: the lowest of equal columns
    c.k = 32;
    expect_right(worst_error(kbench::make_cuda_best, c));
    using P = cuda::ProjectionParams;
    CHECK(worst_with<P>(kbench::make_cuda_best, c, [](P& p) { p.rows = p.num_columns = 16; }) > 1.0);
    CHECK(worst_with<P>(kbench::make_cuda_best, c, [](P& p) { p.store = cuda::ProjectionStore::f32; }) > 1.0);
    if (num_tokens == 1) continue;  // has no row to lose, and its best column may be of the block that is left
    CHECK(worst_with<cuda::SampleRowsParams>(kbench::make_cuda_best, c, [](cuda::SampleRowsParams& p) {
            p.num_rows -= 1;
          }) > 1.0);
    CHECK(worst_error(kbench::make_cuda_best, c, std::make_unique<OneBlockDevice>()) > 1.0);
  }
}

TEST_CASE("the norm passes its check; with another epsilon it does not") {
  for (const uint32_t num_tokens : {1u, 70u}) {
    expect_right(worst_error(kbench::make_cuda_norm, norm(num_tokens)));
    CHECK(worst_with<cuda::RmsNormParams>(kbench::make_cuda_norm, norm(num_tokens),
                                          [](cuda::RmsNormParams& p) { p.eps = 0.1f; }) > 1.0);
  }
}

TEST_CASE("a draft's attention passes its check; causal or with a row less of its block it does not") {
  using P = cuda::AttentionParams;
  for (const bool is_ring : {true, false})
    for (const auto& [num_tokens, num_keys] : {std::pair{2u, 1u}, {8u, 5u}, {3u, 128u}, {8u, 150u}}) {
      const KernelCase c = draft(num_tokens, num_keys, is_ring);
      expect_right(worst_error(kbench::make_cuda_attention, c));
      CHECK(worst_with<P>(kbench::make_cuda_attention, c, [](P& p) {
              p.num_block_rows = p.num_rows -= 1;
            }) > 1.0);
      CHECK(worst_with<P>(kbench::make_cuda_attention, c, [](P& p) { p.scale *= 1.25f; }) > 1.0);
    }
}

TEST_CASE("router and choice in one pass their check; without bias, or of other logits, they do not") {
  for (const char* format : {"f32", "bf16"})
    for (const uint32_t num_tokens : {1u, 9u}) {
      const KernelCase c = route(format, num_tokens);
      expect_right(worst_error(kbench::make_cuda_route, c));
      CHECK(worst_with<cuda::SelectExpertsParams>(kbench::make_cuda_route, c, [](cuda::SelectExpertsParams& p) {
              p.bias = nullptr;
            }) > 1.0);
      CHECK(worst_with<cuda::SelectExpertsParams>(kbench::make_cuda_route, c, [](cuda::SelectExpertsParams& p) {
              p.experts_per_token -= 1;
            }) > 1.0);
      CHECK(worst_with<cuda::RouterLogitsParams>(kbench::make_cuda_route, c, [](cuda::RouterLogitsParams& p) {
              p.num_experts -= 1;
            }) > 1.0);
    }
}

TEST_CASE("verification gives the CPU's tokens; of other proposals or accepted otherwise it does not") {
  for (const auto& [num_tokens, vocab_size] : {std::pair{2u, 300u}, {8u, 2501u}}) {
    const KernelCase c = verification(num_tokens, vocab_size);
    CHECK_EQ(worst_error(kbench::make_cuda_sampling, c), 0.0);
    if (num_tokens == 2) continue;  // one token may be right by chance
    CHECK(worst_with<cuda::SampleParams>(kbench::make_cuda_sampling, c, [](cuda::SampleParams& p) {
            if (p.role == cuda::SampleRole::draft) p.rules.temperature = 8.0f;
            else p.rules.seed += 1;
          }) > 1.0);
    CHECK(worst_with<cuda::AcceptParams>(kbench::make_cuda_sampling, c, [](cuda::AcceptParams& p) {
            p.num_rows = 1;
            p.tokens += 1;
          }) > 1.0);
  }
}

TEST_CASE("an operand in host memory is refused by name before anything is launched") {
  alignas(16) static const uint16_t host[160] = {};
  CHECK_THROWS(invalid_argument, "[cuda.projection] x: expected memory of device 0, got host memory",
               worst_with<cuda::ProjectionParams>(kbench::make_cuda_gemm, matrix("gemm", "bf16", 1),
                                                  [](cuda::ProjectionParams& p) { p.x.data = host; }));
}

TEST_CASE("cases of these kernels that they cannot take are refused by name") {
  const auto open = [](Make make, KernelCase c, const auto& change) {
    change(c);
    return worst_error(make, c);
  };
  using C = KernelCase&;
  CHECK_THROWS(unavailable, "expected fp8_e4m3 or bf16 for gemm_qkv",
               open(kbench::make_cuda_qkv, qkv("mxfp4", 1), [](C) {}));
  CHECK_THROWS(invalid_argument, "num_kv_heads: expected > 0",
               open(kbench::make_cuda_qkv, qkv("bf16", 1), [](C c) { c.num_kv_heads = 0; }));
  CHECK_THROWS(capacity, "num_tokens: expected at most 64, got 65",
               open(kbench::make_cuda_gemm, matrix("gemm", "bf16", 65), [](C) {}));
  CHECK_THROWS(capacity, "num_tokens: expected at most 16, got 17",
               open(kbench::make_cuda_best, matrix("gemm_best", "bf16", 17), [](C) {}));
  CHECK_THROWS(capacity, "rows: expected at most 524288, got 524304",
               open(kbench::make_cuda_best, matrix("gemm_best", "bf16", 1), [](C c) { c.rows = 524304; }));
  CHECK_THROWS(invalid_argument, "expected bf16 rows for rms_norm, got 'f32'",
               open(kbench::make_cuda_norm, norm(1), [](C c) { c.format = "f32"; }));
  CHECK_THROWS(invalid_argument, "num_tokens: expected at least 2 for sample_verify",
               open(kbench::make_cuda_sampling, verification(1, 100), [](C) {}));
  CHECK_THROWS(capacity, "experts_per_token: expected at most 21",
               open(kbench::make_cuda_route, route("f32", 1), [](C c) { c.experts_per_token = 22; }));
}

CHECK_MAIN()
