#include <limits>

#include "kbench/cuda_subjects.h"
#include "kbench/dense_operands.h"

namespace mimo_rt::kbench {
namespace {

/// "gemm_best": the best column of each block, then that of all blocks. The logits stay nowhere.
class CudaBest final : public CudaSubject {
 public:
  CudaBest(const KernelCase& c, const KernelBenchOptions& options,
           std::unique_ptr<cuda::BenchDevice> device)
      : CudaSubject(c, std::move(device)),
        operands_(c, c.rows, false, cuda_rotation_bytes(options), options.seed, *device_) {
    num_places_ = operands_.num_places();
    params_ = operands_.params();
    params_.store = cuda::ProjectionStore::argmax;
    const uint64_t num_partials = uint64_t{device_->num_multiprocessors()} * cuda::kMaxTokens;
    params_.argmax = {static_cast<float*>(device_->allocate(4 * num_partials)),
                      static_cast<uint32_t*>(device_->allocate(4 * num_partials))};
    columns_ = static_cast<uint32_t*>(device_->allocate(4 * uint64_t{c.num_tokens}));
    operands_.add_work(work_);
  }

 private:
  void call(uint32_t place) override {
    params_.tiles = operands_.tiles(place);
    device_->launch(params_);
    device_->launch(cuda::ArgmaxCombineParams{.partial = params_.argmax,
                                              .num_blocks = device_->num_multiprocessors(),
                                              .num_tokens = measured_.num_tokens,
                                              .columns = columns_});
  }

  /// How far the chosen column is below the best, over what both may be off by. Rows that repeat give
  /// equal products, of which the lowest column wins.
  double worst_error_at(uint32_t place) override {
    std::vector<uint32_t> got(measured_.num_tokens, ~0u);
    device_->upload(columns_, got.data(), got.size() * 4);
    call(place);
    device_->download(got.data(), columns_, got.size() * 4);
    const uint32_t num_distinct = std::min(operands_.num_distinct_rows(), measured_.rows);
    std::vector<Bounded> best(got.size(), {-std::numeric_limits<double>::infinity(), 0.0});
    for (uint32_t row = 0; row < num_distinct; ++row) {
      const std::vector<double> values = operands_.row(operands_.distinct_row(place, row));
      for (uint32_t token = 0; token < got.size(); ++token)
        if (const Bounded y = operands_.product(values, token); y.value > best[token].value)
          best[token] = y;
    }
    double worst = 0;
    for (uint32_t token = 0; token < got.size(); ++token) {
      if (got[token] >= num_distinct) return std::numeric_limits<double>::infinity();
      const Bounded y = operands_.product(place, token, got[token]);
      worst = worst_of(worst, y.value, best[token].value, y.bound + best[token].bound);
    }
    return worst;
  }

  const DenseOperands operands_;
  cuda::ProjectionParams params_;
  uint32_t* columns_ = nullptr;
};

}  // namespace

std::unique_ptr<Subject> make_cuda_best(const KernelCase& c, const KernelBenchOptions& options,
                                        std::unique_ptr<cuda::BenchDevice> device) {
  check_projection_case(c);
  check_matrix(c);
  return std::make_unique<CudaBest>(c, options, std::move(device));
}

}  // namespace mimo_rt::kbench
