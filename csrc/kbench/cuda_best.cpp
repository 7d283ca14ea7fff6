#include <limits>

#include "kbench/cuda_subjects.h"
#include "kbench/dense_operands.h"

namespace mimo_rt::kbench {
namespace {

/// "gemm_best": what lm_head and sample do in a step at temperature 0. The logits, of which every block keeps the best
/// of its columns, then the best of all blocks.
class CudaBest final : public RowsSubject<cuda::ProjectionParams, float> {
 public:
  CudaBest(const KernelCase& c, const KernelBenchOptions& options,
           std::unique_ptr<cuda::BenchDevice> device)
      : RowsSubject(c, std::move(device)),
        operands_(c, c.rows, false, cuda_rotation_bytes(options), options.seed, *device_) {
    num_places_ = operands_.num_places();
    params_ = operands_.params();
    params_.store = cuda::ProjectionStore::scores;
    params_.out_f32 = make_out(c.num_tokens, c.rows);
    params_.sampled = make_sampled_rows();
    sample_ = {params_.sampled, c.num_tokens};
    operands_.add_work(work_);
  }

 private:
  /// One call of all rows, as in a round. At temperature 0 nobody looks for a position, or counts shares in.
  const cuda::SampledRows* make_sampled_rows() {
    const uint32_t num_rows = measured_.num_tokens, num_blocks = device_->num_multiprocessors();
    cuda::SampleParams call;
    call.logits = {params_.out_f32.data, params_.out_f32.stride};
    call.rules.temperature = 0.0f;
    call.scratch = cuda::SampleScratch::view(
        static_cast<uint8_t*>(
            device_->allocate(cuda::SampleScratch::bytes(num_rows, measured_.rows, num_blocks))),
        num_rows, measured_.rows, num_blocks);
    call.tokens = tokens_ = static_cast<int32_t*>(device_->allocate(4 * uint64_t{num_rows}));
    call.num_rows = num_rows;
    call.vocab_size = measured_.rows;
    cuda::SampledRows rows;
    rows.calls = upload(std::vector{call});
    rows.num_rows = upload(std::vector{num_rows});
    return upload(std::vector{rows});
  }

  void aim(uint32_t place) override { params_.tiles = operands_.tiles(place); }
  void call(uint32_t place) override {
    RowsSubject::call(place);
    device_->launch(sample_);
  }
  Bounded expected(uint32_t place, uint32_t token, uint32_t row) override {
    return operands_.product(place, token, row);
  }

  /// A sample of the logits is compared, and those of the tokens, which are the first of the largest or wrong.
  double worst_error_at(uint32_t place) override {
    std::vector<int32_t> tokens(measured_.num_tokens, -1);
    device_->upload(tokens_, tokens.data(), tokens.size() * 4);
    double worst = RowsSubject::worst_error_at(place);
    device_->download(tokens.data(), tokens_, tokens.size() * 4);
    for (uint32_t token = 0; token < tokens.size(); ++token) {
      uint32_t best = 0;
      for (uint32_t row = 1; row < measured_.rows; ++row)
        if (element(token, row) > element(token, best)) best = row;
      if (tokens[token] != static_cast<int32_t>(best)) return std::numeric_limits<double>::infinity();
      const Bounded logit = expected(place, token, best);
      worst = worst_of(worst, element(token, best), logit.value, logit.bound);
    }
    return worst;
  }

  const DenseOperands operands_;
  cuda::SampleRowsParams sample_;
  int32_t* tokens_ = nullptr;  // on the device
};

}  // namespace

std::unique_ptr<Subject> make_cuda_best(const KernelCase& c, const KernelBenchOptions& options,
                                        std::unique_ptr<cuda::BenchDevice> device) {
  check_at_most("num_tokens", c.num_tokens, cuda::kMaxScoredTokens);
  check_at_most("rows", c.rows, cuda::kMaxVocabSize);
  check_projection_case(c);
  check_matrix(c);
  return std::make_unique<CudaBest>(c, options, std::move(device));
}

}  // namespace mimo_rt::kbench
