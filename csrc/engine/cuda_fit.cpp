// Whether the CUDA engine takes a model, and what room there is for it: asked without opening an engine.
#include "core/checks.h"
#include "cuda/device_plan.h"
#include "engine/cuda_engine.h"
#include "engine/engine_impl.h"

#include <mimo_rt/checkpoint.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>

namespace mimo_rt {
namespace {

constexpr uint32_t kNumWorkers = 132;  ///< an H200's multiprocessors; kernels take the same sizes with any number

/// The draft of the engine, which leaves out one with larger blocks that nobody has named.
std::optional<DraftConfig> usable_draft(const ModelConfig& config, const std::filesystem::path& draft_dir, bool is_named) {
  if (draft_dir.empty()) return std::nullopt;
  DraftConfig draft = DraftConfig::from_directory(draft_dir);
  draft.check_target(config);
  if (draft.block_size <= cuda::kMaxBlockTokens) return draft;
  MIMO_RT_CHECK(!is_named, unsupported_shape, "cuda_weight_bytes", "draft block_size: expected at most ",
                cuda::kMaxBlockTokens, " on device 'cuda', got ", draft.block_size, '.');
  return std::nullopt;
}

/// That the kernels take all sizes of a round and of a step of a prompt.
void check_sizes(const ModelConfig& config, const DraftConfig* draft, const CudaWeights& weights,
                 const CudaDraftWeights* draft_weights) {
  PlanOptions options = cuda_plan_options();
  options.num_workers = kNumWorkers;
  options.max_context_rows = draft ? cuda_max_step_tokens(config) : 0;
  for (const bool is_round : {true, false}) {
    options.is_round = is_round;
    options.max_tokens = !is_round ? cuda_max_step_tokens(config) : draft ? draft->block_size : cuda::kMaxBlockTokens;
    options.max_logit_rows = std::min(options.max_tokens, cuda::kMaxBlockTokens);
    cuda::check_operands(Plan::build(config, options, draft), config, weights, draft_weights);
  }
}

}  // namespace

uint64_t cuda_weight_bytes(const std::filesystem::path& model_dir, const std::string& draft_name) {
  const ModelConfig config = ModelConfig::from_directory(model_dir);
  const Checkpoint checkpoint = Checkpoint::open(model_dir);
  checkpoint.validate(config);
  const std::filesystem::path draft_dir = find_draft(model_dir, draft_name);
  const std::optional<DraftConfig> draft = usable_draft(config, draft_dir, draft_name != "auto");
  const CudaPackOptions layout{.progress = nullptr, .only_lays_out = true};
  std::optional<CudaDraftWeights> draft_weights;
  if (draft) draft_weights.emplace(CudaDraftWeights::load(draft_dir, *draft, {checkpoint, config}, layout));
  const CudaWeights weights = CudaWeights::load(checkpoint, config, {.rank = {}, .pack = layout});
  check_sizes(config, draft ? &*draft : nullptr, weights, draft_weights ? &*draft_weights : nullptr);
  return weights.image().num_bytes + (draft_weights ? draft_weights->image().num_bytes : 0);
}

uint64_t free_gpu_bytes() { return cuda::open_step_device()->free_bytes(); }

}  // namespace mimo_rt
