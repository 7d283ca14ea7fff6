#include "cpu/ops_context.h"

#include "core/checks.h"
#include "plan/buffers.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace mimo_rt::cpu {
namespace {

constexpr uint64_t kAlignment = 64;

}  // namespace

AlignedBytes::AlignedBytes(uint64_t num_bytes)
    : size_((num_bytes + kAlignment - 1) / kAlignment * kAlignment) {
  if (!size_) return;
  data_.reset(static_cast<uint8_t*>(std::aligned_alloc(kAlignment, size_)));
  MIMO_RT_CHECK(data_, out_of_memory, "Engine.open", "cannot allocate ", size_,
                " bytes for activations. Lower prefill_chunk_tokens.");
}

RopeTable::RopeTable(double theta, uint32_t rotary_dim, uint32_t max_tokens)
    : theta_(theta), rotary_dim_(rotary_dim), cos_sin_(uint64_t{max_tokens} * rotary_dim) {
  for (uint32_t j = 0; j < rotary_dim / 2; ++j)
    frequencies_.push_back(std::pow(theta, -2.0 * j / rotary_dim));
}

void RopeTable::fill_row(uint32_t row, uint32_t position) {
  float* out = cos_sin_.data() + uint64_t{row} * rotary_dim_;
  for (const double frequency : frequencies_) {
    const double angle = position * frequency;
    *out++ = static_cast<float>(std::cos(angle));
    *out++ = static_cast<float>(std::sin(angle));
  }
}

void RopeTable::fill(const uint32_t* positions, uint32_t num_tokens) {
  for (uint32_t t = 0; t < num_tokens; ++t) fill_row(t, positions[t]);
}

void RopeTable::fill_from(uint32_t first_position, uint32_t num_tokens) {
  for (uint32_t t = 0; t < num_tokens; ++t) fill_row(t, first_position + t);
}

DraftTables::DraftTables(const DraftConfig& config, const PlanOptions& options)
    : context_rope(config.rope_theta, config.rotary_dim, options.max_context_rows),
      block_rope(config.rope_theta, config.rotary_dim, options.is_round ? config.block_size : 0),
      feature_rows(options.max_context_rows) {}

PlanState::PlanState(const Plan& given, const ModelConfig& config, const DraftConfig* draft_config,
                     const PlanState* lender)
    : plan(given), route{}, counters(given.counters().size()), stealing(plan) {
  const std::vector<BufferInfo>& infos = plan.buffers();
  if (lender) {
    buffers = lender->buffers;
  } else {
    arena = AlignedBytes(plan.arena_bytes());
    logits = AlignedBytes(infos[kLogits].bytes);
    if (arena.size()) std::memset(arena.data(), 0, arena.size());
    if (logits.size()) std::memset(logits.data(), 0, logits.size());
    for (const BufferInfo& info : infos)
      buffers.push_back(info.space == BufferInfo::Space::arena ? arena.data() + info.offset
                                                               : nullptr);
    buffers[kLogits] = logits.data();
  }

  const uint32_t max_tokens = plan.options().max_tokens;
  if (config.num_experts && infos[kRoute].bytes)
    route = RouteTable::view(buffers[kRoute], config.num_experts,
                             max_tokens * config.experts_per_token);
  ropes.reserve(config.layers.size());  // layer_ropes point into it
  for (const LayerConfig& layer : config.layers) {
    const auto serves = [&](const RopeTable& table) { return table.serves(layer); };
    auto found = std::find_if(ropes.begin(), ropes.end(), serves);
    if (found == ropes.end() && layer.rotary_dim)
      found = ropes.emplace(ropes.end(), layer.rope_theta, layer.rotary_dim, max_tokens);
    layer_ropes.push_back(layer.rotary_dim ? &*found : nullptr);
  }
  for (uint32_t w = 0; w < plan.num_workers(); ++w)
    for (const Task& task : plan.tasks(w))
      if (task.kind == TaskKind::lm_head && task.tile_first < task.tile_end)
        head_tasks.push_back(&task);
  best = AlignedBytes(head_tasks.size() * plan.options().max_logit_rows * sizeof(BestLogits));
  if (plan.shape().draft.num_layers)
    draft = std::make_unique<DraftTables>(*draft_config, plan.options());
}

void PlanState::fill_tables(const StepInput& input, const KvCache& cache) {
  for (RopeTable& rope : ropes) rope.fill(input.positions, input.num_tokens);
  if (!draft) return;
  draft->context_rope.fill_from(input.context_begin, input.num_context_rows);
  draft->block_rope.fill_from(input.positions[0], input.num_draft_rows);
  for (uint32_t r = 0; r < input.num_context_rows; ++r)
    draft->feature_rows[r] = (input.context_begin + r) % cache.feature_rows(input.seq_idx[0]);
}

BestLogits* PlanState::best_logits(const Task& task) const {
  const auto found = std::find_if(head_tasks.begin(), head_tasks.end(),
                                  [&](const Task* other) { return other->tile_first == task.tile_first; });
  return reinterpret_cast<BestLogits*>(best.data()) +
         (found - head_tasks.begin()) * static_cast<ptrdiff_t>(plan.options().max_logit_rows);
}

