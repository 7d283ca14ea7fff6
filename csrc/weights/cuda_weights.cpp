// CudaWeights::load: a list of parts with their places, then packed in parallel, unit by unit.
#include "weights/cuda_weights.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <utility>

#include "checkpoint/scan.h"
#include "core/checks.h"
#include "core/text.h"
#include "weights/arena.h"
#include "weights/work_items.h"

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "CudaWeights.load";
constexpr uint64_t kPartAlignment = 256;
constexpr uint64_t kMaxTotalBytes = uint64_t{1} << 46;
constexpr uint64_t kUnitRangeBytes = uint64_t{1} << 20;  // packed by a thread before it looks for more

struct Data {
  Rank rank;
  std::vector<CudaLayerWeights> layers;
  CudaTable embed;
  CudaDenseMatrix lm_head;
  uint64_t final_norm = 0;
  Arena arena;
};

/// Something that is packed in equal units: row groups, experts, rows.
struct Part {
  uint64_t offset, num_units, unit_bytes;
  std::function<void(uint64_t unit, uint8_t* out)> pack;
};

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const ModelConfig& config,
         const CudaWeights::Options& options, Data& data)
      : checkpoint_(checkpoint), config_(config), options_(options), data_(data) {}

  void load() {
    data_.embed = add_table(source(MatrixKind::embed));
    data_.layers.resize(config_.num_layers);
    for (uint32_t i = 0; i < config_.num_layers; ++i) add_layer(i, data_.layers[i]);
    data_.final_norm = add_vector(VectorKind::final_norm, 0, 0, config_.hidden_size);
    const uint32_t vocab = share_of_rank("vocab_size", config_.vocab_size, rank(), 1);
    data_.lm_head = add_rows({source(MatrixKind::lm_head)}, RowOrder::plain, vocab);
    check_memory(total_bytes_, available_memory_bytes(), kWhere);
    data_.arena = Arena(total_bytes_, kWhere);
    pack();
  }

 private:
  const Rank& rank() const { return data_.rank; }
  MatrixSource source(MatrixKind kind, uint32_t layer_idx = 0, uint32_t expert_idx = 0) const {
    return find_matrix(checkpoint_, config_, kind, layer_idx, expert_idx);
  }
  uint64_t add(uint64_t num_units, uint64_t unit_bytes,
               std::function<void(uint64_t, uint8_t*)> pack_unit);
  CudaDenseMatrix add_dense(PackJob job, ColumnSlice columns);
  CudaDenseMatrix add_rows(std::vector<MatrixSource> sources, RowOrder order, uint32_t count);
  CudaDenseMatrix add_columns(const MatrixSource& s, uint32_t count);
  CudaTable add_table(const MatrixSource& s);
  uint64_t add_vector(VectorKind kind, uint32_t layer_idx, uint32_t first, uint32_t count);
  void add_layer(uint32_t i, CudaLayerWeights& layer);
  void add_attention(uint32_t i, CudaLayerWeights& layer);
  void add_experts(uint32_t i, CudaLayerWeights& layer);
  void pack() const;

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const CudaWeights::Options& options_;
  Data& data_;
  std::vector<Part> parts_;
  uint64_t total_bytes_ = 0;
};

