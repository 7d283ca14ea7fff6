#include "weights/cuda_draft_weights.h"

#include <utility>

#include "checkpoint/draft_tensors.h"
#include "core/checks.h"
#include "core/text.h"
#include "weights/draft_weights.h"

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "CudaDraftWeights.load";

struct Data {
  DraftConfig config;
  std::vector<CudaDraftLayerWeights> layers;
  CudaDenseMatrix fc, context_kv, lm_head;
  uint64_t hidden_norm = 0, final_norm = 0, mask_embedding = 0, vocab_ids = 0;
  CudaBlockImage image;
};

class Loader {
 public:
  Loader(const Checkpoint& draft, const CudaDraftWeights::Target& target, Data& data)
      : draft_(draft), target_(target), config_(data.config), data_(data) {}

  void load(const CudaPackOptions& options) {
    const MatrixSource embedding = find_matrix(target_.checkpoint, target_.config, MatrixKind::embed);
    const std::vector<uint16_t> mask = read_mask_row(draft_, config_, embedding.weight);
    data_.fc = add({MatrixKind::context_fc}, RowOrder::plain);
    data_.hidden_norm = add_norm(VectorKind::hidden_norm, 0, config_.hidden_size);
    data_.mask_embedding = block_.add_values(std::span<const uint16_t>(mask));
    data_.context_kv = add_context_kv();
    data_.layers.resize(config_.num_layers);
    for (uint32_t i = 0; i < config_.num_layers; ++i) add_layer(i, data_.layers[i]);
    data_.final_norm = add_norm(VectorKind::final_norm, 0, config_.hidden_size);
    if (config_.draft_vocab_size) add_head();
    data_.image = block_.pack(options);
    for (const TensorInfo& tensor : draft_.tensors()) draft_.release_pages(tensor);
  }

 private:
  PackJob job(std::initializer_list<MatrixKind> kinds, RowOrder order, uint32_t layer_idx) const {
    PackJob job;
    for (const MatrixKind kind : kinds)
      job.sources.push_back(find_draft_matrix(draft_, config_, kind, layer_idx));
    job.order = order;
    return job;
  }
  CudaDenseMatrix add(std::initializer_list<MatrixKind> kinds, RowOrder order, uint32_t layer_idx = 0) {
    PackJob matrix = job(kinds, order, layer_idx);
    const ColumnSlice columns = ColumnSlice::all(matrix.sources[0]);
    return block_.add_dense(std::move(matrix), columns);
  }
  uint64_t add_norm(VectorKind kind, uint32_t layer_idx, uint32_t count) {
    return block_.add_floats(find_draft_vector(draft_, kind, layer_idx), 0, count);
  }
  CudaDenseMatrix add_context_kv();
  void add_layer(uint32_t i, CudaDraftLayerWeights& layer);
  void add_head();

  const Checkpoint& draft_;
  const CudaDraftWeights::Target& target_;
  const DraftConfig& config_;
  Data& data_;
  CudaBlock block_{kWhere};
};

CudaDenseMatrix Loader::add_context_kv() {
  std::vector<PackJob> jobs;
  for (uint32_t i = 0; i < config_.num_layers; ++i)
    jobs.push_back(job({MatrixKind::k_proj, MatrixKind::v_proj}, RowOrder::stacked, i));
  const CudaDenseShape shape = cuda_dense_shape(jobs[0]);
  for (uint32_t i = 1; i < config_.num_layers; ++i)
    MIMO_RT_CHECK(cuda_dense_shape(jobs[i]).format == shape.format, unsupported_shape, kWhere, "tensor ",
                  printable(jobs[i].sources[0].weight->name), ": expected the format of ",
                  printable(jobs[0].sources[0].weight->name), " for the CUDA engine, got another");
  const uint32_t num_groups = shape.num_row_groups();
  const uint64_t offset = block_.add(
      uint64_t{num_groups} * config_.num_layers, shape.group_bytes(),
      [jobs = std::move(jobs), shape, num_groups](uint64_t group, uint8_t* out) {
        pack_cuda_dense_group(jobs[group / num_groups], shape, static_cast<uint32_t>(group % num_groups), out);
      });
  return {offset, {shape.format, shape.rows * config_.num_layers, shape.k}};
}

