#include "engine/cuda_engine.h"

#include "checkpoint/draft_tensors.h"
#include "core/checks.h"
#include "cuda/executor.h"
#include "cuda/persistent.h"
#include "engine/engine_impl.h"
#include "engine/measured_costs.h"
#include "weights/random_checkpoint.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string_view>
#include <utility>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Engine.open";
/// Of random weights, in every layer; expert i is a copy of i modulo this. So experts of a token may have the same
/// weights: of 8 drawn evenly from many, 5.3 different ones in the mean. Each lies in memory of its own.
constexpr uint32_t kDistinctExperts = 8;

void check_cuda_options(const EngineOptions& options, const DraftConfig* draft, const cuda::StepDevice& device) {
  MIMO_RT_CHECK(options.activations == "bf16", unavailable, kWhere,
                "activations: expected bf16 on device 'cuda', got ", options.activations);
  MIMO_RT_CHECK(options.num_threads <= device.num_multiprocessors(), invalid_argument, kWhere,
                "num_threads: expected 0..", device.num_multiprocessors(), ", the multiprocessors of ", device.name(),
                ", got ", options.num_threads);
  MIMO_RT_CHECK(!draft || draft->block_size <= cuda::kMaxBlockTokens, unsupported_shape, kWhere,
                "draft block_size: expected at most ", cuda::kMaxBlockTokens, " on device 'cuda', got ",
                draft ? draft->block_size : 0, '.');
}

/// The draft to use. One that was found beside the model, and whose blocks are too large, is left out with a note.
std::optional<DraftConfig> read_draft(const ModelConfig& config, const std::filesystem::path& draft_dir, bool was_found,
                                      std::vector<std::string>& notes) {
  if (draft_dir.empty()) return std::nullopt;
  DraftConfig draft = DraftConfig::from_directory(draft_dir);
  draft.check_target(config);
  if (!was_found || draft.block_size <= cuda::kMaxBlockTokens) return draft;
  notes.push_back(concat("the draft of this model is not used: its blocks have ", draft.block_size,
                         " tokens, the CUDA engine verifies ", cuda::kMaxBlockTokens, "; drafts come from the text instead"));
  return std::nullopt;
}

/// Makes of the options what this engine does, with a note for each that was set to something else. One that has its
/// default was not set.
void fit_options(EngineOptions& options, const ModelConfig& config, std::vector<std::string>& notes) {
  const EngineOptions usual;
  const auto lower = [&](const char* name, uint32_t& value, uint32_t default_value, uint32_t most) {
    if (value > most && value != default_value)
      notes.push_back(concat(name, " is ", most, ", not ", value, ": more is not for the CUDA engine"));
    value = std::min(value, most);
  };
  lower("max_decode_tokens", options.max_decode_tokens, usual.max_decode_tokens, cuda::kMaxBlockTokens);
  lower("prefill_chunk_tokens", options.prefill_chunk_tokens, usual.prefill_chunk_tokens, cuda_max_step_tokens(config));
  lower("timeout_ms", options.timeout_ms, usual.timeout_ms, cuda::kMaxDeadlineNs / 1'000'000);
}

/// For bench/gpu_bits.py, which is to find the same bits for all seeds: see ExecutorOptions::delay_seed.
uint32_t delay_seed_of_environment() {
  constexpr const char* kName = "MIMO_RT_CUDA_DELAY_SEED";
  const char* value = std::getenv(kName);
  if (!value) return 0;
  const std::string_view text(value);
  uint32_t seed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  MIMO_RT_CHECK(error == std::errc{} && end == text.data() + text.size(), invalid_argument, kWhere, kName,
                ": expected a number of 32 bits, got '", text, "'");
  return seed;
}

}  // namespace

Backend cuda_backend(const CudaDevices& cuda) {
  if (!cuda.built || cuda.devices.empty()) return {"cuda", false, cuda.reason};
  const CudaDevice& first = cuda.devices.front();
  const std::string name = concat(first.name, " (sm_", first.compute_major, first.compute_minor, ")");
  if (!has_capability(cuda.capabilities, first.compute_major, first.compute_minor))
    return {"cuda", false, concat("expected a GPU with compute capability ", cuda.capabilities,
                                  ", which the kernels are compiled for, got ", name)};
  return {"cuda", true, concat("one resident kernel on ", name, ", ", first.num_sms, " multiprocessors")};
}

PlanOptions cuda_plan_options() {
  PlanOptions options;
  options.fuse_norm = PlanOptions::FuseNorm::no;
  // A row of 4096 keys keeps as many multiprocessors busy as it has splits; partial results of a split are 5 % of its
  // keys and values (16 q heads to a kv head).
  options.attention_split_keys = 256;
  options.tag_edges = true;
  options.sample_by_all = true;
  options.max_tokens = options.max_logit_rows = cuda::kMaxBlockTokens;
  // An H200, from what is published, nothing of it measured here: 4.8 TB/s, of which a plain read gets about 90 %, over
  // 132 multiprocessors; half of the 989 TFLOP/s of dense BF16 products; edges by counters take 1 to 2.6 us in other
  // persistent kernels. A B200 has more of everything in about the same proportions, and proportions are what counts.
  options.bytes_per_ns = 4300.0 / 132;
  options.macs_per_ns = 0.5 * 989e3 / 2 / 132;
  options.task_overhead_ns = 2000.0;
  return options;
}

