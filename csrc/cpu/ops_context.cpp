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

void RopeTable::fill(const uint32_t* positions, uint32_t num_tokens) {
  float* out = cos_sin_.data();
  for (uint32_t t = 0; t < num_tokens; ++t)
    for (const double frequency : frequencies_) {
      const double angle = positions[t] * frequency;
      *out++ = static_cast<float>(std::cos(angle));
      *out++ = static_cast<float>(std::sin(angle));
    }
}

PlanState::PlanState(const Plan& given, const ModelConfig& config)
    : plan(given), arena(given.arena_bytes()), route{}, counters(given.counters().size()) {
  const std::vector<BufferInfo>& infos = plan.buffers();
  logits = AlignedBytes(infos[kLogits].bytes);
  if (arena.size()) std::memset(arena.data(), 0, arena.size());
  if (logits.size()) std::memset(logits.data(), 0, logits.size());
  for (const BufferInfo& info : infos)
    buffers.push_back(info.space == BufferInfo::Space::arena ? arena.data() + info.offset
                                                             : nullptr);
  buffers[kLogits] = logits.data();

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
}

ScratchSizes::ScratchSizes(const Weights& weights, const Kernels& kernels,
                           const std::vector<std::unique_ptr<PlanState>>& plans) {
  const ModelConfig& config = weights.config();
  uint32_t max_tokens = 1;
  for (const auto& state : plans) {
    const Plan& plan = state->plan;
    max_tokens = std::max(max_tokens, plan.options().max_tokens);
    for (uint32_t w = 0; w < plan.num_workers(); ++w)
      for (const Task& task : plan.tasks(w))
        if (task.flags & kFusedNorm)
          normalised_bytes = std::max(
              normalised_bytes, uint64_t{2} * plan.options().max_tokens * config.hidden_size);
  }
  const uint32_t block_tokens = std::min(max_tokens, kMaxBlockTokens);
  const auto add = [&](const PackedMatrix& matrix) {
    if (!matrix.data) return;
    prepared_bytes = std::max(
        prepared_bytes,
        kernels.prepared_bytes(static_cast<int>(matrix.format), block_tokens, matrix.k));
  };
  add(weights.lm_head());
  for (uint32_t l = 0; l < config.layers.size(); ++l) {
    const LayerWeights& layer = weights.layer(l);
    for (const PackedMatrix* matrix :
         {&layer.qkv, &layer.o_proj, &layer.router, &layer.gate_up, &layer.down})
      add(*matrix);
    for (const PackedMatrix& matrix : layer.expert_gate_up) add(matrix);
    for (const PackedMatrix& matrix : layer.expert_down) add(matrix);
    const LayerConfig& shape = config.layers[l];
    attend_bytes = std::max(attend_bytes,
                            4 * kernels.attend_scratch_floats(shape.q_per_kv(), shape.qk_head_dim,
                                                              shape.v_head_dim));
  }
  result_bytes = 4 * uint64_t{kResultFloats};
  if (!config.num_experts) return;
  // At least one row group of sums, however many tokens.
  expert_sum_bytes = 4 * std::max(uint64_t{kExpertSumFloats}, uint64_t{16} * max_tokens);
  const uint64_t chosen = uint64_t{max_tokens} * config.experts_per_token;
  select_bytes = 4 * (2 * uint64_t{config.num_experts} + config.experts_per_token + 2 * chosen);
}

Worker::Worker(const Weights& given_weights, const Kernels& given_kernels,
               const ScratchSizes& sizes, const Step& given_step)
    : weights(given_weights),
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

}  // namespace mimo_rt::cpu
