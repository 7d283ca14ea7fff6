// The subjects of `mimo-rt kbench`: right kernels pass their check, wrong ones do not, calls walk
// through cold memory, cases that a kernel cannot take are refused. CUDA subjects run the kernels'
// own source under emulation.
#include "cuda/read_speed.h"
#include "emulated_bench_device.h"
#include "kbench/cpu_subjects.h"
#include "kbench/cuda_subjects.h"
#include "kbench/expert_routes.h"
#include "kbench/random_rows.h"
#include "kernel_tables.h"

#include <mimo_rt/device.h>

#include <cmath>
#include <set>

using namespace mimo_rt;
using namespace fixture;
using kernel_tables::Table;

namespace {

constexpr const char* kFormats[] = {"mxfp4", "fp8_e4m3", "bf16", "f32"};

KernelCase gemm(const char* format, uint32_t rows, uint32_t k, uint32_t num_tokens) {
  KernelCase c;
  c.kernel = "gemm";
  c.format = format;
  c.rows = rows;
  c.k = k;
  c.num_tokens = num_tokens;
  return c;
}

KernelCase attention(uint32_t num_tokens, uint32_t num_keys) {
  KernelCase c;
  c.kernel = "attention";
  c.format = "bf16";
  c.num_tokens = num_tokens;
  c.num_kv_heads = 2;
  c.num_q_per_kv = 3;
  c.qk_head_dim = 48;
  c.v_head_dim = 24;
  c.num_keys = num_keys;
  return c;
}

KernelCase experts(const char* kernel, uint32_t num_tokens, uint32_t segments = 1) {
  KernelCase c;
  c.kernel = kernel;
  c.format = "mxfp4";
  c.num_tokens = num_tokens;
  c.num_experts = 11;
  c.experts_per_token = 3;
  c.hidden_size = 96;
  c.width = 64;
  c.num_segments = segments;
  return c;
}

/// Attention on a GPU. `is_ring`: of a window layer.
KernelCase device_attention(uint32_t num_tokens, uint32_t num_keys, bool is_ring) {
  KernelCase c = attention(num_tokens, num_keys);
  c.v_head_dim = 32;
  c.window_tokens = is_ring ? num_keys : 0;
  c.split_keys = 64;
  return c;
}

KernelCase router(const char* kernel, const char* format, uint32_t num_tokens) {
  KernelCase c;
  c.kernel = kernel;
  c.format = format;
  c.num_tokens = num_tokens;
  c.num_experts = 21;
  c.experts_per_token = 4;
  c.hidden_size = 352;
  return c;
}

KernelCase sampling(const char* kernel, uint32_t num_tokens, uint32_t vocab_size) {
  KernelCase c;
  c.kernel = kernel;
  c.format = "f32";
  c.num_tokens = num_tokens;
  c.vocab_size = vocab_size;
  return c;
}

KernelBenchOptions small(uint64_t rotation_bytes = 100'000) {
  KernelBenchOptions options;
  options.rotation_bytes = rotation_bytes;
  return options;
}

// Kernels of one table with one thing wrong; plain functions, as in the table.
cpu::Kernels right_kernels;

void gemm_of_other_token(int format, const cpu::GemmArgs& args) {
  right_kernels.gemm(format, args);
  for (uint32_t row = 0; args.num_tokens > 1 && row < 16; ++row)
    std::swap(args.y[row], args.y[args.y_stride + row]);
}
void gemm_without_last_group(int format, const cpu::GemmArgs& args) {
  cpu::GemmArgs fewer = args;
  --fewer.num_row_groups;
  right_kernels.gemm(format, fewer);
}
void gemm_slightly_off(int format, const cpu::GemmArgs& args) {
  right_kernels.gemm(format, args);
  args.y[0] *= 1.001f;
}
void attend_without_sink(const cpu::AttendArgs& args) {
  cpu::AttendArgs other = args;
  other.sink_logit = nullptr;
  right_kernels.attend(other);
}
void attend_without_first_key(const cpu::AttendArgs& args) {
  cpu::AttendArgs other = args;
  KvSegment segment = args.segments[0];
  segment.k += args.qk_head_dim;
  segment.v += args.v_head_dim;
  --segment.num_keys;
  other.segments = &segment;
  cpu::AttendRow row = args.rows[0];
  --row.num_keys;
  other.rows = &row;
  right_kernels.attend(other);
}

/// Launches with something wrong in the parameters.
struct BrokenDevice : EmulatedBenchDevice {
  /// The first active expert is another one.
  template <typename Params>
  void launch_other_expert(const Params& params) {
    uint32_t& expert = params.route.active_experts[0];
    const uint32_t right = expert;
    expert = (expert + 1) % 11;
    EmulatedBenchDevice::launch(params);
    expert = right;
  }
  void launch(const cuda::ExpertGateUpParams& params) override { launch_other_expert(params); }
  void launch(const cuda::ExpertDownParams& params) override { launch_other_expert(params); }
  void launch(const cuda::ExpertGateUpFp8Params& params) override { launch_other_expert(params); }
  void launch(const cuda::ExpertDownFp8Params& params) override { launch_other_expert(params); }
  void launch(const cuda::ExpertGateUpMxfp8Params& params) override { launch_other_expert(params); }
  void launch(const cuda::ExpertDownMxfp8Params& params) override { launch_other_expert(params); }
  void launch(const cuda::ExpertGateUpGemmParams& params) override { launch_other_expert(params); }
  void launch(const cuda::ExpertDownGemmParams& params) override { launch_other_expert(params); }
  void launch(const cuda::ProjectionParams& params) override {
    cuda::ProjectionParams broken = params;
    broken.rows -= 16;
    broken.num_columns -= 16;
    EmulatedBenchDevice::launch(broken);  // leaves columns unwritten
  }
  void launch(const cuda::AttentionParams& params) override {
    cuda::AttentionParams broken = params;
    broken.scale *= 1.25f;
    EmulatedBenchDevice::launch(broken);
  }
  void launch(const cuda::RouterLogitsParams& params) override {
    cuda::RouterLogitsParams broken = params;
    broken.weights += 16;  // one BF16 row starts late
    broken.num_experts -= 1;
    EmulatedBenchDevice::launch(broken);
  }
  void launch(const cuda::SelectExpertsParams& params) override {
    cuda::SelectExpertsParams broken = params;
    broken.bias = nullptr;
    EmulatedBenchDevice::launch(broken);
  }
  void launch(const cuda::SampleParams& params) override {
    cuda::SampleParams broken = params;
    broken.vocab_size = broken.scratch.num_parts = 1;
    EmulatedBenchDevice::launch(broken);
  }
};

}  // namespace

