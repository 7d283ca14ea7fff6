// Activations as the GEMM kernels of this folder read them: FP32 [token][k].
#include "entries.h"
#include "scalar.h"

namespace mimo_rt::cpu::generic {

uint64_t prepared_bytes(int, uint32_t num_tokens, uint32_t k) {
  return uint64_t{num_tokens} * k * sizeof(float);
}

void prepare(int, const PrepareArgs& args) {
  float* out = static_cast<float*>(args.prepared);
  for (uint32_t t = 0; t < args.num_tokens; ++t, out += args.k) {
    const bf16_t* row = args.x + uint64_t{args.row_ids ? args.row_ids[t] : t} * args.x_stride;
    for (uint32_t k = 0; k < args.k; ++k) out[k] = k < args.k_valid ? widen(row[k]) : 0.0f;
  }
}

}  // namespace mimo_rt::cpu::generic
