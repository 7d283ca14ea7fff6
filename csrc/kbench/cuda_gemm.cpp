#include <cmath>

#include "kbench/cuda_subjects.h"
#include "kbench/dense_operands.h"

namespace mimo_rt::kbench {
namespace {

using cuda::ProjectionStore;

/// "gemm", and with a fused norm "gemm_normed".
class CudaGemm final : public RowsSubject<cuda::ProjectionParams, float> {
 public:
  CudaGemm(const KernelCase& c, const KernelBenchOptions& options,
           std::unique_ptr<cuda::BenchDevice> device)
      : RowsSubject(c, std::move(device)),
        operands_(c, c.rows, c.kernel == "gemm_normed", cuda_rotation_bytes(options), options.seed,
                  *device_) {
    num_places_ = operands_.num_places();
    params_ = operands_.params();
    params_.out_f32 = make_out(c.num_tokens, c.rows);
    operands_.add_work(work_);
  }

 private:
  void aim(uint32_t place) override { params_.tiles = operands_.tiles(place); }
  Bounded expected(uint32_t place, uint32_t token, uint32_t row) override {
    return operands_.product(place, token, row);
  }

  const DenseOperands operands_;
};

/// "gemm_gate_up": silu(gate) * up, of 8 rows each of a row group.
class GateUpGemm final : public RowsSubject<cuda::ProjectionParams, uint16_t> {
 public:
  GateUpGemm(const KernelCase& c, const KernelBenchOptions& options,
             std::unique_ptr<cuda::BenchDevice> device)
      : RowsSubject(c, std::move(device)),
        operands_(c, c.rows, false, cuda_rotation_bytes(options), options.seed, *device_) {
    num_places_ = operands_.num_places();
    params_ = operands_.params();
    params_.store = ProjectionStore::gate_up;
    params_.num_columns = c.rows / 2;
    params_.out_bf16 = make_out(c.num_tokens, c.rows / 2);
    operands_.add_work(work_);
  }

 private:
  void aim(uint32_t place) override { params_.tiles = operands_.tiles(place); }

  /// |silu'| < 1.1; expf, the sigmoid and two products: 8 roundings.
  Bounded expected(uint32_t place, uint32_t token, uint32_t column) override {
    const uint32_t row = column / 8 * kTileRows + column % 8;
    const Bounded gate = operands_.product(place, token, row);
    const Bounded up = operands_.product(place, token, row + 8);
    const double silu = gate.value / (1.0 + std::exp(-gate.value)), exact = silu * up.value;
    return rounded({exact, 1.1 * gate.bound * (std::abs(up.value) + up.bound) +
                               std::abs(silu) * up.bound +
                               rounding_of(8, kF32Unit) * std::abs(exact)});
  }

  const DenseOperands operands_;
};

/// "gemm_residual": added to rows, in place.
class ResidualGemm final : public RowsSubject<cuda::ProjectionParams, uint16_t> {
 public:
  ResidualGemm(const KernelCase& c, const KernelBenchOptions& options,
               std::unique_ptr<cuda::BenchDevice> device)
      : RowsSubject(c, std::move(device)),
        operands_(c, c.rows, false, cuda_rotation_bytes(options), options.seed, *device_),
        residual_(random_bf16(uint64_t{c.num_tokens} * c.rows, options.seed ^ 3)) {
    num_places_ = operands_.num_places();
    params_ = operands_.params();
    params_.store = ProjectionStore::add_residual;
    params_.out_bf16 = make_out(c.num_tokens, c.rows);
    operands_.add_work(work_);
  }

 private:
  void aim(uint32_t place) override { params_.tiles = operands_.tiles(place); }
  void fill(std::vector<uint16_t>& out) override { out.assign(residual_.begin(), residual_.end()); }

  /// One addition.
  Bounded expected(uint32_t place, uint32_t token, uint32_t row) override {
    const Bounded y = operands_.product(place, token, row);
    const double before = double{bf16_to_f32(residual_[uint64_t{token} * measured_.rows + row])};
    const double sum = before + y.value;
    return rounded({sum, y.bound + kF32Unit * (std::abs(sum) + y.bound)});
  }

  const DenseOperands operands_;
  const std::vector<bf16_t> residual_;
};

}  // namespace

std::unique_ptr<Subject> make_cuda_gemm(const KernelCase& c, const KernelBenchOptions& options,
                                        std::unique_ptr<cuda::BenchDevice> device) {
  check_projection_case(c);
  check_matrix(c);
  if (c.kernel == "gemm_gate_up")
    return std::make_unique<GateUpGemm>(c, options, std::move(device));
  if (c.kernel == "gemm_residual")
    return std::make_unique<ResidualGemm>(c, options, std::move(device));
  return std::make_unique<CudaGemm>(c, options, std::move(device));
}

}  // namespace mimo_rt::kbench
