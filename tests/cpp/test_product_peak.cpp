// The peaks beside CPU kernels: operations that are done, of the instructions that a format's products take.
#include "check.h"
#include "cpu/dispatch.h"
#include "kbench/random_rows.h"

#include <mimo_rt/kernel_bench.h>

#include <optional>
#include <string>

using namespace mimo_rt;

namespace {

/// Operations of a round of a table's products: chains x lanes x 2 for a multiply-add.
uint64_t operations_of_round(const cpu::Kernels& kernels, int format) {
  const std::string isa = kernels.name, source = kernels.product_source(format);
  const uint64_t chains = isa == "avx512" ? 16 : 12, register_bytes = isa == "avx512" ? 64 : isa == "avx2" ? 32 : 16;
  if (source.starts_with("vp")) return chains * register_bytes * 2 / (source.ends_with("twice") ? 2 : 1);
  return chains * register_bytes / (source == "vdpbf16ps" ? 2 : 4) * 2;
}

std::optional<VectorPeak> peak_of(const KernelCase& kernel_case, const char* backend, const char* activations) {
  KernelBenchOptions options;
  options.backend = backend;
  options.rotation_bytes = 1 << 16;
  options.activations = activations;
  return KernelBench::open(kernel_case, options).measure_peak();
}

}  // namespace

TEST_CASE("the peak of a product is of the instructions that its format takes") {
  for (const cpu::CpuBackend& backend : cpu::cpu_backends()) {
    if (!backend.kernels || !backend.supported) continue;
    for (const bool is_int8 : {false, true}) {
      const cpu::Kernels& kernels = is_int8 ? *backend.int8_kernels : *backend.kernels;
      for (const std::string name : {"mxfp4", "fp8_e4m3", "bf16", "f32"}) {
        const int code = static_cast<int>(kbench::format_of(name));
        const std::string source = kernels.product_source(code);
        CHECK_EQ(kernels.run_products(code, 100), 100 * operations_of_round(kernels, code));
        const bool is_integer = source.starts_with("vp") || source.starts_with("integer");
        CHECK_EQ(is_integer, name == "mxfp4" && (is_int8 || backend.name == std::string("cpu-avx2")));
        if (is_int8 && name != "mxfp4") continue;
        KernelCase gemm;
        gemm.kernel = "gemm";
        gemm.format = name;
        gemm.rows = 32;
        gemm.k = 64;
        const std::optional<VectorPeak> peak = peak_of(gemm, backend.name, is_int8 ? "int8" : "bf16");
        CHECK(peak && peak->source == source);
        // Three instructions in a cycle of 8 GHz: no product was left out.
        CHECK(peak && peak->gflops > 0.01 && peak->gflops < operations_of_round(kernels, code) / 12.0 * 3 * 8);
      }
    }
  }
  KernelCase keys;
  keys.kernel = "attention";
  keys.format = "bf16";
  keys.num_kv_heads = keys.num_q_per_kv = 2;
  keys.qk_head_dim = keys.v_head_dim = 32;
  keys.num_keys = 5;
  const int f32 = static_cast<int>(PackedFormat::f32);
  CHECK_EQ(peak_of(keys, "cpu-generic", "bf16")->source, std::string(cpu::kernels_generic()->product_source(f32)));
}

CHECK_MAIN()
