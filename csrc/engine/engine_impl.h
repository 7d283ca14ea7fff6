// What an engine holds. Tests assemble one around an executor of their own.
#pragma once

#include <mimo_rt/engine.h>

#include "engine/draft_learning.h"
#include "engine/joint_steps.h"
#include "engine/prompt_pace.h"
#include "engine/step.h"
#include "engine/step_queue.h"
#include "weights/cuda_draft_weights.h"
#include "weights/cuda_weights.h"
#include "weights/draft_weights.h"
#include "weights/weights.h"

#include <atomic>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace mimo_rt {

inline constexpr const char* kNgramDraft = "ngram";  ///< EngineOptions.draft: drafts come from NgramLookup

/// The folder of the draft model that EngineOptions.draft names; empty: none.
std::filesystem::path find_draft(const std::filesystem::path& model_dir, const std::string& draft);

/// Weight bytes by how often a step reads them.
struct WeightBytes {
  uint64_t total = 0;           ///< packed, the draft's included
  uint64_t dense_per_step = 0;  ///< all but embedding rows and experts
  uint64_t per_expert = 0;      ///< one expert of one layer
  uint64_t per_draft = 0;       ///< drafting one block: the draft's weights and the lm_head
};
WeightBytes count_weight_bytes(const Weights& weights, const DraftWeights* draft);
WeightBytes count_weight_bytes(const CudaWeights& weights, const CudaDraftWeights* draft, const ModelConfig& config);

struct Engine::Impl {
  EngineOptions options;
  ModelConfig config;
  std::unique_ptr<Weights> weights;     ///< nullptr: the executor has them on its device
  std::optional<DraftConfig> draft;     ///< without: the engine does not draft
  std::vector<int32_t> draft_ids;       ///< tokens of the draft's logits, ascending; empty: all
  std::unique_ptr<DraftWeights> draft_weights;  ///< nullptr: there is no draft, or the executor has it on its device
  std::vector<PackedCacheReport> packed_cache;
  Plan decode_plan, prefill_plan;
  std::optional<Plan> round_plan;       ///< with drafts, or when the executor decodes in rounds anyway
  bool has_lookup = false;              ///< drafts come from NgramLookup
  uint32_t max_logit_rows = 1;         ///< of a step
  WeightBytes weight_bytes;
  std::vector<std::string> notes;       ///< known since the load
  std::atomic<double> bandwidth_gbs = 0.0;  ///< 0: not measured

  DraftLearning draft_learning;
  std::atomic<uint32_t> num_decoding = 0;   ///< generations that are past their prompt and not in their callback
  std::atomic<uint32_t> num_sharing = 0;    ///< of these, those that share steps if that pays
  PromptPace prompt_pace;
  JointSteps joint_steps;              ///< takes `steps` itself
  StepQueue steps;                     ///< guards what follows
  const Plan* last_plan = nullptr;     ///< of the last step
  std::unique_ptr<Executor> executor;  ///< last member: it goes first, the others outlive it

  /// The plan for a step of `num_tokens` rows.
  const Plan& plan_for(uint32_t num_tokens) const {
    return num_tokens <= options.max_decode_tokens ? decode_plan : prefill_plan;
  }
  uint32_t max_step_tokens() const {
    return std::max(options.max_decode_tokens, options.prefill_chunk_tokens);
  }
  /// Tokens of a round: the anchor and drafts. 1: this engine does not draft.
  uint32_t block_size() const { return round_plan ? round_plan->options().max_tokens : 1; }
  DraftSource draft_source() const { return has_lookup ? DraftSource::ngram_lookup : DraftSource::model; }
  /// Whether sessions may share steps. Rounds that draft with a model are a session's own.
  bool joins_steps() const { return executor->joins_sequences(); }
  const DraftConfig* draft_config() const { return draft ? &*draft : nullptr; }
  /// What is known before the weights: plans and their proof, which also check the config. `plan`: workers, norms, the
  /// most rows of logits; is_round: rounds also without a draft, of max_tokens.
  static std::unique_ptr<Impl> prepare(const ModelConfig& config, const DraftConfig* draft, const EngineOptions& options,
                                       PlanOptions plan);
  static std::shared_ptr<Engine> assemble(std::unique_ptr<Impl> impl);
};

}  // namespace mimo_rt
