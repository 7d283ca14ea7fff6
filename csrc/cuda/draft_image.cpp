// The half of DevicePlan that has to do with a draft.
#include "cuda/device_plan.h"
#include "cuda/draft_params.h"
#include "cuda/step_image.h"

namespace mimo_rt::cuda {
namespace {

/// Norms of all layers; where keys and values go is the caller's.
std::vector<HeadLayer> head_layers(const CudaDraftWeights& draft, const DeviceAddresses& device) {
  std::vector<HeadLayer> layers(draft.config().num_layers);
  if (!draft.config().has_qk_norm) return layers;
  for (uint32_t l = 0; l < layers.size(); ++l) {
    layers[l].q_norm = reinterpret_cast<const float*>(device.draft + draft.layer(l).q_norm);
    layers[l].k_norm = reinterpret_cast<const float*>(device.draft + draft.layer(l).k_norm);
  }
  return layers;
}

HeadShape head_shape(const DraftConfig& config) {
  HeadShape shape;
  shape.num_q_heads = config.num_q_heads;
  shape.num_kv_heads = config.num_kv_heads;
  shape.qk_head_dim = config.qk_head_dim;
  shape.v_head_dim = config.v_head_dim;
  shape.rotary_dim = config.rotary_dim;
  shape.norm_eps = static_cast<float>(config.rms_norm_eps);
  shape.value_scale = static_cast<float>(config.value_scale);
  return shape;
}

}  // namespace

void DevicePlan::write_draft(const DeviceAddresses& device, uint8_t* image) const {
  const DraftLayout& layout = layout_.draft;
  const DraftConfig& config = draft_->config();
  const uint32_t context_rows = plan_.options().max_context_rows;
  const RotaryKind rotary{config.rope_theta, config.rotary_dim};
  write<double>(image, layout.coarse, angles(rotary, num_coarse_positions(kv_), kFinePositions));
  write<double>(image, layout.fine, angles(rotary, kFinePositions, 1));
  DraftTables t;
  t.captured_rows = at<uint16_t*>(device, layout.captured_rows);
  t.context_ids = at<uint32_t>(device, layout.context_ids);
  t.context = {kv_.num_target_layers(), config.num_layers, context_rows,
               at<uint16_t*>(device, layout.context_k_rows),
               at<uint16_t*>(device, layout.context_v_rows)};
  t.context_rotary = {at<const double>(device, layout.coarse), at<const double>(device, layout.fine),
                      at<float>(device, layout.context_cos_sin), config.rotary_dim};
  t.block_rotary = t.context_rotary;
  t.block_rotary.cos_sin = at<float>(device, layout.block_cos_sin);
  write_one(image, layout.tables, t);

  std::vector<HeadLayer> context = head_layers(*draft_, device), block = context;
  const KvView rows = kv_.block_view(device.kv);
  for (uint32_t l = 0; l < config.num_layers; ++l) {
    const KvView view = kv_.view(kv_.num_target_layers() + l, 0, device.kv);
    context[l].k_rows = t.context.k_rows + uint64_t{l} * context_rows;
    context[l].v_rows = t.context.v_rows + uint64_t{l} * context_rows;
    context[l].k_head_stride = view.block_rows * view.k_stride;
    context[l].v_head_stride = view.block_rows * view.v_stride;
    block[l].k_rows = at<uint16_t* const>(device, layout.block_k_rows);
    block[l].v_rows = at<uint16_t* const>(device, layout.block_v_rows);
    block[l].k_head_stride = rows.block_rows * rows.k_stride;
    block[l].v_head_stride = rows.block_rows * rows.v_stride;
  }
  write<HeadLayer>(image, layout.context_layers, context);
  HeadShape shape = head_shape(config);
  shape.is_context = true;
  shape.cos_sin = t.context_rotary.cos_sin;
  write_one(image, layout.context_shape, shape);
  if (!plan_.options().is_round) return;

  write<HeadLayer>(image, layout.block_layers, block);
  shape.is_context = false;
  shape.cos_sin = t.block_rotary.cos_sin;
  const BufferInfo& q = plan_.buffers()[kDraftQ];
  shape.q = {at<uint16_t>(device, layout_.arena + q.offset), q.cols};
  write_one(image, layout.block_shape, shape);
  SampledRows drafts;
  drafts.calls = at<const SampleParams>(device, layout.sample);
  drafts.num_rows = at<const uint32_t>(device, layout.sample + offsetof(SampleParams, num_rows));
  write_one(image, layout.sampled_rows, drafts);
  for (uint32_t r = 0; r < config.block_size; ++r) {
    auto* k = reinterpret_cast<uint16_t*>(const_cast<uint8_t*>(rows.blocks));
    auto* v = reinterpret_cast<uint16_t*>(const_cast<uint8_t*>(rows.blocks) + rows.v_begin);
    write_one<uint16_t*>(image, layout.block_k_rows + 8 * r, k + uint64_t{r} * rows.k_stride);
    write_one<uint16_t*>(image, layout.block_v_rows + 8 * r, v + uint64_t{r} * rows.v_stride);
  }
}

SampleParams DevicePlan::draft_sample(const DeviceAddresses& device) const {
  const uint32_t vocab_size = plan_.shape().draft.vocab_size;
  const BufferInfo& logits = plan_.buffers()[kDraftLogits];
  SampleParams p;
  p.role = SampleRole::draft;
  p.logits = {at<const float>(device, layout_.arena + logits.offset), logits.cols};
  p.num_rows = plan_.shape().draft.block_size - 1;
  p.vocab_size = vocab_size;
  p.tokens = at<int32_t>(device, layout_.token_ids) + 1;
  p.scratch = SampleScratch::view(at<uint8_t>(device, layout_.draft.sample_scratch), p.num_rows,
                                  vocab_size, layout_.draft.num_head_tasks);
  if (draft_->lm_head())
    p.ids = reinterpret_cast<const int32_t*>(device.draft + draft_->vocab_ids());
  return p;
}

}  // namespace mimo_rt::cuda
