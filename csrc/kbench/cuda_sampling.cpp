#include <limits>

#include "kbench/cuda_subject.h"
#include "kbench/cuda_subjects.h"
#include "sampling/sampler.h"

namespace mimo_rt::kbench {
namespace {

struct Setting {
  std::string_view kernel;
  float temperature;
  uint32_t top_k;
  float top_p;
};
constexpr Setting kSettings[] = {
    {"sample_best", 0.0f, 0, 1.0f},       // the best token
    {"sample", 1.0f, 0, 1.0f},            // drawn from all tokens
    {"sample_filtered", 0.8f, 50, 0.95f}  // top-k and top-p first
};

/// Rows of logits that are drawn from one by one, without a draft. Places are copies of them.
class CudaSampling final : public CudaSubject {
 public:
  CudaSampling(const KernelCase& c, const KernelBenchOptions& options,
               std::unique_ptr<cuda::BenchDevice> device)
      : CudaSubject(c, std::move(device)), stride_((c.vocab_size + 3) / 4 * 4) {
    const auto* setting = std::find_if(std::begin(kSettings), std::end(kSettings),
                                       [&](const Setting& s) { return s.kernel == c.kernel; });
    sampling_.temperature = setting->temperature;
    sampling_.sample_top_k = setting->top_k;
    sampling_.sample_top_p = setting->top_p;
    sampling_.seed = options.seed;
    for (const bf16_t x : random_bf16(uint64_t{c.num_tokens} * stride_, options.seed))
      logits_.push_back(3.0f * bf16_to_f32(x));
    upload_places(logits_, options);
    params_.rules = {.temperature = sampling_.temperature,
                     .top_k = sampling_.sample_top_k,
                     .top_p = sampling_.sample_top_p,
                     .seed = sampling_.seed};
    params_.position = upload(std::vector<uint32_t>{kPosition});
    params_.scratch = cuda::SampleScratch::view(
        static_cast<uint8_t*>(
            device_->allocate(cuda::SampleScratch::bytes(c.num_tokens, c.vocab_size))),
        c.num_tokens, c.vocab_size);
    params_.tokens = static_cast<int32_t*>(device_->allocate(4 * uint64_t{c.num_tokens}));
    params_.num_rows = c.num_tokens;
    params_.vocab_size = c.vocab_size;
    work_.bytes = 4.0 * c.num_tokens * c.vocab_size;
  }

 private:
  static constexpr uint32_t kPosition = 1000;

  void call(uint32_t at) override {
    params_.logits = {reinterpret_cast<const float*>(place(at)), stride_};
    device_->launch(params_);
  }

  /// Nothing is rounded: the tokens are those of the CPU's sampler, or they are wrong.
  double worst_error_at(uint32_t at) override {
    std::vector<int32_t> tokens(measured_.num_tokens, -1);
    device_->upload(params_.tokens, tokens.data(), tokens.size() * 4);
    call(at);
    device_->download(tokens.data(), params_.tokens, tokens.size() * 4);
    std::vector<uint64_t> memory(sampler_scratch_bytes(measured_.vocab_size) / 8 + 2);
    for (uint32_t row = 0; row < measured_.num_tokens; ++row) {
      SampleRequest request;
      request.params = &sampling_;
      request.position = kPosition + row;
      request.scratch = memory.data();
      SampleResult result;
      sample_token(logits_.data() + uint64_t{row} * stride_, measured_.vocab_size, request, result);
      if (tokens[row] != result.token_id) return std::numeric_limits<double>::infinity();
    }
    return 0;
  }

  const uint32_t stride_;
  SamplingParams sampling_;
  std::vector<float> logits_;
  cuda::SampleParams params_;
};

}  // namespace

std::unique_ptr<Subject> make_cuda_sampling(const KernelCase& c, const KernelBenchOptions& options,
                                            std::unique_ptr<cuda::BenchDevice> device) {
  MIMO_RT_CHECK(c.format == "f32", invalid_argument, kWhere,
                "format: expected f32 logits for ", c.kernel, ", got '", c.format, "'");
  check_positive("num_tokens", c.num_tokens);
  check_positive("vocab_size", c.vocab_size);
  check_at_most("num_tokens", c.num_tokens, cuda::kMaxTokens);
  check_at_most("vocab_size", c.vocab_size, cuda::kMaxVocabSize);
  return std::make_unique<CudaSampling>(c, options, std::move(device));
}

}  // namespace mimo_rt::kbench