void Loader::add_layer(uint32_t i, CudaDraftLayerWeights& layer) {
  using Kind = MatrixKind;
  layer.attn_norm = add_norm(VectorKind::attn_norm, i, config_.hidden_size);
  layer.mlp_norm = add_norm(VectorKind::mlp_norm, i, config_.hidden_size);
  if (config_.has_qk_norm) {
    layer.q_norm = add_norm(VectorKind::q_norm, i, config_.qk_head_dim);
    layer.k_norm = add_norm(VectorKind::k_norm, i, config_.qk_head_dim);
  }
  if (config_.has_sink) layer.sink_logits = add_norm(VectorKind::sink_logits, i, config_.num_q_heads);
  layer.qkv = add({Kind::q_proj, Kind::k_proj, Kind::v_proj}, RowOrder::stacked, i);
  layer.o_proj = add({Kind::o_proj}, RowOrder::plain, i);
  layer.gate_up = add({Kind::gate_proj, Kind::up_proj}, RowOrder::alternate, i);
  layer.down = add({Kind::down_proj}, RowOrder::plain, i);
}

void Loader::add_head() {
  std::vector<int32_t> ids = read_draft_vocabulary(draft_, config_);
  MIMO_RT_CHECK(static_cast<uint32_t>(ids.back()) < target_.config.vocab_size, shape_mismatch, kWhere,
                "d2t: expected tokens below the model's vocab_size (", target_.config.vocab_size, "), got ",
                ids.back());
  data_.vocab_ids = block_.add_values(std::span<const int32_t>(ids));
  PackJob head;
  head.sources = {find_matrix(target_.checkpoint, target_.config, MatrixKind::lm_head)};
  CudaDenseShape shape = cuda_dense_shape(head);
  shape.rows = round_up(static_cast<uint32_t>(ids.size()), kTileRows);
  const uint64_t offset =
      block_.add(shape.num_row_groups(), shape.group_bytes(),
                 [head = std::move(head), ids = std::move(ids), shape](uint64_t group, uint8_t* out) {
                   std::array<RowRef, kTileRows> refs;
                   for (uint64_t i = 0; i < kTileRows && group * kTileRows + i < ids.size(); ++i)
                     refs[i].row = static_cast<uint32_t>(ids[group * kTileRows + i]);
                   pack_cuda_dense_refs(head, ColumnSlice::all(head.sources[0]), shape, refs, out);
                 });
  data_.lm_head = {offset, shape};
}

}  // namespace

struct CudaDraftWeights::Impl : Data {};

CudaDraftWeights::CudaDraftWeights(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CudaDraftWeights::CudaDraftWeights(CudaDraftWeights&&) noexcept = default;
CudaDraftWeights::~CudaDraftWeights() = default;

CudaDraftWeights CudaDraftWeights::load(const std::filesystem::path& draft_dir, const DraftConfig& config,
                                        const Target& target, const CudaPackOptions& options,
                                        const Checkpoint::Options& file_options) {
  return load(open_draft(draft_dir, file_options), config, target, options);
}

CudaDraftWeights CudaDraftWeights::load(const Checkpoint& draft, const DraftConfig& config, const Target& target,
                                        const CudaPackOptions& options) {
  check_tensors(draft, expected_draft_tensors(config, &draft), kWhere);
  auto impl = std::make_unique<Impl>();
  impl->config = config;
  Loader(draft, target, *impl).load(options);
  return CudaDraftWeights(std::move(impl));
}

const DraftConfig& CudaDraftWeights::config() const { return impl_->config; }
const CudaDenseMatrix& CudaDraftWeights::fc() const { return impl_->fc; }
const CudaDenseMatrix& CudaDraftWeights::context_kv() const { return impl_->context_kv; }
const CudaDraftLayerWeights& CudaDraftWeights::layer(uint32_t layer_idx) const { return impl_->layers[layer_idx]; }
uint64_t CudaDraftWeights::hidden_norm() const { return impl_->hidden_norm; }
uint64_t CudaDraftWeights::final_norm() const { return impl_->final_norm; }
uint64_t CudaDraftWeights::mask_embedding() const { return impl_->mask_embedding; }
const CudaDenseMatrix* CudaDraftWeights::lm_head() const {
  return impl_->config.draft_vocab_size ? &impl_->lm_head : nullptr;
}
uint64_t CudaDraftWeights::vocab_ids() const { return impl_->vocab_ids; }
const CudaBlockImage& CudaDraftWeights::image() const { return impl_->image; }
void CudaDraftWeights::drop_block() noexcept { impl_->image.packed = Arena(); }

}  // namespace mimo_rt