TEST_CASE("CPU products of every instruction set pass their check") {
  for (const Table& table : kernel_tables::runnable())
    for (const char* format : kFormats)
      for (const uint32_t num_tokens : {1u, 3u, 9u}) {
        const auto subject = kbench::make_cpu_gemm(gemm(format, 48, 160, num_tokens), small(),
                                                   *table.kernels);
        const double error = subject->worst_error();
        CHECK(error > 0 && error <= 1.0);
        CHECK_EQ(subject->work().flops, 2.0 * 48 * 160 * num_tokens);
        CHECK_EQ(subject->work().bytes,
                 3.0 * static_cast<double>(row_group_bytes(kbench::format_of(format), 160)));
      }
}

TEST_CASE("CPU products with INT8 activations pass their check, those of BF16 activations do not") {
  KernelBenchOptions options = small();
  options.activations = "int8";
  for (const uint32_t num_tokens : {1u, 3u, 9u}) {
    const KernelCase c = gemm("mxfp4", 48, 160, num_tokens);
    for (const Table& table : kernel_tables::runnable_int8()) {
      const double error = kbench::make_cpu_gemm(c, options, *table.kernels)->worst_error();
      CHECK(error > 0 && error <= 1.0);
    }
    CHECK(kbench::make_cpu_gemm(c, options, *cpu::kernels_generic())->worst_error() > 1.0);
  }
}

TEST_CASE("the check of CPU products sees a wrong token, a missing row and a small error") {
  right_kernels = *cpu::kernels_generic();
  for (const char* format : kFormats)
    for (const auto wrong : {gemm_of_other_token, gemm_without_last_group, gemm_slightly_off}) {
      cpu::Kernels kernels = right_kernels;
      kernels.gemm = wrong;
      const auto subject = kbench::make_cpu_gemm(gemm(format, 48, 160, 3), small(), kernels);
      CHECK(subject->worst_error() > 1.0);
    }
}

