// CudaWeights::load: which part of which tensor goes where.
#include "weights/cuda_weights.h"

#include <utility>

#include "core/checks.h"

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "CudaWeights.load";

struct Data {
  Rank rank;
  std::vector<CudaLayerWeights> layers;
  CudaTable embed;
  CudaDenseMatrix lm_head;
  uint64_t final_norm = 0;
  CudaBlockImage image;
};

class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const ModelConfig& config,
         const CudaWeights::Options& options, Data& data)
      : checkpoint_(checkpoint), config_(config), options_(options), data_(data) {}

  void load() {
    data_.embed = block_.add_table(source(MatrixKind::embed));
    data_.layers.resize(config_.num_layers);
    for (uint32_t i = 0; i < config_.num_layers; ++i) add_layer(i, data_.layers[i]);
    data_.final_norm = add_vector(VectorKind::final_norm, 0, 0, config_.hidden_size);
    const uint32_t vocab = share_of_rank("vocab_size", config_.vocab_size, rank(), 1);
    data_.lm_head = add_rows({source(MatrixKind::lm_head)}, RowOrder::plain, vocab);
    data_.image = block_.pack(options_.pack);
    for (const TensorInfo& tensor : checkpoint_.tensors()) checkpoint_.release_pages(tensor);
  }

 private:
  const Rank& rank() const { return data_.rank; }
  MatrixSource source(MatrixKind kind, uint32_t layer_idx = 0, uint32_t expert_idx = 0) const {
    return find_matrix(checkpoint_, config_, kind, layer_idx, expert_idx);
  }
  CudaDenseMatrix add_rows(std::vector<MatrixSource> sources, RowOrder order, uint32_t count);
  CudaDenseMatrix add_columns(const MatrixSource& s, uint32_t count);
  uint64_t add_vector(VectorKind kind, uint32_t layer_idx, uint32_t first, uint32_t count);
  void add_layer(uint32_t i, CudaLayerWeights& layer);
  void add_attention(uint32_t i, CudaLayerWeights& layer);
  void add_experts(uint32_t i, CudaLayerWeights& layer);

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  const CudaWeights::Options& options_;
  Data& data_;
  CudaBlock block_{kWhere};
};

/// The rank's `count` rows of each source, all columns.
CudaDenseMatrix Loader::add_rows(std::vector<MatrixSource> sources, RowOrder order,
                                 uint32_t count) {
  PackJob job;
  for (const MatrixSource& s : sources)
    job.sources.push_back(slice_rows(s, rank().index * count, count));
  job.order = order;
  return block_.add_dense(std::move(job), ColumnSlice::all(sources[0]));
}

/// The rank's `count` columns, all rows.
CudaDenseMatrix Loader::add_columns(const MatrixSource& s, uint32_t count) {
  PackJob job;
  job.sources = {s};
  return block_.add_dense(std::move(job), {rank().index * count, count});
}

/// Elements [first, first + count), as floats.
uint64_t Loader::add_vector(VectorKind kind, uint32_t layer_idx, uint32_t first, uint32_t count) {
  return block_.add_floats(find_vector(checkpoint_, kind, layer_idx), first, count);
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
  layer.qkv = block_.add_dense(std::move(job), columns);
  layer.o_proj = add_columns(source(MatrixKind::o_proj, i), c.num_q_heads * c.v_head_dim);
  if (c.has_sink)
    layer.sink_logits =
        add_vector(VectorKind::sink_logits, i, rank().index * c.num_q_heads, c.num_q_heads);
}

void Loader::add_experts(uint32_t i, CudaLayerWeights& layer) {
  layer.router = block_.add_table(source(MatrixKind::router, i));
  layer.router_bias = add_vector(VectorKind::router_bias, i, 0, config_.num_experts);
  const uint32_t width = share_of_rank("moe_intermediate_size", config_.expert_intermediate_size,
                                       rank(), kBlockK);
  const ColumnSlice columns{rank().index * width, width};
  const auto rows = [this, i, columns](MatrixKind kind, uint64_t expert) {
    return slice_rows(source(kind, i, static_cast<uint32_t>(expert)), columns.first, columns.count);
  };
  const uint64_t num_packed = options_.num_packed_experts ? options_.num_packed_experts : config_.num_experts;
  using Kind = MatrixKind;
  layer.expert_gate_up.shape =
      cuda_gate_up_shape(rows(Kind::expert_gate_proj, 0), rows(Kind::expert_up_proj, 0));
  layer.expert_gate_up.offset =
      block_.add(config_.num_experts, layer.expert_gate_up.shape.bytes(),
          [rows](uint64_t expert, uint8_t* out) {
            pack_cuda_gate_up(rows(Kind::expert_gate_proj, expert),
                              rows(Kind::expert_up_proj, expert), out);
          }, num_packed);
  layer.expert_down.shape = cuda_down_shape(source(Kind::expert_down_proj, i), columns);
  layer.expert_down.offset =
      block_.add(config_.num_experts, layer.expert_down.shape.bytes(),
          [this, i, columns](uint64_t expert, uint8_t* out) {
            pack_cuda_down(source(Kind::expert_down_proj, i, static_cast<uint32_t>(expert)),
                           columns, out);
          }, num_packed);
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
const CudaBlockImage& CudaWeights::image() const { return impl_->image; }
void CudaWeights::drop_block() noexcept { impl_->image.packed = Arena(); }

}  // namespace mimo_rt
