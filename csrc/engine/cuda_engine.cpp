#include "engine/cuda_engine.h"

#include "core/checks.h"
#include "cuda/executor.h"
#include "engine/engine_impl.h"

#include <algorithm>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Engine.open";

void check_cuda_options(const EngineOptions& options, const cuda::StepDevice& device) {
  MIMO_RT_CHECK(options.activations == "bf16", unavailable, kWhere,
                "activations: expected bf16 on device 'cuda', got ", options.activations);
  MIMO_RT_CHECK(options.draft == "auto" || options.draft == "none", unavailable, kWhere,
                "draft: expected 'none' on device 'cuda', which does not draft yet, got '", options.draft, "'");
  MIMO_RT_CHECK(options.num_threads <= device.num_multiprocessors(), invalid_argument, kWhere,
                "num_threads: expected 0..", device.num_multiprocessors(), ", the multiprocessors of ", device.name(),
                ", got ", options.num_threads);
}

}  // namespace

Backend cuda_backend(const CudaDevices& cuda) {
  if (!cuda.built || cuda.devices.empty()) return {"cuda", false, cuda.reason};
  const CudaDevice& first = cuda.devices.front();
  const std::string name = concat(first.name, " (sm_", first.compute_major, first.compute_minor, ")");
  const bool fits = (first.compute_major == 9 || first.compute_major == 10) && first.compute_minor == 0;
  if (!fits) return {"cuda", false, concat("expected a GPU with compute capability 9.0 or 10.0, got ", name)};
  return {"cuda", true, concat("one resident kernel on ", name, ", ", first.num_sms, " multiprocessors")};
}

std::shared_ptr<Engine> open_cuda_engine(const Checkpoint& checkpoint, const ModelConfig& config, EngineOptions options,
                                         const std::filesystem::path& draft_dir,
                                         std::shared_ptr<cuda::StepDevice> device) {
  check_cuda_options(options, *device);
  options.max_decode_tokens = std::min(options.max_decode_tokens, cuda::kMaxStepTokens);
  options.prefill_chunk_tokens = std::min(options.prefill_chunk_tokens, cuda::kMaxStepTokens);
  PlanOptions plan;
  plan.num_workers = options.num_threads ? options.num_threads : device->num_multiprocessors();
  plan.fuse_norm = PlanOptions::FuseNorm::no;
  plan.whole_kv_heads = true;
  plan.is_round = true;  // many tokens per launch, also without a draft
  auto impl = Engine::Impl::prepare(config, nullptr, options, plan);
  if (!draft_dir.empty())
    impl->notes.emplace_back("the draft of this model is not used: the CUDA engine does not draft yet");
  if (options.packed_cache != "none")
    impl->notes.emplace_back("packed_cache is not used: the CUDA engine packs the weights at every start");
  const auto check_room = [&](uint64_t num_bytes) { cuda::check_free_for_weights(*device, num_bytes); };
  CudaWeights weights = CudaWeights::load(
      checkpoint, config, {.rank = {}, .pack = {.progress = options.progress, .check_room = check_room}});
  impl->weight_bytes = count_weight_bytes(weights, config);
  impl->executor =
      cuda::make_cuda_executor(std::move(device), std::move(weights), impl->config,
                               {&impl->decode_plan, &impl->prefill_plan, &*impl->round_plan},
                               {.timeout_ms = options.timeout_ms});
  return Engine::Impl::assemble(std::move(impl));
}

}  // namespace mimo_rt
