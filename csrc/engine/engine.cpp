#include "engine/engine_impl.h"

#include "checkpoint/tensor_table.h"
#include "core/checks.h"
#include "core/pin.h"
#include "cpu/dispatch.h"
#include "cuda/read_speed.h"
#include "engine/bandwidth.h"
#include "engine/cuda_engine.h"
#include "engine/machine_notes.h"
#include "engine/measured_costs.h"
#include "engine/vector_peak.h"
#include "engine/weight_readers.h"
#include "plan/trace.h"

#include <mimo_rt/checkpoint.h>
#include <mimo_rt/costs.h>
#include <mimo_rt/device.h>

#include <algorithm>
#include <mutex>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Engine.open";
constexpr uint32_t kMaxThreads = 1024;
constexpr uint32_t kMaxStepTokens = 4096;
constexpr uint32_t kMaxLogitRows = 64;  // rows of [vocab] floats that the arena holds

void check_range(const char* name, uint32_t value, uint32_t low, uint32_t high) {
  MIMO_RT_CHECK(value >= low && value <= high, invalid_argument, kWhere, name, ": expected ", low,
                "..", high, ", got ", value);
}

Activations parse_activations(const std::string& name) {
  MIMO_RT_CHECK(name == "bf16" || name == "int8", invalid_argument, kWhere,
                "activations: expected bf16 or int8, got '", name, "'");
  return name == "int8" ? Activations::int8 : Activations::bf16;
}

void check_options(const EngineOptions& options) {
  MIMO_RT_CHECK(parse_activations(options.activations) == Activations::bf16 || !options.exact,
                invalid_argument, kWhere, "activations: expected bf16 with exact, got int8");
  check_range("num_threads", options.num_threads, 0, kMaxThreads);
  check_range("timeout_ms", options.timeout_ms, 1, ~0u);
  check_range("max_decode_tokens", options.max_decode_tokens, 1, kMaxStepTokens);
  MIMO_RT_CHECK(!options.draft.empty(), invalid_argument, kWhere,
                "draft: expected 'none', 'auto', 'ngram' or a directory, got an empty text");
  MIMO_RT_CHECK(!options.packed_cache.empty(), invalid_argument, kWhere,
                "packed_cache: expected 'none', 'auto' or a directory, got an empty text");
  check_range("prefill_chunk_tokens", options.prefill_chunk_tokens, 1, kMaxStepTokens);
}

std::string pick_backend(const EngineOptions& options) {
  const std::string backend = resolve_backend(options.device);
  MIMO_RT_CHECK(!options.exact || backend == "ref", invalid_argument, kWhere,
                "exact: expected false or device 'ref', got device '", options.device, "'");
  return backend;
}

/// With at most `options.max_logit_rows` rows of logits.
Plan build_plan(const ModelConfig& config, const DraftConfig* draft, PlanOptions options) {
  options.max_logit_rows = std::min(options.max_tokens, options.max_logit_rows);
  Plan plan = Plan::build(config, options, draft);
  plan.verify();
  return plan;
}

/// Plans for the workers of a CPU, by the costs measured on it if they were.
std::unique_ptr<Engine::Impl> prepare_engine(const ModelConfig& config, const DraftConfig* draft, bool has_lookup,
                                             const EngineOptions& options,
                                             const std::string& backend) {
  PlanOptions plan;
  plan.num_workers = options.num_threads ? options.num_threads : num_usable_cores();
  plan.is_round = has_lookup;
  plan.max_tokens = kNgramBlockSize;
  plan.max_logit_rows = kMaxLogitRows;
  std::string note;
  if (backend != "ref") plan.costs = costs_for_plan(cost_key(backend, plan.num_workers, options.activations), note);
  auto impl = Engine::Impl::prepare(config, draft, options, plan);
  impl->has_lookup = has_lookup;
  if (!note.empty()) impl->notes.push_back(note);
  return impl;
}

/// Where the weights should lie for steps of few tokens, which are those that wait for memory.
PagePlacement weight_placement(const Engine::Impl& impl, const std::string& backend) {
  if (backend == "ref" || !impl.options.pin_threads) return {};
  const Plan& plan = impl.round_plan ? *impl.round_plan : impl.decode_plan;
  return placement_for(plan, cores_to_pin(plan.num_workers()));
}

/// Everything after the weights: the executor.
std::shared_ptr<Engine> build_engine(std::unique_ptr<Engine::Impl> impl,
                                     const std::string& backend) {
  DraftWeights* draft = impl->draft_weights.get();
  if (draft) draft->bind(*impl->weights);
  if (draft && draft->vocab_ids())
    impl->draft_ids.assign(draft->vocab_ids(), draft->vocab_ids() + draft->config().draft_vocab_size);
  impl->weight_bytes = count_weight_bytes(*impl->weights, draft);
  const EngineOptions& options = impl->options;
  const ExecutorOptions executor_options{.num_workers = impl->decode_plan.num_workers(),
                                         .pin_workers = options.pin_threads,
                                         .park_after_us = options.park_after_us,
                                         .yield_cores = options.yield_cores,
                                         .timeout_ms = options.timeout_ms,
                                         .activations = parse_activations(options.activations)};
  std::vector<const Plan*> plans = {&impl->decode_plan, &impl->prefill_plan};
  if (impl->round_plan) plans.push_back(&*impl->round_plan);
  impl->executor =
      backend == "ref"
          ? make_ref_executor(*impl->weights, draft, plans, executor_options, options.exact)
          : make_cpu_executor(*impl->weights, draft, plans, backend, executor_options);
  return Engine::Impl::assemble(std::move(impl));
}

}  // namespace