uint32_t cuda_max_step_tokens(const ModelConfig& config) {
  return std::min(cuda::kMaxStepTokens, cuda::kMaxExpertSlots / std::max(config.experts_per_token, 1u));
}

namespace {

static_assert(kNgramBlockSize <= cuda::kMaxBlockTokens);

/// What an engine is packed from.
struct Sources {
  const Checkpoint& model;
  const Checkpoint* draft = nullptr;
  bool has_lookup = false;          ///< without a draft: drafts come from the text
  uint32_t num_packed_experts = 0;  ///< see CudaWeights::Options
};

std::shared_ptr<Engine> build_engine(const Sources& sources, const ModelConfig& config, const DraftConfig* draft_config,
                                     EngineOptions options, std::shared_ptr<cuda::StepDevice> device) {
  check_cuda_options(options, draft_config, *device);
  std::vector<std::string> notes;
  fit_options(options, config, notes);
  PlanOptions plan = cuda_plan_options();
  plan.num_workers = options.num_threads ? options.num_threads : device->num_multiprocessors();
  plan.is_round = true;  // many tokens per launch, also without a draft, then of one
  plan.max_tokens = sources.has_lookup ? kNgramBlockSize : 1;
  std::string costs_note;
  plan.costs = costs_for_plan({.backend = "cuda",
                               .num_workers = plan.num_workers,
                               .activations = options.activations,
                               .kernel_set = {},
                               .processor = device->name()},
                              costs_note);
  if (!costs_note.empty()) notes.push_back(costs_note);
  auto impl = Engine::Impl::prepare(config, draft_config, options, plan);
  impl->has_lookup = sources.has_lookup;
  impl->notes.insert(impl->notes.end(), notes.begin(), notes.end());
  std::optional<CudaDraftWeights> draft;
  const auto check_room = [&](uint64_t num_bytes) {  // the draft is packed by then, and goes to the GPU as well
    cuda::check_free_for_weights(*device, num_bytes + (draft ? draft->image().num_bytes : 0));
  };
  if (draft_config)  // small, so without progress of its own, and first: a bad one fails at once
    draft.emplace(CudaDraftWeights::load(*sources.draft, *draft_config, {sources.model, config},
                                         {.progress = nullptr, .check_room = check_room}));
  if (draft && draft->lm_head()) {
    const auto* ids = reinterpret_cast<const int32_t*>(draft->block().data() + draft->vocab_ids());
    impl->draft_ids.assign(ids, ids + draft_config->draft_vocab_size);
  }
  CudaWeights weights = CudaWeights::load(
      sources.model, config, {.rank = {}, .pack = {.progress = options.progress, .check_room = check_room},
                              .num_packed_experts = sources.num_packed_experts});
  impl->weight_bytes = count_weight_bytes(weights, draft ? &*draft : nullptr, config);
  impl->executor =
      cuda::make_cuda_executor(std::move(device), std::move(weights), impl->config,
                               {&impl->decode_plan, &impl->prefill_plan, &*impl->round_plan},
                               {.timeout_ms = options.timeout_ms, .delay_seed = delay_seed_of_environment()},
                               std::move(draft));
  return Engine::Impl::assemble(std::move(impl));
}

}  // namespace

std::shared_ptr<Engine> open_cuda_engine(const Checkpoint& checkpoint, const ModelConfig& config, EngineOptions options,
                                         const std::filesystem::path& draft_dir,
                                         std::shared_ptr<cuda::StepDevice> device) {
  std::vector<std::string> notes;
  const std::optional<DraftConfig> draft = read_draft(config, draft_dir, options.draft == "auto", notes);
  if (options.packed_cache != "none")
    notes.emplace_back("packed_cache is not used: the CUDA engine packs the weights at every start");
  std::optional<Checkpoint> draft_files;
  if (draft) draft_files.emplace(open_draft(draft_dir, {.use_mmap = options.use_mmap}));
  const bool has_lookup = !draft && (options.draft == kNgramDraft || options.draft == "auto");
  auto engine = build_engine({checkpoint, draft_files ? &*draft_files : nullptr, has_lookup}, config,
                             draft ? &*draft : nullptr, std::move(options), std::move(device));
  for (std::string& note : notes) engine->impl().notes.push_back(std::move(note));
  return engine;
}

std::shared_ptr<Engine> synthetic_cuda_engine(const ModelConfig& config, uint64_t seed, const EngineOptions& options,
                                              const DraftConfig* draft, std::shared_ptr<cuda::StepDevice> device) {
  const Checkpoint checkpoint = random_checkpoint(config, seed);
  std::optional<Checkpoint> draft_checkpoint;
  if (draft) draft_checkpoint.emplace(random_checkpoint(*draft, seed + 1));
  const Sources sources{checkpoint, draft_checkpoint ? &*draft_checkpoint : nullptr,
                        !draft && options.draft == kNgramDraft, kDistinctExperts};
  return build_engine(sources, config, draft, options, std::move(device));
}

}  // namespace mimo_rt