TEST_CASE("CPU attention passes its check; without its sink or its first key it does not") {
  for (const Table& table : kernel_tables::runnable())
    for (const uint32_t num_keys : {1u, 20u, 128u}) {
      const auto subject =
          kbench::make_cpu_attention(attention(3, num_keys), small(), *table.kernels);
      CHECK(subject->worst_error() <= 1.0);
      CHECK_EQ(subject->work().bytes, 2.0 * (num_keys + 2) * (48 + 24) * 2);
    }
  right_kernels = *cpu::kernels_generic();
  for (const auto wrong : {attend_without_sink, attend_without_first_key}) {
    cpu::Kernels kernels = right_kernels;
    kernels.attend = wrong;
    const auto subject = kbench::make_cpu_attention(attention(3, 20), small(), kernels);
    CHECK(subject->worst_error() > 1.0);
  }
}

TEST_CASE("calls walk through all places in turn and time one read each") {
  std::vector<uint8_t> memory(64 * 1001, 1);
  auto* data = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  kbench::ColdWalk walk(data, 10, 6400);
  CHECK_EQ(walk.read_bytes(), 64000u);
  std::vector<uint64_t> places;
  const KernelTimes times = walk.run(25, 2, [&](uint64_t place) { places.push_back(place); });
  CHECK(times.call_s.size() == 25 && times.read_s.size() == 25 && places.size() == 50);
  for (uint32_t i = 0; i < 50; ++i) CHECK_EQ(places[i], i / 2 % 10);
  for (const double seconds : times.read_s) CHECK(seconds > 0);
}

TEST_CASE("a call that would take long is cut, and the record says so") {
  const auto wide = kbench::make_cpu_gemm(gemm("bf16", 16 * 500, 4096, 64), small(),
                                          *cpu::kernels_generic());
  CHECK(wide->measured().rows < 16 * 500u && wide->measured().rows % 16 == 0);
  CHECK(wide->work().flops <= kbench::kCallFlops);
  KernelBenchOptions hot = small();
  hot.is_hot = true;
  const auto warm = kbench::make_cpu_gemm(gemm("bf16", 4096, 128, 1), hot, *cpu::kernels_generic());
  CHECK_EQ(warm->measured().rows, 64u);
  CHECK(warm->worst_error() <= 1.0);
}

TEST_CASE("CUDA experts pass their check on every route; another expert's weights do not") {
  for (const uint32_t num_tokens : {2u, 9u})
    for (const uint32_t segments : {1u, 2u})
      for (const char* kernel : {"expert_gate_up", "expert_down"}) {
        const KernelCase c = experts(kernel, num_tokens, segments);
        const auto subject =
            kbench::make_cuda_experts(c, small(), std::make_unique<EmulatedBenchDevice>());
        CHECK(subject->worst_error() <= 1.0);
        const auto broken = kbench::make_cuda_experts(c, small(), std::make_unique<BrokenDevice>());
        CHECK(broken->worst_error() > 1.0);
      }
}

TEST_CASE("CUDA experts for many tokens pass their check; another expert's weights do not") {
  for (const char* kernel : {"expert_gate_up_gemm", "expert_down_gemm"}) {
    const KernelCase c = experts(kernel, 70, 2);
    const auto subject =
        kbench::make_cuda_experts(c, small(), std::make_unique<EmulatedBenchDevice>());
    const double error = subject->worst_error();
    CHECK(error > 0 && error <= 1.0);
    CHECK_EQ(subject->work().num_active_experts, 11u);
    const auto broken = kbench::make_cuda_experts(c, small(), std::make_unique<BrokenDevice>());
    CHECK(broken->worst_error() > 1.0);
  }
}

