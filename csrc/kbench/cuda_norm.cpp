#include "kbench/cuda_subjects.h"
#include "kbench/dense_operands.h"

namespace mimo_rt::kbench {
namespace {

/// "rms_norm": rows of their own, without a product. Places are copies of the rows.
class CudaNorm final : public RowsSubject<cuda::RmsNormParams, uint16_t> {
 public:
  CudaNorm(const KernelCase& c, const KernelBenchOptions& options,
           std::unique_ptr<cuda::BenchDevice> device)
      : RowsSubject(c, std::move(device)) {
    const std::vector<bf16_t> x = random_bf16(uint64_t{c.num_tokens} * c.hidden_size, options.seed);
    const std::vector<float> weights = norm_weights(c.hidden_size, options.seed ^ 2);
    normalised_ = normalised(x, weights);
    upload_places(x, options);
    params_.weight = upload(weights);
    params_.out = make_out(c.num_tokens, c.hidden_size);
    params_.eps = kNormEps;
    params_.num_tokens = c.num_tokens;
    params_.k = c.hidden_size;
    work_.bytes = (2.0 * c.num_tokens + 4.0) * c.hidden_size;
  }

 private:
  void aim(uint32_t at) override {
    params_.x = {reinterpret_cast<const uint16_t*>(place(at)), measured_.hidden_size};
  }
  Bounded expected(uint32_t /*place*/, uint32_t token, uint32_t column) override {
    const double y = normalised_[uint64_t{token} * measured_.hidden_size + column];
    return {y, norm_error(measured_.hidden_size) * std::abs(y) + 0x1p-120};
  }

  std::vector<double> normalised_;
};

}  // namespace

std::unique_ptr<Subject> make_cuda_norm(const KernelCase& c, const KernelBenchOptions& options,
                                        std::unique_ptr<cuda::BenchDevice> device) {
  MIMO_RT_CHECK(c.format == "bf16", invalid_argument, kWhere,
                "format: expected bf16 rows for rms_norm, got '", c.format, "'");
  check_positive("num_tokens", c.num_tokens);
  check_at_most("num_tokens", c.num_tokens, 1u << 16);
  check_multiple("hidden_size", c.hidden_size, kBlockK);
  return std::make_unique<CudaNorm>(c, options, std::move(device));
}

}  // namespace mimo_rt::kbench
