#include "cuda/device_plan.h"

#include <cstddef>

#include "core/checks.h"
#include "cuda/step_image.h"
#include "plan/buffers.h"

namespace mimo_rt::cuda {
namespace {

const Plan& checked(const Plan& plan) {
  check_device_plan(plan);
  return plan;
}

}  // namespace

void check_operands(const Plan& plan, const ModelConfig& config, const CudaWeights& weights,
                    const CudaDraftWeights* draft) {
  const CudaDraftWeights* used = plan.shape().draft.num_layers ? draft : nullptr;
  const KvLayout kv(config.layers,
                    {.max_context = KvLayout::kPageTokens, .max_step_tokens = plan.options().max_tokens},
                    used ? &used->config() : nullptr);
  const StepLayout layout(checked(plan), weights, used, kv);
  auto* nowhere = reinterpret_cast<uint8_t*>(uintptr_t{1} << 40);  // aligned; nobody looks there
  const OperandMaker maker(plan, config, weights, used, kv, layout, {nowhere, nowhere, nowhere, nowhere});
  for (const Task* task : StageList(plan).first) (void)maker.make(*task);
}

DevicePlan::DevicePlan(const Plan& plan, const ModelConfig& config, const CudaWeights& weights,
                       const CudaDraftWeights* draft, const KvLayout& kv)
    : plan_(checked(plan)), config_(config), weights_(weights),
      draft_(plan.shape().draft.num_layers ? draft : nullptr), kv_(kv),
      layout_(plan, weights, draft_, kv) {}

void DevicePlan::write_rotary(const DeviceAddresses& device, uint8_t* image) const {
  std::vector<RotaryTable> tables;
  for (size_t i = 0; i < layout_.rotary_kinds.size(); ++i) {
    const RotaryKind& kind = layout_.rotary_kinds[i];
    write<double>(image, layout_.coarse[i],
                  angles(kind, num_coarse_positions(kv_), kFinePositions));
    write<double>(image, layout_.fine[i], angles(kind, kFinePositions, 1));
    tables.push_back({at<const double>(device, layout_.coarse[i]),
                      at<const double>(device, layout_.fine[i]),
                      at<float>(device, layout_.cos_sin[i]), kind.rotary_dim});
  }
  write<RotaryTable>(image, layout_.rotary, tables);
}

std::vector<uint8_t> DevicePlan::image(const DeviceAddresses& device) const {
  std::vector<uint8_t> image(layout_.image_bytes);
  uint8_t* out = image.data();
  for (uint32_t l = 0; l < config_.num_layers; ++l)
    write<QkvTile>(out, layout_.qkv_tiles[l], weights_.layer(l).qkv_tiles);
  write_one(out, layout_.sampled_rows, sampled_rows(device));
  write_rotary(device, out);
  if (draft_) write_draft(device, out);

  const OperandMaker maker(plan_, config_, weights_, draft_, kv_, layout_, device);
  const StageList stages(plan_);
  std::vector<TaskOperands> operands;
  for (const Task* task : stages.first) operands.push_back(maker.make(*task));
  write<TaskOperands>(out, layout_.operands, operands);
  write<uint32_t>(out, layout_.operand_idx, stages.stage_idx);
  std::vector<uint32_t> worker_begin = {0}, totals;
  for (uint32_t w = 0; w < plan_.num_workers(); ++w) {
    write<Task>(out, layout_.tasks + sizeof(Task) * worker_begin.back(), plan_.tasks(w));
    worker_begin.push_back(worker_begin.back() + static_cast<uint32_t>(plan_.tasks(w).size()));
  }
  write<uint32_t>(out, layout_.worker_begin, worker_begin);
  for (const CounterInfo& counter : plan_.counters()) totals.push_back(counter.total);
  write<uint32_t>(out, layout_.counter_totals, totals);
  return image;
}

PersistentParams DevicePlan::params(const DeviceAddresses& device, uint32_t epoch) const {
  PersistentParams p;
  p.tasks = at<const Task>(device, layout_.tasks);
  p.operand_idx = at<const uint32_t>(device, layout_.operand_idx);
  p.operands = at<const TaskOperands>(device, layout_.operands);
  p.worker_begin = at<const uint32_t>(device, layout_.worker_begin);
  p.counters = at<CounterCell>(device, layout_.counters);
  p.counter_totals = at<const uint32_t>(device, layout_.counter_totals);
  p.gate_counter = plan_.gate_counter();
  p.first_epoch = epoch;
  p.step = at<const StepTables>(device, layout_.tables);
  p.watchdog.stop = at<uint32_t>(device, layout_.stop);
  return p;
}

StepTables DevicePlan::tables(const DeviceAddresses& device, uint32_t num_tokens,
                              uint32_t num_logit_rows, bool samples) const {
  const PlanOptions& limits = plan_.options();
  MIMO_RT_CHECK(num_tokens >= 1 && num_tokens <= limits.max_tokens, invalid_argument,
                "cuda.DevicePlan", "num_tokens: expected 1..", limits.max_tokens, ", got ",
                num_tokens);
  MIMO_RT_CHECK(num_logit_rows <= limits.max_logit_rows, invalid_argument, "cuda.DevicePlan",
                "num_logit_rows: expected at most ", limits.max_logit_rows, ", got ",
                num_logit_rows);
  StepTables t;
  t.num_tokens = num_tokens;
  t.num_logit_rows = num_logit_rows;
  t.num_sampled_rows = samples ? num_logit_rows : 0;
  t.token_ids = at<const int32_t>(device, layout_.token_ids);
  t.positions = at<const uint32_t>(device, layout_.positions);
  t.logit_rows = at<const uint32_t>(device, layout_.logit_rows);
  t.arrived = at<uint32_t>(device, layout_.arrived);
  t.places = {0, config_.num_layers, limits.max_tokens, at<uint16_t*>(device, layout_.k_rows),
              at<uint16_t*>(device, layout_.v_rows)};
  t.rotary = at<const RotaryTable>(device, layout_.rotary);
  t.num_rotary = static_cast<uint32_t>(layout_.rotary_kinds.size());
  if (draft_) t.draft = at<const DraftTables>(device, layout_.draft.tables);
  return t;
}

SampledRows DevicePlan::sampled_rows(const DeviceAddresses& device) const {
  SampledRows rows;
  rows.arrived = at<uint32_t>(device, layout_.arrived_shares);
  rows.has_call_per_row = !plan_.options().is_round;
  const uint64_t sample = layout_.round + offsetof(RoundTables, sample);
  rows.calls = at<const SampleParams>(device, rows.has_call_per_row ? layout_.sample_rows : sample);
  rows.num_rows = at<const uint32_t>(device, rows.has_call_per_row
                                                 ? layout_.tables + offsetof(StepTables, num_sampled_rows)
                                                 : sample + offsetof(SampleParams, num_rows));
  return rows;
}

SampleParams DevicePlan::sample_row(const DeviceAddresses& device, uint32_t row) const {
  const uint32_t stride = plan_.buffers()[kLogits].cols;
  SampleParams p;
  p.logits = {at<const float>(device, layout_.logits) + uint64_t{row} * stride, stride};
  const uint64_t row_bytes = SampleScratch::bytes(1, config_.vocab_size, layout_.num_head_tasks);
  p.scratch = SampleScratch::view(at<uint8_t>(device, layout_.sample_scratch) + row * row_bytes, 1,
                                  config_.vocab_size, layout_.num_head_tasks);
  p.position = at<const uint32_t>(device, layout_.sample_positions) + row;
  p.tokens = at<int32_t>(device, layout_.sampled) + row;
  p.num_rows = 1;
  p.vocab_size = config_.vocab_size;
  return p;
}

RoundTables DevicePlan::round(const DeviceAddresses& device) const {
  RoundTables t;
  t.sample = sample_row(device, 0);
  t.sample.scratch = SampleScratch::view(at<uint8_t>(device, layout_.sample_scratch),
                                         plan_.options().max_logit_rows, config_.vocab_size,
                                         layout_.num_head_tasks);
  t.sample.position = at<const uint32_t>(device, layout_.round + offsetof(RoundTables, token_position));
  t.sample.block = at<const int32_t>(device, layout_.token_ids);
  t.block_size = plan_.shape().draft.block_size;
  t.num_layers = config_.num_layers;
  t.active_experts = at<const uint32_t>(device, layout_.active_experts);
  t.block = at<int32_t>(device, layout_.token_ids);
  t.positions = at<uint32_t>(device, layout_.positions);
  return t;
}

}  // namespace mimo_rt::cuda