TEST_CASE("CUDA experts with FP8 and MXFP8 activations pass their check and say how far off they are") {
  const auto open = [](const char* kernel, std::unique_ptr<cuda::BenchDevice> device) {
    return kbench::make_cuda_experts(experts(kernel, 9), small(), std::move(device));
  };
  for (const auto& [kernel, fp8_kernel] : {std::pair{"expert_gate_up", "expert_gate_up_fp8"},
                                           {"expert_down", "expert_down_fp8"},
                                           {"expert_gate_up", "expert_gate_up_mxfp8"},
                                           {"expert_down", "expert_down_mxfp8"}}) {
    const auto exact = open(kernel, std::make_unique<EmulatedBenchDevice>());
    const auto rounded = open(fp8_kernel, std::make_unique<EmulatedBenchDevice>());
    CHECK_EQ(rounded->relative_error(), 0.0);
    CHECK(exact->worst_error() <= 1.0 && rounded->worst_error() <= 1.0);
    CHECK(exact->relative_error() > 0 && exact->relative_error() < 0.005);
    CHECK(rounded->relative_error() > 0.01 && rounded->relative_error() < 0.1);
    CHECK(open(fp8_kernel, std::make_unique<BrokenDevice>())->worst_error() > 1.0);
  }
}

TEST_CASE("CUDA projections pass their check; columns that were not written are seen") {
  for (const char* format : {"fp8_e4m3", "bf16"})
    for (const uint32_t num_tokens : {1u, 5u}) {
      const KernelCase c = gemm(format, 80, 160, num_tokens);
      const auto subject =
          kbench::make_cuda_gemm(c, small(), std::make_unique<EmulatedBenchDevice>());
      const double error = subject->worst_error();
      CHECK(error > 0 && error <= 1.0);
      const auto broken = kbench::make_cuda_gemm(c, small(), std::make_unique<BrokenDevice>());
      CHECK(std::isinf(broken->worst_error()));
    }
}

TEST_CASE("CUDA attention passes its check, ring and pages; with another scale it does not") {
  for (const bool is_ring : {true, false})
    for (const auto& [num_tokens, num_keys] : {std::pair{1u, 20u}, {3u, 128u}, {8u, 150u}}) {
      const KernelCase c = device_attention(num_tokens, num_keys, is_ring);
      const auto subject =
          kbench::make_cuda_attention(c, small(), std::make_unique<EmulatedBenchDevice>());
      const double error = subject->worst_error();
      CHECK(error > 0 && error <= 1.0);
      CHECK_EQ(subject->work().bytes, 2.0 * (num_keys + num_tokens - 1) * (48 + 32) * 2);
      const auto broken = kbench::make_cuda_attention(c, small(), std::make_unique<BrokenDevice>());
      CHECK(broken->worst_error() > 1.0);
    }
}

TEST_CASE("CUDA router kernels pass their check; other weights and no bias do not") {
  for (const uint32_t num_tokens : {1u, 9u}) {
    for (const char* format : {"f32", "bf16"}) {
      const KernelCase c = router("router_logits", format, num_tokens);
      const auto subject =
          kbench::make_cuda_router_logits(c, small(), std::make_unique<EmulatedBenchDevice>());
      const double error = subject->worst_error();
      CHECK(error > 0 && error <= 1.0);
      const auto broken =
          kbench::make_cuda_router_logits(c, small(), std::make_unique<BrokenDevice>());
      CHECK(broken->worst_error() > 1.0);
    }
    const KernelCase c = router("select_experts", "f32", num_tokens);
    const auto subject =
        kbench::make_cuda_select_experts(c, small(), std::make_unique<EmulatedBenchDevice>());
    const double error = subject->worst_error();
    CHECK(error > 0 && error <= 1.0);
    const auto broken =
        kbench::make_cuda_select_experts(c, small(), std::make_unique<BrokenDevice>());
    CHECK(std::isinf(broken->worst_error()));
  }
}

TEST_CASE("CUDA sampling gives the CPU's tokens; of a part of the vocabulary it does not") {
  for (const char* kernel : {"sample_best", "sample", "sample_filtered"})
    for (const auto& [num_tokens, vocab_size] : {std::pair{1u, 300u}, {5u, 2501u}}) {
      const KernelCase c = sampling(kernel, num_tokens, vocab_size);
      const auto subject =
          kbench::make_cuda_sampling(c, small(), std::make_unique<EmulatedBenchDevice>());
      CHECK_EQ(subject->worst_error(), 0.0);
      CHECK_EQ(subject->work().bytes, 4.0 * num_tokens * vocab_size);
      const auto broken = kbench::make_cuda_sampling(c, small(), std::make_unique<BrokenDevice>());
      CHECK(std::isinf(broken->worst_error()));
    }
}