/// Reserves a place; returns its offset.
uint64_t Loader::add(uint64_t num_units, uint64_t unit_bytes,
                     std::function<void(uint64_t, uint8_t*)> pack_unit) {
  const uint64_t offset = total_bytes_, num_bytes = num_units * unit_bytes;
  MIMO_RT_CHECK(num_bytes <= kMaxTotalBytes - offset, unsupported_shape, kWhere,
                "expected at most ", kMaxTotalBytes, " bytes of packed weights, got more");
  total_bytes_ += (num_bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
  parts_.push_back({offset, num_units, unit_bytes, std::move(pack_unit)});
  return offset;
}

CudaDenseMatrix Loader::add_dense(PackJob job, ColumnSlice columns) {
  const CudaDenseShape shape = cuda_dense_shape(job, columns);
  const uint64_t offset =
      add(shape.num_row_groups(), shape.group_bytes(),
          [job = std::move(job), columns, shape](uint64_t group, uint8_t* out) {
            pack_cuda_dense_group(job, columns, shape, static_cast<uint32_t>(group), out);
          });
  return {offset, shape};
}

/// The rank's `count` rows of each source, all columns.
CudaDenseMatrix Loader::add_rows(std::vector<MatrixSource> sources, RowOrder order,
                                 uint32_t count) {
  PackJob job;
  for (const MatrixSource& s : sources)
    job.sources.push_back(slice_rows(s, rank().index * count, count));
  job.order = order;
  return add_dense(std::move(job), ColumnSlice::all(sources[0]));
}

/// The rank's `count` columns, all rows.
CudaDenseMatrix Loader::add_columns(const MatrixSource& s, uint32_t count) {
  PackJob job;
  job.sources = {s};
  return add_dense(std::move(job), {rank().index * count, count});
}

CudaTable Loader::add_table(const MatrixSource& s) {
  const DType dtype = s.weight->dtype;
  MIMO_RT_CHECK(s.format == WeightFormat::plain && (dtype == DType::bf16 || dtype == DType::f32),
                unsupported_shape, kWhere, "tensor ", printable(s.weight->name),
                ": expected BF16 or F32 for the CUDA engine, got ", dtype_name(dtype));
  const uint64_t offset = add(s.rows, s.row_bytes(), [s, dtype](uint64_t row, uint8_t* out) {
    const std::span<const std::byte> bytes = s.row_data(row);
    check_finite(*s.weight, dtype, bytes, s.stored_row(row) * s.k);
    std::memcpy(out, bytes.data(), bytes.size());
  });
  return {offset, dtype, s.rows, s.k};
}

/// Elements [first, first + count), as floats.
uint64_t Loader::add_vector(VectorKind kind, uint32_t layer_idx, uint32_t first, uint32_t count) {
  const TensorInfo& tensor = find_vector(checkpoint_, kind, layer_idx);
  return add(1, uint64_t{count} * sizeof(float), [&tensor, first, count](uint64_t, uint8_t* out) {
    std::vector<float> values(uint64_t{first} + count);
    read_vector(tensor, values);
    std::memcpy(out, values.data() + first, uint64_t{count} * sizeof(float));
  });
}

void Loader::add_layer(uint32_t i, CudaLayerWeights& layer) {
  layer.attn_norm = add_vector(VectorKind::attn_norm, i, 0, config_.hidden_size);
  layer.mlp_norm = add_vector(VectorKind::mlp_norm, i, 0, config_.hidden_size);
  add_attention(i, layer);
  if (config_.layers[i].is_moe) return add_experts(i, layer);
  const uint32_t width = share_of_rank("intermediate_size", config_.intermediate_size, rank(),
                                       kBlockK);
  layer.gate_up = add_rows({source(MatrixKind::gate_proj, i), source(MatrixKind::up_proj, i)},
                           RowOrder::alternate, width);
  layer.down = add_columns(source(MatrixKind::down_proj, i), width);
}

void Loader::add_attention(uint32_t i, CudaLayerWeights& layer) {
  LayerConfig& c = layer.config = config_.layers[i];
  c.num_q_heads = share_of_rank("num_q_heads", c.num_q_heads, rank(), 1);
  c.num_kv_heads = share_of_rank("num_kv_heads", c.num_kv_heads, rank(), 1);
  layer.qkv_tiles = qkv_tiles(c);
  const uint32_t rows[] = {c.num_q_heads * c.qk_head_dim, c.num_kv_heads * c.qk_head_dim,
                           c.num_kv_heads * c.v_head_dim};
  constexpr MatrixKind kKinds[] = {MatrixKind::q_proj, MatrixKind::k_proj, MatrixKind::v_proj};
  PackJob job;
  for (uint32_t part = 0; part < 3; ++part)
    job.sources.push_back(
        slice_rows(source(kKinds[part], i), rank().index * rows[part], rows[part]));
  job.order = RowOrder::qkv;
  job.layer = &layer.config;
  job.tiles = &layer.qkv_tiles;
  const ColumnSlice columns = ColumnSlice::all(job.sources[0]);
  layer.qkv = add_dense(std::move(job), columns);
  layer.o_proj = add_columns(source(MatrixKind::o_proj, i), c.num_q_heads * c.v_head_dim);
  if (c.has_sink)
    layer.sink_logits =
        add_vector(VectorKind::sink_logits, i, rank().index * c.num_q_heads, c.num_q_heads);
}

void Loader::add_experts(uint32_t i, CudaLayerWeights& layer) {
  layer.router = add_table(source(MatrixKind::router, i));
  layer.router_bias = add_vector(VectorKind::router_bias, i, 0, config_.num_experts);
  const uint32_t width = share_of_rank("moe_intermediate_size", config_.expert_intermediate_size,
                                       rank(), kBlockK);
  const ColumnSlice columns{rank().index * width, width};
  const auto rows = [this, i, columns](MatrixKind kind, uint64_t expert) {
    return slice_rows(source(kind, i, static_cast<uint32_t>(expert)), columns.first, columns.count);
  };
  using Kind = MatrixKind;
  layer.expert_gate_up.shape =
      cuda_gate_up_shape(rows(Kind::expert_gate_proj, 0), rows(Kind::expert_up_proj, 0));
  layer.expert_gate_up.offset =
      add(config_.num_experts, layer.expert_gate_up.shape.bytes(),
          [rows](uint64_t expert, uint8_t* out) {
            pack_cuda_gate_up(rows(Kind::expert_gate_proj, expert),
                              rows(Kind::expert_up_proj, expert), out);
          });
  layer.expert_down.shape = cuda_down_shape(source(Kind::expert_down_proj, i), columns);
  layer.expert_down.offset =
      add(config_.num_experts, layer.expert_down.shape.bytes(),
          [this, i, columns](uint64_t expert, uint8_t* out) {
            pack_cuda_down(source(Kind::expert_down_proj, i, static_cast<uint32_t>(expert)),
                           columns, out);
          });
}

/// The parts, each cut into ranges of units of about `kUnitRangeBytes`.
void Loader::pack() const {
  struct Range {
    const Part* part;
    uint64_t begin, end;
  };
  std::vector<Range> ranges;
  WorkItems work;
  for (const Part& part : parts_) {
    const uint64_t step = std::max<uint64_t>(kUnitRangeBytes / std::max<uint64_t>(part.unit_bytes, 1), 1);
    for (uint64_t begin = 0; begin < part.num_units; begin += step)
      ranges.push_back({&part, begin, std::min(begin + step, part.num_units)});
    work.total_bytes += part.num_units * part.unit_bytes;
  }
  work.num_items = ranges.size();
  work.run = [&](uint64_t item_idx) {
    const auto& [part, begin, end] = ranges[item_idx];
    for (uint64_t unit = begin; unit < end; ++unit)
      part->pack(unit, data_.arena.data() + part->offset + unit * part->unit_bytes);
    return (end - begin) * part->unit_bytes;
  };
  work.progress = options_.progress;
  work.num_threads = options_.num_threads;
  work.where = kWhere;
  run_work_items(work);
  for (const TensorInfo& tensor : checkpoint_.tensors()) checkpoint_.release_pages(tensor);
}

}  // namespace

