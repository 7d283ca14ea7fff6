// Weights::load: finds the sources of every packed matrix, lays out the arena, packs in parallel.
#include "weights/weights.h"

#include "core/available_memory.h"
#include "core/checks.h"
#include "weights/layout.h"
#include "weights/pack.h"
#include "weights/pack_matrices.h"
#include "weights/packed_cache.h"
#include "weights/work_items.h"

#include <algorithm>
#include <atomic>
#include <utility>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Weights.load";

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, WeightsData& data, const Weights::Options& options)
      : checkpoint_(checkpoint), data_(data), options_(options) {}

  void load() {
    plan();
    // With BF16 tables nothing is larger than it will be: what does not fit is refused unread.
    check_memory(layout_.total_bytes, available_memory_bytes(), kWhere);
    embed_format_ = table_format(MatrixKind::embed);
    if (!data_.is_tied()) lm_head_format_ = table_format(MatrixKind::lm_head);
    if (embed_format_ != PackedFormat::bf16 || lm_head_format_ != PackedFormat::bf16) plan();
    const auto fill = [this](const Arena& arena) {
      for (const VectorSlot& slot : layout_.vectors) load_vector(slot, arena);
      pack_matrices({checkpoint_, layout_, jobs_, arena, options_, kWhere});
    };
    data_.arena = make_arena({checkpoint_, layout_, jobs_, options_, "target", kWhere, fill},
                             data_.cache_report);
    point_into_arena(data_, layout_);
  }

 private:
  MatrixSource find(MatrixKind kind, const MatrixSlot& slot) const {
    return find_matrix(checkpoint_, data_.config, kind, slot.layer_idx, slot.expert_idx);
  }

  void plan();
  PackedFormat table_format(MatrixKind kind) const;
  PackJob find_job(const MatrixSlot& slot) const;
  void load_vector(const VectorSlot& slot, const Arena& arena) const;

  const Checkpoint& checkpoint_;
  WeightsData& data_;
  const Weights::Options& options_;
  PackedFormat embed_format_ = PackedFormat::bf16, lm_head_format_ = PackedFormat::bf16;
  WeightsLayout layout_;
  std::vector<PackJob> jobs_;  // one per matrix of the layout
};

void Loader::plan() {
  jobs_.clear();
  layout_ = plan_layout(data_, [this](const MatrixSlot& slot) {
    jobs_.push_back(find_job(slot));
    switch (slot.role) {
      case MatrixRole::embed: return embed_format_;
      case MatrixRole::lm_head: return lm_head_format_;
      case MatrixRole::router: return PackedFormat::f32;  // its sums are FP32 throughout
      default: return packed_format(jobs_.back());
    }
  });
}

/// The smallest format that holds every value of the embedding or the head: an F32 or F16 table is
/// read for it, up to the first value that BF16 does not hold.
PackedFormat Loader::table_format(MatrixKind kind) const {
  const MatrixSource source = find_matrix(checkpoint_, data_.config, kind);
  if (source.weight->dtype == DType::bf16) return PackedFormat::bf16;
  const uint64_t row_bytes = std::max<uint64_t>(source.row_bytes(), 1);
  const uint64_t step = std::max<uint64_t>(kRangeBytes / row_bytes, 1);
  std::atomic<bool> is_exact = true;
  WorkItems work;
  work.num_items = (source.rows + step - 1) / step;
  work.run = [&](uint64_t item_idx) {
    const uint64_t begin = item_idx * step, end = std::min(begin + step, uint64_t{source.rows});
    const std::span<const std::byte> bytes = source.weight->data.subspan(
        source.stored_row(begin) * row_bytes, (end - begin) * row_bytes);
    if (is_exact) prefetch_pages(bytes);
    for (uint64_t row = begin; row < end && is_exact; ++row)
      if (!fits_bf16(source, static_cast<uint32_t>(row))) is_exact = false;
    checkpoint_.release_pages({{}, source.weight->dtype, {}, bytes, {}});
    return (end - begin) * row_bytes;
  };
  work.num_threads = options_.num_threads;
  work.where = kWhere;
  run_work_items(work);
  return is_exact ? PackedFormat::bf16 : PackedFormat::f32;
}

PackJob Loader::find_job(const MatrixSlot& slot) const {
  using Kind = MatrixKind;
  const auto of = [&](std::initializer_list<Kind> kinds, RowOrder order) {
    PackJob job;
    for (const Kind kind : kinds) job.sources.push_back(find(kind, slot));
    job.order = order;
    return job;
  };
  switch (slot.role) {
    case MatrixRole::embed: return of({Kind::embed}, RowOrder::plain);
    case MatrixRole::lm_head: return of({Kind::lm_head}, RowOrder::plain);
    case MatrixRole::o_proj: return of({Kind::o_proj}, RowOrder::plain);
    case MatrixRole::router: return of({Kind::router}, RowOrder::plain);
    case MatrixRole::down: return of({Kind::down_proj}, RowOrder::plain);
    case MatrixRole::expert_down: return of({Kind::expert_down_proj}, RowOrder::plain);
    case MatrixRole::gate_up: return of({Kind::gate_proj, Kind::up_proj}, RowOrder::alternate);
    case MatrixRole::expert_gate_up:
      return of({Kind::expert_gate_proj, Kind::expert_up_proj}, RowOrder::alternate);
    case MatrixRole::qkv: {
      PackJob job = of({Kind::q_proj, Kind::k_proj, Kind::v_proj}, RowOrder::qkv);
      job.layer = &data_.layer_config(slot);
      job.tiles = &data_.layers[slot.layer_idx].qkv_tiles;
      return job;
    }
    case MatrixRole::context_fc: break;
  }
  fail(ErrorCode::internal, kWhere, "unknown matrix role");
}

void Loader::load_vector(const VectorSlot& slot, const Arena& arena) const {
  const TensorInfo& tensor = find_vector(checkpoint_, slot.kind, slot.layer_idx);
  auto* out = reinterpret_cast<float*>(arena.data() + slot.offset);
  read_vector(tensor, {out, slot.num_elements});
}

}  // namespace

Weights::Weights(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Weights::Weights(Weights&&) noexcept = default;
Weights::~Weights() = default;

Weights Weights::load(const Checkpoint& checkpoint, const ModelConfig& config,
                      const Options& options) {
  checkpoint.validate(config);
  auto impl = std::make_unique<Impl>();
  impl->config = config;
  Loader(checkpoint, *impl, options).load();
  return Weights(std::move(impl));
}

const ModelConfig& Weights::config() const { return impl_->config; }
const LayerWeights& Weights::layer(uint32_t layer_idx) const { return impl_->layers[layer_idx]; }
const PackedMatrix& Weights::embed() const { return impl_->embed; }
const PackedMatrix& Weights::lm_head() const { return impl_->lm_head; }
const float* Weights::final_norm() const { return impl_->final_norm; }
uint64_t Weights::packed_bytes() const { return impl_->arena.size_bytes(); }
const PackedCacheReport& Weights::cache_report() const { return impl_->cache_report; }

}  // namespace mimo_rt