TEST_CASE("CUDA calls rotate: other experts, other copies of a matrix") {
  auto device = std::make_unique<EmulatedBenchDevice>();
  const EmulatedBenchDevice& seen = *device;
  const auto subject =
      kbench::make_cuda_experts(experts("expert_gate_up", 1), small(), std::move(device));
  CHECK_EQ(subject->run(3).call_s.size(), 3u);
  CHECK_EQ(seen.active.size(), 3u);
  for (const std::vector<uint32_t>& list : seen.active) {
    CHECK_EQ(list.size(), subject->work().num_active_experts);
    CHECK(std::is_sorted(list.begin(), list.end()));
  }
  CHECK(seen.active[0] != seen.active[1] && seen.active[1] != seen.active[2]);

  device = std::make_unique<EmulatedBenchDevice>();
  const EmulatedBenchDevice& gemm_seen = *device;
  const auto copies = kbench::make_cuda_gemm(gemm("bf16", 32, 64, 1), small(10'000), std::move(device));
  copies->run(4);
  CHECK_EQ(std::set<const uint8_t*>(gemm_seen.tiles.begin(), gemm_seen.tiles.end()).size(), 2u);
}

TEST_CASE("routes hold every choice once, sorted, with equal numbers of active experts") {
  EmulatedBenchDevice device;
  KernelCase c = experts("expert_down", 7);
  const kbench::ExpertRoutes routes(c, 3, device);
  CHECK_EQ(routes.num_slots(), 21u);
  for (uint32_t i = 0; i < routes.size(); ++i) {
    const RouteTable table = routes.on_device(i);
    CHECK_EQ(*table.num_active, routes.num_active());
    CHECK_EQ(table.slot_begin[*table.num_active], 21u);
    std::set<std::pair<uint32_t, uint32_t>> choices;
    for (uint32_t slot = 0; slot < 21; ++slot) {
      CHECK(routes.expert(i, slot) < 11 && table.slot_token[slot] < 7);
      choices.insert({routes.expert(i, slot), table.slot_token[slot]});
    }
    CHECK_EQ(choices.size(), 21u);
  }
}

TEST_CASE("CUDA cases that no kernel can take are refused by name") {
  const auto open = [](auto make, KernelCase c, const auto& change) {
    change(c);
    return make(c, small(), std::make_unique<EmulatedBenchDevice>());
  };
  const auto open_attention = [&](const auto& change) {
    return open(kbench::make_cuda_attention, device_attention(1, 128, true), change);
  };
  using C = KernelCase&;
  CHECK_THROWS(invalid_argument, "window_tokens: expected 0 or num_keys 128, got 64",
               open_attention([](C c) { c.window_tokens = 64; }));
  CHECK_THROWS(unsupported_shape, "split_keys: expected a multiple of 64, got 96",
               open_attention([](C c) { c.split_keys = 96; }));
  CHECK_THROWS(capacity, "num_tokens", open_attention([](C c) { c.num_tokens = 65; }));
  CHECK_THROWS(invalid_argument, "num_kv_heads", open_attention([](C c) { c.num_kv_heads = 0; }));
  CHECK_THROWS(invalid_argument, "expected f32 or bf16",
               open(kbench::make_cuda_router_logits, router("router_logits", "mxfp4", 1), [](C) {}));
  CHECK_THROWS(capacity, "num_experts: expected at most 512, got 513",
               open(kbench::make_cuda_router_logits, router("router_logits", "f32", 1),
                    [](C c) { c.num_experts = 513; }));
  CHECK_THROWS(capacity, "experts_per_token: expected at most 21",
               open(kbench::make_cuda_select_experts, router("select_experts", "f32", 1),
                    [](C c) { c.experts_per_token = 22; }));
  CHECK_THROWS(invalid_argument, "expected f32 logits for sample",
               open(kbench::make_cuda_sampling, sampling("sample", 1, 8),
                    [](C c) { c.format = "bf16"; }));
  CHECK_THROWS(invalid_argument, "vocab_size: expected > 0",
               open(kbench::make_cuda_sampling, sampling("sample", 1, 0), [](C) {}));
}

TEST_CASE("cases that no kernel can take are refused by name") {
  const auto open = [](const KernelCase& c, const char* backend = "cpu-generic") {
    KernelBenchOptions options = small();
    options.backend = backend;
    return KernelBench::open(c, options).work().bytes;
  };
  CHECK_THROWS(invalid_argument, "format: expected mxfp4", open(gemm("int3", 16, 32, 1)));
  CHECK_THROWS(unsupported_shape, "rows: expected a multiple of 16, got 17", open(gemm("bf16", 17, 32, 1)));
  CHECK_THROWS(unsupported_shape, "k: expected a multiple of 32, got 33", open(gemm("bf16", 16, 33, 1)));
  CHECK_THROWS(invalid_argument, "num_tokens: expected > 0", open(gemm("bf16", 16, 32, 0)));
  CHECK_THROWS(unavailable, "expected gemm, attention, edge_counter or edge_gather", open(experts("expert_down", 1)));
  CHECK_THROWS(invalid_argument, "backend", open(gemm("bf16", 16, 32, 1), "cpu-none"));
  const auto open_with = [](const KernelCase& kernel_case, const char* activations) {
    KernelBenchOptions options = small();
    options.backend = "cpu-generic";
    options.activations = activations;
    return KernelBench::open(kernel_case, options).work().bytes;
  };
  CHECK_THROWS(invalid_argument, "expected bf16 or int8, got 'fp8'", open_with(gemm("mxfp4", 16, 32, 1), "fp8"));
  CHECK_THROWS(invalid_argument, "activations", open_with(gemm("bf16", 16, 32, 1), "int8"));
  CHECK(open_with(gemm("mxfp4", 16, 32, 1), "int8") > 0);
  KernelCase c = attention(1, 0);
  CHECK_THROWS(invalid_argument, "num_keys: expected > 0", open(c));
  c = attention(1, 8);
  c.qk_head_dim = ~0u;  // with a v_head_dim of 1 no bytes at all in 32 bits
  c.v_head_dim = 1;
  CHECK_THROWS(capacity, "qk_head_dim: expected at most 65535", open(c));
  c = attention(1, 8);
  c.format = "f32";
  CHECK_THROWS(invalid_argument, "expected bf16 keys", open(c));

  const auto open_experts = [](const KernelCase& cuda_case) {
    return kbench::make_cuda_experts(cuda_case, small(), std::make_unique<EmulatedBenchDevice>());
  };
  CHECK_THROWS(capacity, "num_tokens: expected at most 64, got 65",
               open_experts(experts("expert_down", 65)));
  CHECK_THROWS(capacity, "num_tokens: expected at most 8192, got 8193",
               open_experts(experts("expert_down_gemm", 8193)));
  c = experts("expert_down", 1);
  c.experts_per_token = 12;
  CHECK_THROWS(capacity, "experts_per_token: expected at most 11", open_experts(c));
  c = experts("expert_down", 1);
  c.width = 48;
  CHECK_THROWS(unsupported_shape, "width: expected a multiple of 32", open_experts(c));
  CHECK_THROWS(unavailable, "expected fp8_e4m3 or bf16",
               kbench::make_cuda_gemm(gemm("mxfp4", 16, 32, 1), small(),
                                      std::make_unique<EmulatedBenchDevice>()));
}

TEST_CASE("the speed of plain reads is their bytes over the median of their times") {
  struct Device : EmulatedBenchDevice {
    KernelTimes time(uint32_t num_calls, const std::function<void(uint32_t)>&) override {
      ++num_series;
      KernelTimes times{std::vector<double>(num_calls, 0.0), std::vector<double>(num_calls, 1e-6), {}};
      times.read_s[0] = 1e-3;  // something else had the memory
      return times;
    }
    uint32_t num_series = 0;
  } device;
  CHECK(std::abs(cuda::measure_read_gbs(device, 2.5e-3) - 1.0) < 1e-12);
  CHECK_EQ(device.num_series, 3u);
}

CHECK_MAIN()
