// Weights::load: finds the sources of every packed matrix, lays out the arena, packs in parallel.
#include "weights/weights.h"

#include "core/checks.h"
#include "weights/layout.h"
#include "weights/pack.h"
#include "weights/work_items.h"

#include <algorithm>
#include <atomic>
#include <utility>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Weights.load";

// One range of work: large enough to hide the bookkeeping, small enough that the source pages that
// all threads hold at once stay far below the 15 % that loading may need beyond the result.
constexpr uint64_t kRangeBytes = uint64_t{1} << 20;

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
    allocate(data_, layout_, kWhere);
    for (const VectorSlot& slot : layout_.vectors) load_vector(slot);
    const std::vector<GroupRange> ranges = split_into_ranges(layout_, kRangeBytes);
    WorkItems work;
    work.num_items = ranges.size();
    for (const MatrixSlot& slot : layout_.matrices) work.total_bytes += slot.matrix->bytes();
    work.run = [&](uint64_t item_idx) { return pack_range(ranges[item_idx]); };
    work.progress = options_.progress;
    work.num_threads = options_.num_threads;
    work.where = kWhere;
    run_work_items(work);
    // What is left: FP8 scales, and pages that a neighbour's read brought back.
    for (const TensorInfo& tensor : checkpoint_.tensors()) checkpoint_.release_pages(tensor);
  }

 private:
  MatrixSource find(MatrixKind kind, const MatrixSlot& slot) const {
    return find_matrix(checkpoint_, data_.config, kind, slot.layer_idx, slot.expert_idx);
  }

  void plan();
  PackedFormat table_format(MatrixKind kind) const;
  PackJob find_job(const MatrixSlot& slot) const;
  void load_vector(const VectorSlot& slot) const;
  uint64_t pack_range(const GroupRange& range) const;
  template <typename Function>
  void for_each_source_span(const GroupRange& range, const Function& function) const;

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
  }
  fail(ErrorCode::internal, kWhere, "unknown matrix role");
}

void Loader::load_vector(const VectorSlot& slot) const {
  const TensorInfo& tensor = find_vector(checkpoint_, slot.kind, slot.layer_idx);
  auto* out = reinterpret_cast<float*>(data_.arena.data() + slot.offset);
  read_vector(tensor, {out, slot.num_elements});
}

/// Calls `function(tensor, bytes)` for the stored weights and MXFP4 scales of the range. Rows that
/// lie close together are one span: the pieces of a fused qkv stay apart.
template <typename Function>
void Loader::for_each_source_span(const GroupRange& range, const Function& function) const {
  const PackJob& job = jobs_[range.matrix_idx];
  struct Rows {
    uint64_t begin = 0, end = 0;
  };
  std::vector<Rows> open(job.sources.size());
  const auto flush = [&](size_t source_idx) {
    const MatrixSource& source = job.sources[source_idx];
    const auto [begin, end] = open[source_idx];
    if (begin == end) return;
    const auto call = [&](const TensorInfo& tensor, uint64_t row_bytes) {
      function(tensor, tensor.data.subspan(begin * row_bytes, (end - begin) * row_bytes));
    };
    call(*source.weight, source.row_bytes());
    if (source.format == WeightFormat::mxfp4) call(*source.scale, source.scale_cols());
  };
  for (uint32_t group = range.begin; group < range.end; ++group)
    for (const RowRef& ref : job.group_rows(group)) {
      if (ref.row == RowRef::kPadding) continue;
      const uint64_t row = job.sources[ref.source_idx].stored_row(ref.row);
      Rows& rows = open[ref.source_idx];
      const uint64_t reach = data_.layer_config(layout_.matrices[range.matrix_idx]).qk_head_dim;
      if (rows.begin == rows.end || row + reach < rows.begin || row > rows.end + reach) {
        flush(ref.source_idx);
        rows = {row, row + 1};
      }
      rows = {std::min(rows.begin, row), std::max(rows.end, row + 1)};
    }
  for (size_t i = 0; i < open.size(); ++i) flush(i);
}

uint64_t Loader::pack_range(const GroupRange& range) const {
  const MatrixSlot& slot = layout_.matrices[range.matrix_idx];
  const PackedMatrix& matrix = *slot.matrix;
  for_each_source_span(range, [](const TensorInfo&, std::span<const std::byte> bytes) {
    prefetch_pages(bytes);
  });
  PackScratch scratch;
  for (uint32_t group = range.begin; group < range.end; ++group)
    pack_row_group(jobs_[range.matrix_idx], matrix, group, group_place(data_, slot, group),
                   scratch);
  for_each_source_span(range, [this](const TensorInfo& tensor, std::span<const std::byte> bytes) {
    checkpoint_.release_pages({{}, tensor.dtype, {}, bytes, {}});
  });
  return (range.end - range.begin) * row_group_bytes(matrix.format, matrix.k);
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

}  // namespace mimo_rt
