#include "ref/storage.h"

#include "core/checks.h"
#include "core/numeric.h"
#include "plan/buffers.h"

#include <cstring>
#include <memory>

namespace mimo_rt::ref {

Buffers::Buffers(const Plan& plan, bool exact) : exact_(exact), infos_(plan.buffers()) {
  bytes_.resize(infos_.size());
  for (uint16_t id = 0; id < infos_.size(); ++id) {
    const BufferInfo& info = infos_[id];
    const bool kept = info.space == BufferInfo::Space::arena || id == kLogits;
    if (!kept) continue;
    const uint64_t bytes = holds_float64(id) ? uint64_t{info.rows} * info.cols * 8 : info.bytes;
    bytes_[id].assign((bytes + 7) / 8, 0);
  }
}

bool Buffers::holds_float64(uint16_t buffer_id) const { return exact_ && buffer_id != kRoute; }

uint8_t* Buffers::data(uint16_t buffer_id) {
  return reinterpret_cast<uint8_t*>(bytes_.at(buffer_id).data());
}
const uint8_t* Buffers::data(uint16_t buffer_id) const {
  return reinterpret_cast<const uint8_t*>(bytes_.at(buffer_id).data());
}

void Buffers::read(uint16_t buffer_id, uint64_t row, uint32_t col, uint32_t num_cols,
                   double* out) const {
  const BufferInfo& info = infos_[buffer_id];
  const uint64_t first = row * info.cols + col;
  if (holds_float64(buffer_id)) {
    std::memcpy(out, data(buffer_id) + first * 8, uint64_t{num_cols} * 8);
  } else if (info.element_bytes == 2) {
    const auto* elements = reinterpret_cast<const bf16_t*>(data(buffer_id)) + first;
    for (uint32_t i = 0; i < num_cols; ++i) out[i] = bf16_to_f32(elements[i]);
  } else {
    const auto* elements = reinterpret_cast<const float*>(data(buffer_id)) + first;
    for (uint32_t i = 0; i < num_cols; ++i) out[i] = elements[i];
  }
}

void Buffers::write(uint16_t buffer_id, uint64_t row, uint32_t col, double value) {
  const BufferInfo& info = infos_[buffer_id];
  const uint64_t element = row * info.cols + col;
  uint8_t* bytes = data(buffer_id);
  if (holds_float64(buffer_id))
    reinterpret_cast<double*>(bytes)[element] = value;
  else if (info.element_bytes == 2)
    reinterpret_cast<bf16_t*>(bytes)[element] = f32_to_bf16(static_cast<float>(value));
  else
    reinterpret_cast<float*>(bytes)[element] = static_cast<float>(value);
}

uint32_t KeyValues::num_dims(Part part, uint32_t layer) const {
  if (layer >= config_.layers.size())
    return part == Part::k ? draft_->qk_head_dim : draft_->v_head_dim;
  const LayerConfig& config = config_.layers[layer];
  return part == Part::k ? config.qk_head_dim : config.v_head_dim;
}

uint64_t KeyValues::num_values(const KvCache& cache) const {
  uint64_t count = draft_ ? num_features() : 0;
  for (uint32_t layer = 0; layer < cache.num_layers(); ++layer) {
    const bool is_draft = layer >= config_.layers.size();
    const uint32_t num_heads = is_draft ? draft_->num_kv_heads : config_.layers[layer].num_kv_heads;
    count += uint64_t{num_heads} * (num_dims(Part::k, layer) + num_dims(Part::v, layer));
  }
  return count;
}

void KeyValues::prepare(KvCache& cache) const {
  if (!exact_ || dynamic_cast<ExactRows*>(cache.store().get())) return;
  const uint64_t num_positions = uint64_t{cache.max_context()} * cache.num_seqs();
  cache.store() = std::make_shared<ExactRows>(num_positions * num_values(cache) * sizeof(double));
}

void KeyValues::select(KvCache& cache) {
  prepare(cache);
  cache_ = &cache;
  rows_ = exact_ ? static_cast<ExactRows*>(cache.store().get()) : nullptr;
}

std::vector<double>& KeyValues::stored(Part part, uint32_t layer, uint32_t seq, uint32_t head) {
  const uint64_t key = (uint64_t{layer} << 48) | (uint64_t{head} << 32) | seq;
  ExactRows::Head& entry = rows_->heads[key];
  return part == Part::k ? entry.k : entry.v;
}

void KeyValues::write(Part part, uint32_t layer, uint32_t seq, uint32_t head, uint32_t pos,
                      uint32_t dim, double value) {
  if (exact_) {
    std::vector<double>& elements = stored(part, layer, seq, head);
    const uint64_t num = num_dims(part, layer);
    if (elements.size() < (pos + uint64_t{1}) * num) elements.resize((pos + uint64_t{1}) * num);
    elements[pos * num + dim] = value;
    return;
  }
  uint16_t* row = part == Part::k ? cache_->k_row(layer, seq, head, pos)
                                  : cache_->v_row(layer, seq, head, pos);
  row[dim] = f32_to_bf16(static_cast<float>(value));
}

void KeyValues::read(Part part, uint32_t layer, uint32_t seq, uint32_t head, uint32_t pos,
                     double* out) {
  const uint32_t num = num_dims(part, layer);
  if (exact_) {
    const std::vector<double>& elements = stored(part, layer, seq, head);
    MIMO_RT_CHECK(elements.size() >= (pos + uint64_t{1}) * num, invalid_argument, "ref.attention",
                  "position ", pos, " of sequence ", seq, " was never written by an exact executor");
    std::memcpy(out, elements.data() + uint64_t{pos} * num, uint64_t{num} * 8);
    return;
  }
  // Through `segments`, like the other executors: their addressing is checked as well.
  KvSegment segment{};
  cache_->segments(layer, seq, head, pos, pos + 1, &segment);
  const uint16_t* row = part == Part::k ? segment.k : segment.v;
  for (uint32_t d = 0; d < num; ++d) out[d] = bf16_to_f32(row[d]);
}

uint64_t KeyValues::num_features() const {
  return uint64_t{draft_->target_layer_ids.size()} * config_.hidden_size;
}

void KeyValues::write_feature(uint32_t seq, uint32_t pos, uint32_t col, double value) {
  if (!exact_) {
    cache_->feature_row(seq, pos)[col] = f32_to_bf16(static_cast<float>(value));
    return;
  }
  std::vector<double>& elements = rows_->features[seq];
  const uint64_t end = (pos + uint64_t{1}) * num_features();
  if (elements.size() < end) elements.resize(end);
  elements[pos * num_features() + col] = value;
}

void KeyValues::read_features(uint32_t seq, uint32_t pos, double* out) {
  const uint64_t num = num_features();
  if (!exact_) {
    const uint16_t* row = cache_->feature_row(seq, pos);
    for (uint64_t i = 0; i < num; ++i) out[i] = bf16_to_f32(row[i]);
    return;
  }
  const std::vector<double>& elements = rows_->features[seq];
  MIMO_RT_CHECK(elements.size() >= (pos + uint64_t{1}) * num, invalid_argument, "ref.context",
                "position ", pos, " of sequence ", seq, " was never captured by an exact executor");
  std::memcpy(out, elements.data() + pos * num, num * 8);
}

}  // namespace mimo_rt::ref
