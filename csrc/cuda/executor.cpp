#include "cuda/executor.h"

#include <algorithm>

#include "core/checks.h"
#include "cuda/persistent.h"
#include "plan/buffers.h"
#include "plan/wait_text.h"

namespace mimo_rt::cuda {
namespace {

constexpr const char* kWhere = "Executor.run";
constexpr const char* kMaker = "make_cuda_executor";

/// The place of a plan or of a copy, which shares its tasks; plans.size(): not there.
size_t find_plan(const std::vector<Plan>& plans, const Plan& plan) {
  const auto found = std::find_if(plans.begin(), plans.end(), [&](const Plan& other) {
    return other.tasks(0).data() == plan.tasks(0).data();
  });
  return static_cast<size_t>(found - plans.begin());
}

/// The text of an error without the operation in brackets before it.
std::string_view without_place(std::string_view text) {
  const size_t end = text.find("] ");
  return text.starts_with('[') && end != text.npos ? text.substr(end + 2) : text;
}

/// Whether the host has to do with the logits themselves.
bool brings_logits(const StepInput& input) {
  if (!input.wants_logits() || input.num_logit_rows == 0) return false;
  if (input.reads_logits || !input.sample) return true;
  return std::any_of(input.sample, input.sample + input.num_logit_rows, [](const SampleRequest& r) {
    return r.params->want_logprob || r.params->num_logprobs != 0;
  });
}

/// The cache whose memory a step works in. Of a joint one's parts that with the longest context: its partial results and
/// its angles are enough for all.
KvCache& working_cache(KvCache& cache) {
  if (cache.parts().empty()) return cache;
  return **std::ranges::max_element(cache.parts(), {}, [](const KvCache* part) { return part->max_context(); });
}

DeviceBuffer upload_block(const std::shared_ptr<StepDevice>& device, const CudaBlockImage& image) {
  check_free_for_weights(*device, image.num_bytes);
  DeviceBuffer memory(device, image.num_bytes);
  uint8_t* block = memory.data();
  for (const CudaBlockImage::Piece& piece : image.uploads)
    device->upload(block + piece.to, image.packed.data() + piece.from, piece.num_bytes);
  for (const CudaBlockImage::Piece& piece : image.copies)
    device->copy(block + piece.to, block + piece.from, piece.num_bytes);
  return memory;
}

}  // namespace

CudaExecutor::CudaExecutor(std::shared_ptr<const DeviceModel> model,
                           const ExecutorOptions& options)
    : model_(std::move(model)), timeout_ms_(options.timeout_ms), delay_seed_(options.delay_seed),
      inputs_(model_->device),
      // All blocks wait for the end of the round meanwhile, for twice the deadline.
      mail_(model_->device, std::min(uint64_t{options.idle_us} * 1000, deadline_ns() / 2)),
      trace_(model_->device) {
  report_ = DeviceBuffer(model_->device, sizeof(HangReport), DeviceBuffer::Place::pinned);
}

CudaExecutor::~CudaExecutor() {
  if (resident_.is_waiting()) end_launch();
}

size_t CudaExecutor::index_of(const Plan& plan) const {
  const size_t index = find_plan(model_->plans, plan);
  MIMO_RT_CHECK(index < model_->plans.size(), invalid_argument, kWhere,
                "plan: expected one of those given to the executor, got another");
  return index;
}

DeviceCache& CudaExecutor::device_cache(KvCache& cache) const {
  auto* found = dynamic_cast<DeviceCache*>(cache.store().get());
  if (!found || found->model() != model_) {
    cache.store().reset();  // its memory may be what is missing
    cache.store() = std::make_shared<DeviceCache>(model_, cache);
  }
  return static_cast<DeviceCache&>(*cache.store());
}

void CudaExecutor::refuse_after_failure() const {
  if (failure_)
    fail(failure_->code(), kWhere, "this executor has stopped for good: ", without_place(failure_->what()));
}

/// A launch that was refused before it began leaves nothing behind but copies on their way.
void CudaExecutor::note_failure(const Error& error) {
  trace_.drop();
  const bool was_refused =
      error.code() == ErrorCode::unavailable || error.code() == ErrorCode::invalid_argument;
  failure_ = error;
  if (was_refused && model_->device->wait(kStepTimeoutNs)) failure_.reset();
}

uint64_t CudaExecutor::deadline_ns() const {
  return std::min(uint64_t{timeout_ms_} * 1'000'000, kMaxDeadlineNs);
}

void CudaExecutor::run(const Plan& plan, KvCache& cache, const StepInput& input,
                       StepOutput& output) {
  refuse_after_failure();
  const size_t plan_idx = index_of(plan);
  checker_.check(model_->config, plan, cache, input, output);
  const std::vector<KvSequence> sequences = sequences_of_rows(cache, input);
  KvCache& working = working_cache(cache);
  StepBlock& block = device_cache(working).block(plan_idx);
  free_device();
  last_cache_ = working.store();
  inputs_.reserve(block, input);
  reserve_results(block);
  try {
    run_on_device(block, input, sequences);
  } catch (const Error& error) {
    note_failure(error);
    throw;
  }
  ++block.epoch;
  read_results(block, input, output);
}

void CudaExecutor::reserve_results(const StepBlock& block) {
  const uint64_t num_bytes =
      block.plan.layout().result_bytes() + block.plan.plan().buffers()[kLogits].bytes;
  if (results_.size_bytes() < num_bytes)
    results_ = DeviceBuffer(model_->device, num_bytes, DeviceBuffer::Place::pinned);
}

PersistentParams CudaExecutor::launch_params(const StepBlock& block) {
  PersistentParams params = block.plan.params(block.addresses, block.epoch);
  report() = {};
  params.watchdog.report = &report();
  params.watchdog.deadline_ns = deadline_ns();
  params.stamps = trace_.begin();
  params.delay_seed = delay_seed_;
  return params;
}

std::vector<KvSequence> CudaExecutor::sequences_of_rows(KvCache& cache, const StepInput& input) const {
  const std::span<KvCache* const> parts = cache.parts();
  for (KvCache* part : parts)  // rings are as long: KvLayout
    MIMO_RT_CHECK(part->max_step_tokens() == parts[0]->max_step_tokens(), invalid_argument, kWhere,
                  "max_step_tokens: expected the same for all sequences of a step, got ", part->max_step_tokens(),
                  " and ", parts[0]->max_step_tokens());
  std::vector<KvSequence> sequences;
  for (uint32_t r = 0; r < input.num_tokens; ++r) {
    const uint32_t seq = input.seq_idx[r];
    sequences.push_back(parts.empty() ? device_cache(cache).sequence(seq) : device_cache(*parts[seq]).sequence(0));
  }
  return sequences;
}

void CudaExecutor::run_on_device(StepBlock& block, const StepInput& input, std::span<const KvSequence> sequences) {
  const StepLayout& layout = block.plan.layout();
  StepDevice& device = *model_->device;
  const PersistentParams params = launch_params(block);
  inputs_.send(block, input, sequences);
  device.launch(params, num_workers());
  trace_.receive(block.plan.plan());
  device.receive(results_.data(), block.addresses.step + layout.results, layout.result_bytes());
  if (brings_logits(input)) {
    const uint64_t row_bytes = sizeof(float) * block.plan.plan().buffers()[kLogits].cols;
    device.receive(results_.data() + layout.result_bytes(), block.addresses.step + layout.logits,
                   input.num_logit_rows * row_bytes);
  }
  if (!device.wait(kStepTimeoutNs)) fail_step();
  fail_after_hang(block.plan.plan());
}

void CudaExecutor::fail_step() const {
  fail(ErrorCode::timeout, kWhere, "the GPU did not end a step in ", kStepTimeoutNs / 1'000'000'000,
       " s. Open the engine again.");
}

void CudaExecutor::fail_after_hang(const Plan& plan) const {
  const HangReport& hang = report();
  if (hang.is_written == 0) return;
  fail(ErrorCode::timeout, kWhere, "timed out after ", deadline_ns() / 1'000'000,
       " ms without progress: ",
       wait_text(plan, hang.site.worker_idx, hang.site.task_idx, hang.site.edge_idx,
                 hang.expected, hang.seen),
       ". Open the engine again",
       deadline_ns() < kMaxDeadlineNs ? "; raise timeout_ms (up to 3000) if the GPU was overloaded."
                                      : ".");
}

void CudaExecutor::read_results(const StepBlock& block, const StepInput& input,
                                StepOutput& output) const {
  const StepLayout& layout = block.plan.layout();
  const auto* logits = reinterpret_cast<const float*>(results_.data() + layout.result_bytes());
  const bool has_logits = brings_logits(input);
  output.logits = has_logits ? logits : nullptr;
  output.logits_stride = block.plan.plan().buffers()[kLogits].cols;
  const auto* active = reinterpret_cast<const uint32_t*>(
      results_.data() + (layout.active_experts - layout.results));
  output.active_experts = 0;
  for (size_t l = 0; l < model_->config.layers.size(); ++l) output.active_experts += active[l];
  const auto* sampled =
      reinterpret_cast<const int32_t*>(results_.data() + (layout.sampled - layout.results));
  for (uint32_t r = 0; input.sample && r < input.num_logit_rows; ++r) {
    set_token(sampled[r], output.sampled[r]);
    if (has_logits)
      fill_logprobs({logits + uint64_t{r} * output.logits_stride, model_->config.vocab_size},
                    input.sample[r], output.sampled[r]);
  }
}

void CudaExecutor::set_tracing(bool on) {
  free_device();
  if (on) trace_.open(model_->plans);
  else trace_.close();
}

const uint8_t* CudaExecutor::buffer_data(const Plan& plan, uint16_t buffer_id) const {
  constexpr const char* kBuffer = "Executor.buffer_data";
  const auto cache = std::static_pointer_cast<DeviceCache>(last_cache_.lock());
  MIMO_RT_CHECK(cache, invalid_argument, kBuffer, "expected the cache of the last step, got none");
  const StepBlock& block = cache->block(index_of(plan));
  MIMO_RT_CHECK(buffer_id < plan.buffers().size(), invalid_argument, kBuffer,
                "buffer_id: expected < ", plan.buffers().size(), ", got ", buffer_id);
  const BufferInfo& info = plan.buffers()[buffer_id];
  const bool is_here = buffer_id == kLogits || info.space == BufferInfo::Space::arena;
  MIMO_RT_CHECK(is_here && buffer_id != kDraftKv, invalid_argument, kBuffer,
                "buffer_id: expected the logits or an arena buffer but draft_kv, got ", buffer_id);
  const StepLayout& layout = block.plan.layout();
  const uint64_t begin = buffer_id == kLogits ? layout.logits : layout.arena + info.offset;
  buffer_copy_.resize(info.bytes);
  model_->device->download(buffer_copy_.data(), block.addresses.step + begin, info.bytes);
  return buffer_copy_.data();
}

void check_free_for_weights(const StepDevice& device, uint64_t num_bytes) {
  check_free(device, num_bytes, "weights", "Close other programs, or use a GPU with more memory.");
}

std::unique_ptr<Executor> make_cuda_executor(std::shared_ptr<StepDevice> device,
                                             CudaWeights weights, const ModelConfig& config,
                                             const std::vector<const Plan*>& plans,
                                             const ExecutorOptions& options,
                                             std::optional<CudaDraftWeights> draft) {
  const uint32_t num_sms = device->num_multiprocessors();
  std::vector<Plan> copies;
  for (const Plan* plan : plans) {
    MIMO_RT_CHECK(plan->num_workers() == plans[0]->num_workers(), invalid_argument, kMaker,
                  "plan: expected one for ", plans[0]->num_workers(), " workers, got ",
                  plan->num_workers());
    MIMO_RT_CHECK(plan->num_workers() <= num_sms, invalid_argument, kMaker,
                  "num_workers: expected at most ", num_sms, ", the multiprocessors of ",
                  device->name(), ", got ", plan->num_workers());
    check_device_plan(*plan);
    MIMO_RT_CHECK(draft || plan->shape().draft.num_layers == 0, invalid_argument, kMaker,
                  "draft: expected weights for a plan with a draft, got none");
    check_operands(*plan, config, weights, draft ? &*draft : nullptr);
    if (find_plan(copies, *plan) == copies.size()) copies.push_back(*plan);
  }
  DeviceBuffer memory = upload_block(device, weights.image()), draft_memory;
  weights.drop_block();
  if (draft) {
    draft_memory = upload_block(device, draft->image());
    draft->drop_block();
  }
  auto model = std::make_shared<DeviceModel>(
      DeviceModel{std::move(device), config, std::move(copies), std::move(weights),
                  std::move(memory), std::move(draft), std::move(draft_memory)});
  return std::make_unique<CudaExecutor>(std::move(model), options);
}

}  // namespace mimo_rt::cuda
