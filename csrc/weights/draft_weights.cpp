// DraftWeights: the layout of a draft's arena, its two sources (a checkpoint, random numbers), and the head.
#include "weights/draft_weights.h"

#include "checkpoint/draft_tensors.h"
#include "checkpoint/mask_embedding.h"
#include "core/available_memory.h"
#include "core/checks.h"
#include "core/numeric.h"
#include "core/text.h"
#include "weights/layout.h"
#include "weights/pack.h"
#include "weights/pack_matrices.h"
#include "weights/packed_cache.h"
#include "weights/random_fill.h"

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

namespace mimo_rt {

struct DraftWeights::Impl {
  DraftConfig config;
  std::vector<DraftLayerWeights> layers;
  PackedMatrix fc;
  const float* hidden_norm = nullptr;
  const float* final_norm = nullptr;
  std::vector<bf16_t> mask_embedding;
  std::vector<int32_t> vocab_ids;  ///< empty: all tokens
  PackedMatrix lm_head;            ///< in head_arena, or the target's
  Arena arena, head_arena;
  PackedCacheReport cache_report;  ///< of `arena`
};

namespace {

constexpr const char* kLoad = "DraftWeights.load";

/// Sizes every matrix and vector and gives it a place, in the order in which a round reads them.
/// The slots point into `impl`.
template <typename Impl>
WeightsLayout plan_draft_layout(Impl& impl, const FormatOf& format_of) {
  const DraftConfig& config = impl.config;
  const uint64_t hidden = config.hidden_size;
  LayoutBuilder builder(format_of);
  builder.add({MatrixRole::context_fc, 0, 0, &impl.fc}, hidden,
              hidden * config.target_layer_ids.size());
  builder.add({VectorKind::hidden_norm, 0, config.hidden_size, &impl.hidden_norm});
  impl.layers.resize(config.num_layers);
  for (uint32_t i = 0; i < config.num_layers; ++i) {
    DraftLayerWeights& layer = impl.layers[i];
    builder.add({VectorKind::attn_norm, i, config.hidden_size, &layer.attn_norm});
    builder.add({VectorKind::mlp_norm, i, config.hidden_size, &layer.mlp_norm});
    if (config.has_qk_norm) {
      builder.add({VectorKind::q_norm, i, config.qk_head_dim, &layer.q_norm});
      builder.add({VectorKind::k_norm, i, config.qk_head_dim, &layer.k_norm});
    }
    if (config.has_sink)
      builder.add({VectorKind::sink_logits, i, config.num_q_heads, &layer.sink_logits});
    const uint64_t q_rows = uint64_t{config.num_q_heads} * config.qk_head_dim;
    const uint64_t kv_rows =
        config.num_kv_heads * (uint64_t{config.qk_head_dim} + config.v_head_dim);
    builder.add({MatrixRole::qkv, i, 0, &layer.qkv}, q_rows + kv_rows, hidden);
    builder.add({MatrixRole::o_proj, i, 0, &layer.o_proj}, hidden,
                uint64_t{config.num_q_heads} * config.v_head_dim);
    builder.add({MatrixRole::gate_up, i, 0, &layer.gate_up},
                gate_up_rows(config.intermediate_size), hidden);
    builder.add({MatrixRole::down, i, 0, &layer.down}, hidden, config.intermediate_size);
  }
  builder.add({VectorKind::final_norm, 0, config.hidden_size, &impl.final_norm});
  return builder.take();
}

/// Inputs of order one give outputs of order one; what joins the residual stream is smaller.
float wanted_rms(const MatrixSlot& slot) {
  const bool feeds_residual = slot.role == MatrixRole::o_proj || slot.role == MatrixRole::down;
  return (feeds_residual ? 0.5f : 1.0f) / std::sqrt(static_cast<float>(slot.stored_k));
}

PackJob find_job(const Checkpoint& checkpoint, const DraftConfig& config, const MatrixSlot& slot) {
  using Kind = MatrixKind;
  const auto of = [&](std::initializer_list<Kind> kinds, RowOrder order) {
    PackJob job;
    for (const Kind kind : kinds)
      job.sources.push_back(find_draft_matrix(checkpoint, config, kind, slot.layer_idx));
    job.order = order;
    return job;
  };
  switch (slot.role) {
    case MatrixRole::context_fc: return of({Kind::context_fc}, RowOrder::plain);
    case MatrixRole::qkv: return of({Kind::q_proj, Kind::k_proj, Kind::v_proj}, RowOrder::stacked);
    case MatrixRole::o_proj: return of({Kind::o_proj}, RowOrder::plain);
    case MatrixRole::gate_up: return of({Kind::gate_proj, Kind::up_proj}, RowOrder::alternate);
    case MatrixRole::down: return of({Kind::down_proj}, RowOrder::plain);
    default: fail(ErrorCode::internal, kLoad, "unknown matrix role");
  }
}

/// Row `lane` of the row group at `to` <- row `row` of `from`. In both formats of a head a row is one 32-bit word of every
/// 64-byte vector.
void copy_head_row(const PackedMatrix& from, uint32_t row, uint8_t* to, uint32_t lane) {
  constexpr uint32_t kWord = sizeof(uint32_t);
  const uint8_t* word = from.row_group(row / kTileRows) + row % kTileRows * kWord;
  const uint64_t group_bytes = row_group_bytes(from.format, from.k);
  for (uint64_t at = 0; at < group_bytes; at += kTileRows * kWord)
    std::memcpy(to + at + lane * kWord, word + at, kWord);
}

}  // namespace

std::vector<bf16_t> read_mask_row(const Checkpoint& draft, const DraftConfig& config,
                                  const TensorInfo* target_embedding) {
  const MaskEmbedding mask = read_mask_embedding(draft, config, target_embedding);
  const TensorInfo& tensor = mask.tensor;
  std::vector<float> values(tensor.shape[0]);
  read_vector(tensor, values);
  std::vector<bf16_t> result;
  for (const float value : values) {
    result.push_back(f32_to_bf16(value));
    MIMO_RT_CHECK(mask.is_of_target || bf16_to_f32(result.back()) == value, unsupported_shape, kLoad,
                  "mask embedding of ", printable(tensor.file_name), ", element ",
                  result.size() - 1, ": expected a value that BF16 holds, got ", value,
                  ". Store it as BF16.");
  }
  return result;
}

DraftWeights::DraftWeights(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DraftWeights::DraftWeights(DraftWeights&&) noexcept = default;
DraftWeights::~DraftWeights() = default;

DraftWeights DraftWeights::load(const std::filesystem::path& draft_dir, const DraftConfig& config,
                                const Weights::Options& options,
                                const Checkpoint::Options& file_options,
                                const TensorInfo* target_embedding) {
  const Checkpoint checkpoint = open_draft(draft_dir, file_options);
  check_tensors(checkpoint, expected_draft_tensors(config, &checkpoint), kLoad);
  auto impl = std::make_unique<Impl>();
  impl->config = config;
  impl->mask_embedding = read_mask_row(checkpoint, config, target_embedding);
  if (config.draft_vocab_size) impl->vocab_ids = read_draft_vocabulary(checkpoint, config);
  std::vector<PackJob> jobs;
  const WeightsLayout layout = plan_draft_layout(*impl, [&](const MatrixSlot& slot) {
    jobs.push_back(find_job(checkpoint, config, slot));
    return packed_format(jobs.back());
  });
  const auto fill = [&](const Arena& arena) {
    for (const VectorSlot& slot : layout.vectors) {
      auto* out = reinterpret_cast<float*>(arena.data() + slot.offset);
      read_vector(find_draft_vector(checkpoint, slot.kind, slot.layer_idx),
                  {out, slot.num_elements});
    }
    pack_matrices({checkpoint, layout, jobs, arena, options, kLoad});
  };
  impl->arena = make_arena({checkpoint, layout, jobs, options, "draft", kLoad, fill},
                           impl->cache_report);
  point_into(impl->arena, layout);
  return DraftWeights(std::move(impl));
}

DraftWeights DraftWeights::synthetic(const DraftConfig& config, uint64_t seed) {
  constexpr const char* kWhere = "DraftWeights.synthetic";
  MIMO_RT_CHECK(config.draft_vocab_size <= config.vocab_size || !config.draft_vocab_size,
                invalid_argument, kWhere, "draft_vocab_size: expected at most vocab_size (",
                config.vocab_size, "), got ", config.draft_vocab_size);
  auto impl = std::make_unique<Impl>();
  impl->config = config;
  const WeightsLayout layout =
      plan_draft_layout(*impl, [](const MatrixSlot&) { return PackedFormat::bf16; });
  impl->arena = allocate(layout, kWhere);
  point_into(impl->arena, layout);
  const auto valid_lanes = [&](const MatrixSlot& slot, uint32_t group) {
    switch (slot.role) {
      case MatrixRole::qkv: return 0xffffu;  // heads are whole groups
      case MatrixRole::gate_up: return first_lanes(config.intermediate_size, group / 2);
      default: return first_lanes(config.hidden_size, group);
    }
  };
  fill_random({layout, impl->arena, seed, kWhere, valid_lanes, wanted_rms});
  // Of order one, as the rows of a synthetic embedding are.
  Random random(seed ^ Random::mix(layout.total_bytes + 1));
  for (uint32_t i = 0; i < config.hidden_size; ++i)
    impl->mask_embedding.push_back(f32_to_bf16(random.near(0.0f, 1.75f)));
  for (uint64_t i = 0; i < config.draft_vocab_size; ++i)
    impl->vocab_ids.push_back(static_cast<int32_t>(i * config.vocab_size / config.draft_vocab_size));
  return DraftWeights(std::move(impl));
}

void DraftWeights::bind(const Weights& target) {
  constexpr const char* kWhere = "DraftWeights.bind";
  const PackedMatrix& whole = target.lm_head();
  impl_->lm_head = whole;
  const auto num_rows = static_cast<uint32_t>(impl_->vocab_ids.size());
  if (!num_rows) return;
  const auto last = static_cast<uint32_t>(impl_->vocab_ids.back());
  MIMO_RT_CHECK(last < target.config().vocab_size, shape_mismatch, kWhere,
                "d2t: expected tokens below the model's vocab_size (", target.config().vocab_size,
                "), got ", last);
  PackedMatrix& head = impl_->lm_head;
  head.rows = round_up(num_rows, kTileRows);
  check_memory(head.bytes(), available_memory_bytes(), kWhere);
  impl_->head_arena = Arena(head.bytes(), kWhere);  // zeros: rows of padding
  uint8_t* data = impl_->head_arena.data();
  head.data = data;
  for (uint32_t i = 0; i < num_rows; ++i)
    copy_head_row(whole, static_cast<uint32_t>(impl_->vocab_ids[i]),
                  data + (head.row_group(i / kTileRows) - head.data), i % kTileRows);
}

const DraftConfig& DraftWeights::config() const { return impl_->config; }
const PackedMatrix& DraftWeights::fc() const { return impl_->fc; }
const float* DraftWeights::hidden_norm() const { return impl_->hidden_norm; }
const float* DraftWeights::final_norm() const { return impl_->final_norm; }
const uint16_t* DraftWeights::mask_embedding() const { return impl_->mask_embedding.data(); }
const DraftLayerWeights& DraftWeights::layer(uint32_t layer_idx) const {
  return impl_->layers[layer_idx];
}
const PackedMatrix& DraftWeights::lm_head() const { return impl_->lm_head; }
const int32_t* DraftWeights::vocab_ids() const {
  return impl_->vocab_ids.empty() ? nullptr : impl_->vocab_ids.data();
}
const PackedCacheReport& DraftWeights::cache_report() const { return impl_->cache_report; }
uint64_t DraftWeights::packed_bytes() const {
  return impl_->arena.size_bytes() + impl_->head_arena.size_bytes() +
         impl_->mask_embedding.size() * sizeof(bf16_t);
}

}  // namespace mimo_rt
