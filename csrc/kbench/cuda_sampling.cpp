#include <limits>

#include "kbench/cuda_subject.h"
#include "kbench/cuda_subjects.h"
#include "sampling/speculative.h"
#include "weights/random_fill.h"

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
    {"sample_filtered", 0.8f, 50, 0.95f},  // top-k and top-p first
    {"sample_verify", 1.0f, 0, 1.0f}       // drafts drawn from another distribution, kept or not
};

/// Rows of logits that are drawn from one by one, without a draft. Places are copies of them.
class CudaSampling : public CudaSubject {
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

 protected:
  static constexpr uint32_t kPosition = 1000;

  void call(uint32_t at) override {
    params_.logits = {reinterpret_cast<const float*>(place(at)), stride_};
    device_->launch(params_);
  }
  /// A row as the CPU's sampler is asked for it.
  SampleRequest request(uint32_t row, std::vector<uint64_t>& memory) const {
    memory.resize(sampler_scratch_bytes(measured_.vocab_size) / 8 + 2);
    SampleRequest request;
    request.params = &sampling_;
    request.position = kPosition + row;
    request.scratch = memory.data();
    return request;
  }
  const float* row(uint32_t row) const { return logits_.data() + uint64_t{row} * stride_; }

  /// Nothing is rounded: the tokens are those of the CPU's sampler, or they are wrong.
  double worst_error_at(uint32_t at) override {
    std::vector<int32_t> tokens(measured_.num_tokens, -1);
    device_->upload(params_.tokens, tokens.data(), tokens.size() * 4);
    call(at);
    device_->download(tokens.data(), params_.tokens, tokens.size() * 4);
    for (uint32_t row = 0; row < measured_.num_tokens; ++row)
      if (tokens[row] != token_on_cpu(row)) return std::numeric_limits<double>::infinity();
    return 0;
  }
  virtual int32_t token_on_cpu(uint32_t at) {
    std::vector<uint64_t> memory;
    SampleResult result;
    sample_token({row(at), measured_.vocab_size}, request(at, memory), result);
    return result.token_id;
  }

  const uint32_t stride_;
  SamplingParams sampling_;
  std::vector<float> logits_;
  cuda::SampleParams params_;
};

/// "sample_verify": a block whose drafts were drawn from their own logits, and how many of them stay.
class CudaVerification final : public CudaSampling {
 public:
  CudaVerification(const KernelCase& c, const KernelBenchOptions& options,
                   std::unique_ptr<cuda::BenchDevice> device)
      : CudaSampling(c, options, std::move(device)), proposals_(c.num_tokens), memory_(c.num_tokens) {
    Random random(options.seed ^ 5);
    for (const float logit : logits_)  // often right, never quite
      draft_logits_.push_back(logit + static_cast<float>(random.next() % 1024) / 1024);
    draw_drafts();
    accept_.tokens = params_.tokens;
    accept_.block = params_.block;
    accept_.num_accepted = static_cast<uint32_t*>(device_->allocate(4));
    accept_.next_token = static_cast<int32_t*>(device_->allocate(4));
    accept_.num_rows = c.num_tokens;
    work_.bytes += 8.0 * (c.num_tokens - 1) * c.vocab_size;  // the weights of the drafts
  }

 private:
  /// On the device, as the target finds them there, and on the CPU.
  void draw_drafts() {
    const uint32_t num_drafts = measured_.num_tokens - 1, vocab_size = measured_.vocab_size;
    cuda::SampleParams draft = params_;
    draft.role = cuda::SampleRole::draft;
    draft.logits = {upload(draft_logits_), stride_};
    draft.scratch = cuda::SampleScratch::view(
        static_cast<uint8_t*>(device_->allocate(cuda::SampleScratch::bytes(num_drafts, vocab_size))),
        num_drafts, vocab_size);
    draft.num_rows = num_drafts;
    device_->launch(draft);
    block_ = {0};
    for (uint32_t i = 1; i <= num_drafts; ++i) {
      const LogitRow logits{draft_logits_.data() + uint64_t{i - 1} * stride_, vocab_size};
      proposals_[i] = draw_draft(logits, request(i - 1, memory_[i]), i);
      block_.push_back(proposals_[i].token_id);
    }
    params_.proposals = draft.scratch;
    params_.block = upload(block_);
  }

  void call(uint32_t at) override {
    CudaSampling::call(at);
    device_->launch(accept_);
  }

  int32_t token_on_cpu(uint32_t at) override {
    if (at + 1 == measured_.num_tokens) return CudaSampling::token_on_cpu(at);
    SampleResult result;
    verify_draft({row(at), measured_.vocab_size}, request(at, memory_[0]), at + 1, proposals_[at + 1], result);
    return result.token_id;
  }

  /// Rows do not look at those before them; what has been accepted does.
  double worst_error_at(uint32_t at) override {
    const std::vector<uint32_t> none = {~0u};
    device_->upload(accept_.num_accepted, none.data(), 4);
    device_->upload(accept_.next_token, none.data(), 4);
    const double worst = CudaSampling::worst_error_at(at);
    uint32_t num_accepted = 0, expected = 0;
    int32_t next_token = 0;
    device_->download(&num_accepted, accept_.num_accepted, 4);
    device_->download(&next_token, accept_.next_token, 4);
    while (expected + 1 < measured_.num_tokens && token_on_cpu(expected) == block_[expected + 1])
      ++expected;
    const bool is_right = num_accepted == expected && next_token == token_on_cpu(expected);
    return is_right ? worst : std::numeric_limits<double>::infinity();
  }

  std::vector<float> draft_logits_;
  std::vector<Proposal> proposals_;  // [1 .. num_tokens - 1], in the memory of their rows
  std::vector<std::vector<uint64_t>> memory_;
  std::vector<int32_t> block_;
  cuda::AcceptParams accept_;
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
  if (c.kernel != "sample_verify")
    return std::make_unique<CudaSampling>(c, options, std::move(device));
  MIMO_RT_CHECK(c.num_tokens >= 2, invalid_argument, kWhere,
                "num_tokens: expected at least 2 for sample_verify, the anchor and a draft, got ",
                c.num_tokens);
  return std::make_unique<CudaVerification>(c, options, std::move(device));
}

}  // namespace mimo_rt::kbench