struct CudaWeights::Impl : Data {};

CudaWeights::CudaWeights(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CudaWeights::CudaWeights(CudaWeights&&) noexcept = default;
CudaWeights::~CudaWeights() = default;

CudaWeights CudaWeights::load(const Checkpoint& checkpoint, const ModelConfig& config,
                              const Options& options) {
  MIMO_RT_CHECK(options.rank.index < options.rank.count, invalid_argument, kWhere,
                "rank: expected one below ", options.rank.count, ", got ", options.rank.index);
  checkpoint.validate(config);
  auto impl = std::make_unique<Impl>();
  impl->rank = options.rank;
  Loader(checkpoint, config, options, *impl).load();
  return CudaWeights(std::move(impl));
}

const Rank& CudaWeights::rank() const { return impl_->rank; }
const CudaLayerWeights& CudaWeights::layer(uint32_t layer_idx) const {
  return impl_->layers[layer_idx];
}
const CudaTable& CudaWeights::embed() const { return impl_->embed; }
const CudaDenseMatrix& CudaWeights::lm_head() const { return impl_->lm_head; }
uint64_t CudaWeights::final_norm() const { return impl_->final_norm; }
std::span<const uint8_t> CudaWeights::block() const {
  return {impl_->arena.data(), impl_->arena.size_bytes()};
}
void CudaWeights::drop_block() noexcept { impl_->arena = Arena(); }

}  // namespace mimo_rt
