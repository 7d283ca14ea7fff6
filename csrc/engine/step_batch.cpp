#include "engine/step_batch.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace mimo_rt {

/// Rows of all requests, one request after the other. Its destructor takes back what was not kept.
class StepBatch {
 public:
  StepBatch(Engine::Impl& engine, std::span<const StepRequest> requests)
      : engine_(engine), requests_(requests) {}
  StepBatch(const StepBatch&) = delete;
  StepBatch& operator=(const StepBatch&) = delete;
  ~StepBatch() {
    for (size_t i = 0; i < begins_.size(); ++i) requests_[i].sequence->drop_from(begins_[i]);
  }

  void run() {
    for (const StepRequest& request : requests_) append(request);
    StepOutput output;
    std::vector<SampleResult> sampled;
    if (is_joined()) sampled.resize(logit_rows_.size());
    output.sampled = is_joined() ? sampled.data() : requests_[0].output->sampled;
    StepInput input = make_input();
    const Plan& plan = engine_.plan_for(input.num_tokens);
    if (is_joined()) {
      std::vector<KvCache*> caches;
      for (const StepRequest& request : requests_) caches.push_back(&request.sequence->cache_);
      KvCache cache(std::move(caches));
      engine_.executor->run(plan, cache, input, output);
    } else {
      engine_.executor->run(plan, requests_[0].sequence->cache_, input, output);
    }
    engine_.last_plan = &plan;  // not before: a refused step leaves no trace
    keep(output, input.num_context_rows);
  }

 private:
  bool is_joined() const { return requests_.size() > 1; }

  void append(const StepRequest& request) {
    const auto seq_idx = static_cast<uint32_t>(begins_.size());
    const auto first_row = static_cast<uint32_t>(token_ids_.size());
    const uint32_t begin = request.sequence->size();
    begins_.push_back(begin);
    request.sequence->append(request.tokens);
    token_ids_.insert(token_ids_.end(), request.tokens.begin(), request.tokens.end());
    seq_idx_.resize(token_ids_.size(), seq_idx);
    for (uint32_t i = 0; i < request.tokens.size(); ++i) positions_.push_back(begin + i);
    for (const uint32_t row : request.logit_rows) logit_rows_.push_back(first_row + row);
    if (request.sample) samples_.insert(samples_.end(), request.sample, request.sample + request.logit_rows.size());
  }

  StepInput make_input() const {
    StepInput input;
    input.num_tokens = static_cast<uint32_t>(token_ids_.size());
    input.token_ids = token_ids_.data();
    input.seq_idx = seq_idx_.data();
    input.positions = positions_.data();
    input.num_logit_rows = static_cast<uint32_t>(logit_rows_.size());
    input.logit_rows = logit_rows_.data();
    const bool has_samples = std::ranges::all_of(requests_, [](const StepRequest& r) { return r.sample != nullptr; });
    if (has_samples) input.sample = samples_.data();
    if (has_samples) input.num_best_logits = num_best_logits_of_all();
    input.reads_logits = !has_samples;
    if (engine_.draft) {
      input.context_begin = requests_[0].sequence->num_context_;
      input.num_context_rows = num_context_rows(begins_[0] - input.context_begin);
    }
    return input;
  }

  /// Of a prompt's step all that are pending, before its rows overwrite their features; while tokens come one by one, they
  /// cost less many at a time.
  uint32_t num_context_rows(uint32_t num_pending) const {
    const uint32_t most = engine_.round_plan->options().max_context_rows;
    const bool are_single = token_ids_.size() == requests_.size();
    return are_single && num_pending < std::min(most, kLazyContextRows) ? 0 : std::min(most, num_pending);
  }

  uint32_t num_best_logits_of_all() const {
    uint32_t most = 0;
    for (const SampleRequest& sample : samples_) {
      const uint32_t num_needed = num_best_logits(sample);
      if (!num_needed) return 0;
      most = std::max(most, num_needed);
    }
    return most;
  }

  void keep(const StepOutput& output, uint32_t num_context_rows) {
    size_t row = 0;
    for (size_t i = 0; i < requests_.size(); ++i) {
      const StepRequest& request = requests_[i];
      if (is_joined() && request.output->sampled)
        std::copy_n(output.sampled + row, request.logit_rows.size(), request.output->sampled);
      request.output->logits = output.logits ? output.logits + row * output.logits_stride : nullptr;
      request.output->logits_stride = output.logits_stride;
      request.output->active_experts = output.active_experts;
      request.sequence->keep_appended(i == 0 ? num_context_rows : 0);
      row += request.logit_rows.size();
    }
    begins_.clear();
  }

  Engine::Impl& engine_;
  std::span<const StepRequest> requests_;
  std::vector<uint32_t> begins_;  ///< sizes of the sequences before, of those that have been appended to
  std::vector<int32_t> token_ids_;
  std::vector<uint32_t> seq_idx_, positions_, logit_rows_;
  std::vector<SampleRequest> samples_;
};

void run_step(Engine::Impl& engine, std::span<const StepRequest> requests) { StepBatch(engine, requests).run(); }

}  // namespace mimo_rt
