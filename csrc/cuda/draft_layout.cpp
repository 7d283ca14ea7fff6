#include "cuda/draft_layout.h"

#include <algorithm>

#include "core/draft_layer.h"
#include "cuda/draft_params.h"
#include "cuda/persistent_params.h"
#include "cuda/step_layout.h"

namespace mimo_rt::cuda {

uint64_t num_coarse_positions(const KvLayout& kv) {
  return (uint64_t{kv.options().max_context} + kMaxBlockTokens) / kFinePositions + 1;
}

AttentionParams draft_attention_shape(const DraftConfig& draft, const KvLayout& kv, uint32_t split_keys,
                                      uint32_t layer_idx, const uint8_t* device) {
  AttentionParams p = attention_shape(draft_layer(draft, layer_idx), kv.view(kv.num_target_layers() + layer_idx, 0, device),
                                      split_keys, kv.options().max_context);
  p.block = kv.block_view(device);
  p.num_block_rows = draft.block_size;
  return p;
}

void DraftLayout::add_inputs(BlockBuilder& block, const Plan& plan) {
  context_ids = block.add(4 * uint64_t{plan.options().max_context_rows});
  sample = block.add(sizeof(SampleParams));
}

void DraftLayout::add_rest(BlockBuilder& block, const Plan& plan, const CudaDraftWeights& draft,
                           const KvLayout& kv) {
  const DraftConfig& config = draft.config();
  const uint64_t num_layers = config.num_layers, context_rows = plan.options().max_context_rows;
  const uint64_t block_rows = plan.options().is_round ? config.block_size : 0;
  captured_rows = block.add(8 * uint64_t{plan.options().max_tokens});
  context_k_rows = block.add(8 * num_layers * context_rows);
  context_v_rows = block.add(8 * num_layers * context_rows);
  context_cos_sin = block.add(4 * context_rows * config.rotary_dim);
  block_cos_sin = block.add(4 * block_rows * config.rotary_dim);
  context_heads = block.add(4 * context_rows * draft.context_kv().shape.rows);
  block_heads = block.add(4 * block_rows * draft.layer(0).qkv.shape.rows);
  tables = block.add(sizeof(DraftTables));
  coarse = block.add(8 * num_coarse_positions(kv) * config.rotary_dim);
  fine = block.add(8 * uint64_t{kFinePositions} * config.rotary_dim);
  block_k_rows = block.add(8 * block_rows);
  block_v_rows = block.add(8 * block_rows);
  context_layers = block.add(sizeof(HeadLayer) * num_layers);
  block_layers = block.add(sizeof(HeadLayer) * num_layers);
  context_shape = block.add(sizeof(HeadShape));
  block_shape = block.add(sizeof(HeadShape));
  sampled_rows = block.add(sizeof(SampledRows));
  num_head_tasks = cuda::num_head_tasks(plan, TaskKind::draft_lm_head);
}

void DraftLayout::add_scratch(BlockBuilder& block, const Plan& plan, const CudaDraftWeights& draft,
                              const KvLayout& kv) {
  if (!plan.options().is_round) return;
  const DraftConfig& config = draft.config();
  for (uint32_t l = 0; l < config.num_layers; ++l)
    partial_floats = std::max(partial_floats, row_partial_floats(draft_attention_shape(
                                                  config, kv, plan.options().attention_split_keys, l, nullptr)));
  partials = block.add(4 * uint64_t{config.block_size} * partial_floats);
  if (config.block_size > 1)
    sample_scratch = block.add(SampleScratch::bytes(config.block_size - 1, plan.shape().draft.vocab_size, num_head_tasks));
}

}  // namespace mimo_rt::cuda