std::filesystem::path find_draft(const std::filesystem::path& model_dir, const std::string& draft) {
  if (draft == "none" || draft == kNgramDraft) return {};
  if (draft != "auto") return draft;
  const std::filesystem::path usual = model_dir / "dflash";
  std::error_code error;
  return std::filesystem::is_directory(usual, error) ? usual : std::filesystem::path();
}

std::unique_ptr<Engine::Impl> Engine::Impl::prepare(const ModelConfig& config,
                                                    const DraftConfig* draft,
                                                    const EngineOptions& options,
                                                    PlanOptions plan) {
  auto impl = std::make_unique<Engine::Impl>();
  impl->config = config;
  if (draft) impl->draft = *draft;
  impl->options = options;
  impl->options.progress = nullptr;  // what it refers to may end with the load
  const bool has_rounds = draft || plan.is_round;
  const uint32_t block_size = draft ? draft->block_size : plan.max_tokens;
  plan.is_round = false;
  // Features of one step wait at most until the next: see csrc/engine/round.h.
  plan.max_context_rows = draft ? std::max(impl->max_step_tokens(), draft->block_size) : 0;
  plan.max_tokens = options.max_decode_tokens;
  impl->decode_plan = build_plan(impl->config, draft, plan);
  plan.max_tokens = options.prefill_chunk_tokens;
  impl->prefill_plan = plan.max_tokens == options.max_decode_tokens
                           ? impl->decode_plan
                           : build_plan(impl->config, draft, plan);
  if (has_rounds) {
    plan.max_tokens = block_size;
    plan.is_round = true;
    impl->round_plan = build_plan(impl->config, draft, plan);
  }
  impl->max_logit_rows = std::min(options.prefill_chunk_tokens, plan.max_logit_rows);
  return impl;
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

std::shared_ptr<Engine> Engine::Impl::assemble(std::unique_ptr<Impl> impl) {
  return std::shared_ptr<Engine>(new Engine(std::move(impl)));
}

std::shared_ptr<Engine> Engine::open(const std::filesystem::path& model_dir,
                                     const EngineOptions& options) {
  check_options(options);
  const std::string backend = pick_backend(options);
  const ModelConfig config = ModelConfig::from_directory(model_dir, options.window_tokens);
  const Checkpoint checkpoint = Checkpoint::open(model_dir, {.use_mmap = options.use_mmap});
  checkpoint.validate(config);
  const std::filesystem::path draft_dir = find_draft(model_dir, options.draft);
  if (backend == "cuda")
    return open_cuda_engine(checkpoint, config, options, draft_dir, cuda::open_step_device());
  std::optional<DraftConfig> draft;
  if (!draft_dir.empty()) {
    draft = DraftConfig::from_directory(draft_dir);
    draft->check_target(config);
  }
  // The reference decodes plainly unless it is told otherwise: it is what others are compared with.
  const bool has_lookup = !draft && (options.draft == kNgramDraft || (options.draft == "auto" && backend != "ref"));
  auto impl = prepare_engine(config, draft ? &*draft : nullptr, has_lookup, options, backend);
  Weights::Options load{.num_threads = options.num_threads,
                        .progress = nullptr,
                        .cache_dir = packed_cache_directory(options.packed_cache),
                        .use_mmap = options.use_mmap};
  if (draft) {  // small, so without progress of its own, and first: a bad one fails at once
    const MatrixSource embedding = find_matrix(checkpoint, config, MatrixKind::embed);
    impl->draft_weights = std::make_unique<DraftWeights>(DraftWeights::load(
        draft_dir, *draft, load, {.use_mmap = options.use_mmap}, embedding.weight));
  }
  load.progress = options.progress;
  const PagePlacement placement = weight_placement(*impl, backend);
  load.placement = &placement;
  impl->weights = std::make_unique<Weights>(Weights::load(checkpoint, config, load));
  impl->packed_cache.push_back(impl->weights->cache_report());
  if (draft) impl->packed_cache.push_back(impl->draft_weights->cache_report());
  return build_engine(std::move(impl), backend);
}

std::shared_ptr<Engine> Engine::synthetic(const ModelConfig& config, uint64_t seed,
                                          const EngineOptions& options,
                                          const DraftConfig* draft) {
  check_options(options);
  const std::string backend = pick_backend(options);
  ModelConfig adjusted = config;
  for (LayerConfig& layer : adjusted.layers)
    if (layer.window_tokens && options.window_tokens) layer.window_tokens = options.window_tokens;
  if (draft) draft->check_target(adjusted);
  if (backend == "cuda") return synthetic_cuda_engine(adjusted, seed, options, draft, cuda::open_step_device());
  auto impl = prepare_engine(adjusted, draft, !draft && options.draft == kNgramDraft, options, backend);
  const PagePlacement placement = weight_placement(*impl, backend);
  impl->weights = std::make_unique<Weights>(Weights::synthetic(adjusted, seed, &placement));
  if (draft)
    impl->draft_weights = std::make_unique<DraftWeights>(DraftWeights::synthetic(*draft, seed + 1));
  return build_engine(std::move(impl), backend);
}

const ModelConfig& Engine::config() const { return impl_->config; }
const EngineOptions& Engine::options() const { return impl_->options; }
const std::string& Engine::backend() const { return impl_->executor->backend_name(); }
bool Engine::joins_steps() const { return impl_->joins_steps(); }
uint32_t Engine::num_workers() const { return impl_->executor->num_workers(); }
const Plan& Engine::decode_plan() const { return impl_->decode_plan; }
const Plan& Engine::prefill_plan() const { return impl_->prefill_plan; }
const DraftConfig* Engine::draft_config() const { return impl_->draft_config(); }
const Plan* Engine::round_plan() const {
  return impl_->round_plan ? &*impl_->round_plan : nullptr;
}
uint32_t Engine::max_draft_tokens() const { return impl_->block_size() - 1; }
uint64_t Engine::draft_bytes_per_round() const { return impl_->weight_bytes.per_draft; }
uint64_t Engine::weight_bytes() const { return impl_->weight_bytes.total; }
uint64_t Engine::dense_bytes_per_step() const { return impl_->weight_bytes.dense_per_step; }
uint64_t Engine::expert_bytes() const { return impl_->weight_bytes.per_expert; }

std::vector<PackedCacheReport> Engine::packed_cache() const { return impl_->packed_cache; }

std::vector<std::string> Engine::notes() const {
  std::vector<std::string> notes = impl_->notes;
  const auto add = [&](std::string note) {
    if (!note.empty()) notes.push_back(std::move(note));
  };
  if (backend() != "ref" && backend() != "cuda") add(note_on_workers(num_workers(), num_usable_cores()));
  add(note_on_cores(impl_->executor->missing_cores(), num_workers(), num_usable_cores()));
  const uint8_t *begin = nullptr, *end = nullptr;
  if (impl_->weights)
    for (const ReadRange& range : weight_ranges(*impl_->weights)) {
      if (!begin || range.data < begin) begin = range.data;
      end = std::max(end, range.data + range.bytes);
    }
  add(note_on_pages(page_use(begin, end)));
  return notes;
}

double Engine::measure_bandwidth_gbs(double seconds, const std::function<void()>& poll) {
  MIMO_RT_CHECK(seconds > 0.0 && seconds <= 60.0, invalid_argument, "Engine.measure_bandwidth_gbs",
                "seconds: expected > 0 and <= 60, got ", seconds);
  constexpr double kPollSeconds = 0.5;
  const auto measure = [&](double part_seconds) {
    const std::lock_guard lock(impl_->steps);
    if (backend() == "cuda") return cuda::measure_read_gbs(*cuda::open_bench_device(), part_seconds);
    const std::vector<ReadRange> ranges =
        impl_->weights ? weight_ranges(*impl_->weights) : std::vector<ReadRange>{};
    return measure_read_gbs(ranges, {.num_threads = num_workers(),
                                     .pin_threads = impl_->options.pin_threads,
                                     .seconds = part_seconds});
  };
  double gbs = 0.0;
  for (double left = seconds; left > 0.0; left -= kPollSeconds) {
    gbs = std::max(gbs, measure(std::min(left, kPollSeconds)));
    if (poll) poll();
  }
  impl_->bandwidth_gbs = gbs;
  return gbs;
}

std::optional<VectorPeak> Engine::measure_vector_peak(double seconds) {
  MIMO_RT_CHECK(seconds > 0.0 && seconds <= 5.0, invalid_argument, "Engine.measure_vector_peak",
                "seconds: expected > 0 and <= 5, got ", seconds);  // nothing interrupts it
  if (backend() == "ref" || backend() == "cuda") return std::nullopt;
  const Activations activations = parse_activations(impl_->options.activations);
  if (activations == Activations::int8) return std::nullopt;  // most products take other instructions
  const cpu::Kernels& kernels = cpu::select_kernels(backend(), activations);
  const std::lock_guard lock(impl_->steps);
  return mimo_rt::measure_vector_peak(
      kernels,
      {.num_threads = num_workers(), .pin_threads = impl_->options.pin_threads, .seconds = seconds});
}

void Engine::set_tracing(bool on) {
  const std::lock_guard lock(impl_->steps);
  impl_->executor->set_tracing(on);
}

std::string Engine::trace_json() const {
  const std::lock_guard lock(impl_->steps);
  MIMO_RT_CHECK(impl_->last_plan, invalid_argument, "Engine.trace_json",
                "expected a step to have run, got none. Generate a token first.");
  return chrome_trace_json(*impl_->last_plan, impl_->executor->last_trace());
}

}  // namespace mimo_rt