void PlanState::count_epochs() {
  const uint32_t gate = plan.gate_counter();
  epoch = counters.load(gate) / plan.counters()[gate].total;
}

ScratchSizes::ScratchSizes(const Weights& weights, const Kernels& kernels,
                           const std::vector<std::unique_ptr<PlanState>>& plans,
                           const DraftWeights* draft) {
  const ModelConfig& config = weights.config();
  uint32_t max_tokens = 1, max_context_rows = 0;
  for (const auto& state : plans) {
    const Plan& plan = state->plan;
    max_tokens = std::max(max_tokens, plan.options().max_tokens);
    max_context_rows = std::max(max_context_rows, plan.options().max_context_rows);
    for (uint32_t w = 0; w < plan.num_workers(); ++w)
      for (const Task& task : plan.tasks(w))
        if (task.flags & kFusedNorm)
          normalised_bytes = std::max(
              normalised_bytes, uint64_t{2} * plan.options().max_tokens * config.hidden_size);
  }
  block_tokens_ = std::min(std::max(max_tokens, max_context_rows), kMaxBlockTokens);
  if (draft) add_draft(*draft, kernels);
  const auto add = [&](const PackedMatrix& matrix) { add_matrix(kernels, matrix); };
  add(weights.lm_head());
  for (uint32_t l = 0; l < config.layers.size(); ++l) {
    const LayerWeights& layer = weights.layer(l);
    for (const PackedMatrix* matrix :
         {&layer.qkv, &layer.o_proj, &layer.router, &layer.gate_up, &layer.down})
      add(*matrix);
    for (const PackedMatrix& matrix : layer.expert_gate_up) add(matrix);
    for (const PackedMatrix& matrix : layer.expert_down) add(matrix);
    const LayerConfig& shape = config.layers[l];
    add_attention(kernels, shape.q_per_kv(), shape.qk_head_dim, shape.v_head_dim);
  }
  result_bytes = 4 * uint64_t{kResultFloats};
  if (!config.num_experts) return;
  // At least one row group of sums, however many tokens.
  expert_sum_bytes = 4 * std::max(uint64_t{kExpertSumFloats}, uint64_t{16} * max_tokens);
  const uint64_t chosen = uint64_t{max_tokens} * config.experts_per_token;
  select_bytes = 4 * (2 * uint64_t{config.num_experts} + config.experts_per_token + 2 * chosen);
}

void ScratchSizes::add_matrix(const Kernels& kernels, const PackedMatrix& matrix) {
  if (!matrix.data) return;
  const auto format = static_cast<int>(matrix.format);
  prepared_bytes =
      std::max(prepared_bytes, kernels.prepared_bytes(format, block_tokens_, matrix.k));
}

void ScratchSizes::add_draft(const DraftWeights& draft, const Kernels& kernels) {
  const DraftConfig& config = draft.config();
  block_tokens_ = std::max(block_tokens_, config.block_size);
  normalised_bytes =
      std::max(normalised_bytes, uint64_t{2} * block_tokens_ * config.hidden_size);
  add_matrix(kernels, draft.fc());
  for (uint32_t l = 0; l < config.num_layers; ++l) {
    const DraftLayerWeights& layer = draft.layer(l);
    for (const PackedMatrix* matrix : {&layer.qkv, &layer.o_proj, &layer.gate_up, &layer.down})
      add_matrix(kernels, *matrix);
  }
  add_attention(kernels, config.q_per_kv(), config.qk_head_dim, config.v_head_dim);
}

void ScratchSizes::add_attention(const Kernels& kernels, uint32_t q_per_kv, uint32_t qk_head_dim,
                                 uint32_t v_head_dim) {
  const uint32_t num_heads = std::max(kMaxAttendHeads, q_per_kv);  // of any share of them
  attend_bytes = std::max(
      attend_bytes, 4 * kernels.attend_scratch_floats(num_heads, qk_head_dim, v_head_dim));
}

Worker::Worker(const Weights& given_weights, const Kernels& given_kernels,
               const ScratchSizes& sizes, const Step& given_step, const DraftWeights* given_draft)
    : weights(given_weights),
      draft(given_draft),
      config(given_weights.config()),
      kernels(given_kernels),
      step(given_step),
      normalised(sizes.normalised_bytes),
      prepared(sizes.prepared_bytes),
      results(sizes.result_bytes),
      expert_sums(sizes.expert_sum_bytes),
      attend_scratch(sizes.attend_bytes),
      select_scratch(sizes.select_bytes) {}

void Worker::touch() {
  for (const AlignedBytes* bytes :
       {&normalised, &prepared, &results, &expert_sums, &attend_scratch, &select_scratch})
    if (bytes->size()) std::memset(bytes->data(), 0, bytes->size());
}

void Worker::fit_segments(const KvCache& cache) {
  const size_t num_segments = size_t{cache.max_segments()} + kMaxBlockSize;
  if (segments.size() < num_segments) segments.resize(num_segments);
}

void Worker::begin_epoch(uint64_t new_epoch) {
  epoch = new_epoch;
  normalised_key = {};
  trace.clear();
}

}  // namespace mimo_rt::cpu
