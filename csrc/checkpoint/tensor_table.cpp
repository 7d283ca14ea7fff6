#include "checkpoint/tensor_table.h"

#include "core/checks.h"
#include "core/config_fields.h"
#include "core/text.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace mimo_rt {
namespace {

const std::vector<DType> kFloats = {DType::bf16, DType::f32, DType::f16};

uint64_t ceil_div(uint64_t value, uint64_t divisor) { return (value + divisor - 1) / divisor; }

std::string layer_name(uint32_t layer_idx, std::string_view tail) {
  return concat("model.layers.", layer_idx, '.', tail);
}

uint64_t fused_chunk_rows(const ModelConfig& config, const LayerConfig& layer) {
  const uint64_t chunks = config.qkv_chunks;
  return layer.num_q_heads / chunks * layer.qk_head_dim +
         layer.num_kv_heads / chunks * (uint64_t{layer.qk_head_dim} + layer.v_head_dim);
}

/// Which of the two namings a layer uses.
struct Naming {
  bool stacked_experts = false;  ///< mlp.experts.gate_up_proj [E, 2I, H], mlp.experts.down_proj
  bool short_sinks = false;      ///< self_attn.sinks
};

Naming naming_of(const Checkpoint* checkpoint, uint32_t layer_idx) {
  if (!checkpoint) return {};
  return {checkpoint->find(layer_name(layer_idx, "mlp.experts.gate_up_proj")) != nullptr,
          checkpoint->find(layer_name(layer_idx, "self_attn.sinks")) != nullptr};
}

/// The stored matrix that holds a logical one: its module, its size, its scale rows.
struct StoredMatrix {
  std::string module;
  uint64_t rows = 0, k = 0;
  uint64_t scale_run_rows = 0;    ///< scale blocks restart after so many rows
  uint64_t head_rows = 0;         ///< > 0: they may restart after so many rows instead
};

class TableBuilder {
 public:
  TableBuilder(const ModelConfig& config, const Checkpoint* checkpoint)
      : config_(config), checkpoint_(checkpoint) {}

  std::vector<ExpectedTensor> build();

 private:
  void add(std::string name, std::vector<DType> dtypes, std::vector<uint64_t> shape) {
    tensors_.push_back({std::move(name), {{std::move(dtypes), std::move(shape)}}});
  }
  void add_matrix(const StoredMatrix& matrix);
  void add_attention(uint32_t layer_idx, const Naming& naming);
  void add_dense(uint32_t layer_idx);
  void add_experts(uint32_t layer_idx, const Naming& naming);

  const ModelConfig& config_;
  const Checkpoint* checkpoint_;
  std::vector<ExpectedTensor> tensors_;
};

void TableBuilder::add_matrix(const StoredMatrix& matrix) {
  const std::string weight_name = matrix.module + ".weight";
  const uint64_t rows = matrix.rows, k = matrix.k;
  switch (config_.format_of(matrix.module)) {
    case WeightFormat::plain: return add(weight_name, kFloats, {rows, k});
    case WeightFormat::fp8_block: {
      add(weight_name, {DType::fp8_e4m3}, {rows, k});
      const uint64_t block_rows = config_.fp8_block_rows;
      const uint64_t scale_cols = ceil_div(k, config_.fp8_block_cols);
      const auto scale_rows = [&](uint64_t run) { return rows / run * ceil_div(run, block_rows); };
      add(matrix.module + ".weight_scale_inv", {DType::f32},
          {scale_rows(matrix.scale_run_rows), scale_cols});
      if (matrix.head_rows > 0)
        tensors_.back().forms.push_back({{DType::f32}, {scale_rows(matrix.head_rows), scale_cols}});
      return;
    }
    case WeightFormat::mxfp4:
      add(weight_name, {DType::u8}, {rows, k / 2});
      tensors_.back().forms.push_back({{DType::fp4_e2m1}, {rows, k}});
      return add(matrix.module + ".weight_scale", {DType::u8, DType::e8m0}, {rows, k / 32});
  }
}

void TableBuilder::add_attention(uint32_t layer_idx, const Naming& naming) {
  const LayerConfig& layer = config_.layers[layer_idx];
  const uint64_t hidden = config_.hidden_size;
  const auto module = [&](std::string_view name) {
    return layer_name(layer_idx, concat("self_attn.", name));
  };
  const auto add_rows = [&](std::string_view name, uint64_t rows, uint64_t head_rows) {
    add_matrix({module(name), rows, hidden, rows, head_rows});
  };
  if (config_.qkv_layout == QkvLayout::fused) {
    const uint64_t chunk_rows = fused_chunk_rows(config_, layer);
    add_matrix({module("qkv_proj"), config_.qkv_chunks * chunk_rows, hidden, chunk_rows, 0});
  } else {
    add_rows("q_proj", uint64_t{layer.num_q_heads} * layer.qk_head_dim, 0);
    add_rows("k_proj", uint64_t{layer.num_kv_heads} * layer.qk_head_dim, layer.qk_head_dim);
    add_rows("v_proj", uint64_t{layer.num_kv_heads} * layer.v_head_dim, 0);
  }
  const uint64_t o_cols = uint64_t{layer.num_q_heads} * layer.v_head_dim;
  add_matrix({module("o_proj"), hidden, o_cols, hidden, 0});
  if (layer.has_sink)
    add(module(naming.short_sinks ? "sinks" : "attention_sink_bias"), kFloats,
        {layer.num_q_heads});
}

void TableBuilder::add_dense(uint32_t layer_idx) {
  const uint64_t hidden = config_.hidden_size, width = config_.intermediate_size;
  add_matrix({layer_name(layer_idx, "mlp.gate_proj"), width, hidden, width, 0});
  add_matrix({layer_name(layer_idx, "mlp.up_proj"), width, hidden, width, 0});
  add_matrix({layer_name(layer_idx, "mlp.down_proj"), hidden, width, hidden, 0});
}

void TableBuilder::add_experts(uint32_t layer_idx, const Naming& naming) {
  const uint64_t hidden = config_.hidden_size, width = config_.expert_intermediate_size;
  const uint64_t num_experts = config_.num_experts;
  add(layer_name(layer_idx, "mlp.gate.weight"), kFloats, {num_experts, hidden});
  add(layer_name(layer_idx, "mlp.gate.e_score_correction_bias"), kFloats, {num_experts});
  if (naming.stacked_experts) {
    add(layer_name(layer_idx, "mlp.experts.gate_up_proj"), kFloats,
        {num_experts, 2 * width, hidden});
    return add(layer_name(layer_idx, "mlp.experts.down_proj"), kFloats,
               {num_experts, hidden, width});
  }
  for (uint64_t expert = 0; expert < num_experts; ++expert) {
    const std::string prefix = layer_name(layer_idx, concat("mlp.experts.", expert, '.'));
    add_matrix({prefix + "gate_proj", width, hidden, width, 0});
    add_matrix({prefix + "up_proj", width, hidden, width, 0});
    add_matrix({prefix + "down_proj", hidden, width, hidden, 0});
  }
}

std::vector<ExpectedTensor> TableBuilder::build() {
  const uint64_t hidden = config_.hidden_size, vocab = config_.vocab_size;
  add("model.embed_tokens.weight", kFloats, {vocab, hidden});
  if (!config_.tie_word_embeddings) add("lm_head.weight", kFloats, {vocab, hidden});
  add("model.norm.weight", kFloats, {hidden});
  for (uint32_t i = 0; i < config_.num_layers; ++i) {
    const Naming naming = naming_of(checkpoint_, i);
    add(layer_name(i, "input_layernorm.weight"), kFloats, {hidden});
    add(layer_name(i, "post_attention_layernorm.weight"), kFloats, {hidden});
    add_attention(i, naming);
    if (config_.layers[i].is_moe) {
      add_experts(i, naming);
    } else {
      add_dense(i);
    }
  }
  return std::move(tensors_);
}

/// What the shapes are made of. ModelConfig::from_json gives no other, but whoever has a config may change it.
void check_config(const ModelConfig& config) {
  constexpr const char* kWhere = "ModelConfig";
  const auto in_range = [](const char* name, uint64_t value) {  // so that no product overflows
    MIMO_RT_CHECK(value >= 1 && value <= uint64_t{1} << 31, unsupported_shape, kWhere, name,
                  ": expected 1..2^31, got ", value);
  };
  MIMO_RT_CHECK(config.layers.size() == config.num_layers, unsupported_shape, kWhere,
                "layers: expected ", config.num_layers, " entries, got ", config.layers.size());
  in_range("hidden_size", config.hidden_size);
  in_range("qkv_chunks", config.qkv_chunks);
  in_range("fp8_block_rows", config.fp8_block_rows);
  in_range("fp8_block_cols", config.fp8_block_cols);
  const auto num_moe_layers = std::count_if(config.layers.begin(), config.layers.end(),
                                            [](const LayerConfig& layer) { return layer.is_moe; });
  MIMO_RT_CHECK(uint64_t{config.num_experts} * static_cast<uint64_t>(num_moe_layers) <= kMaxExpertsOfModel, unsupported_shape,
                kWhere, "num_experts: expected at most ", kMaxExpertsOfModel, " in all layers, got ", config.num_experts,
                " in each of ", num_moe_layers);
  for (const LayerConfig& layer : config.layers) {
    in_range("num_q_heads", layer.num_q_heads);
    in_range("num_kv_heads", layer.num_kv_heads);
    in_range("qk_head_dim", layer.qk_head_dim);
    in_range("v_head_dim", layer.v_head_dim);
    in_range(layer.is_moe ? "expert_intermediate_size" : "intermediate_size",
             layer.is_moe ? config.expert_intermediate_size : config.intermediate_size);
    MIMO_RT_CHECK(config.qkv_layout == QkvLayout::split || fits_chunks(layer, config.qkv_chunks),
                  unsupported_shape, kWhere, "num_q_heads and num_kv_heads: expected multiples of qkv_chunks ",
                  config.qkv_chunks, ", got ", layer.num_q_heads, " and ", layer.num_kv_heads);
  }
}

/// Finds one logical matrix; one per call, so that errors carry the names asked for.
class MatrixFinder {
 public:
  MatrixFinder(const Checkpoint& checkpoint, const ModelConfig& config)
      : checkpoint_(checkpoint), config_(config) {}

  MatrixSource plain(const std::string& tensor_name, uint64_t rows, uint64_t k) const {
    MatrixSource source = sized(rows, k);
    source.weight = &checkpoint_.at(tensor_name);
    return source;
  }
  MatrixSource module(const std::string& name, uint64_t rows, uint64_t k) const;
  MatrixSource qkv_part(MatrixKind kind, uint32_t layer_idx) const;
  MatrixSource expert(MatrixKind kind, uint32_t layer_idx, uint32_t expert_idx) const;

 private:
  static MatrixSource sized(uint64_t rows, uint64_t k) {
    MatrixSource source;
    source.rows = static_cast<uint32_t>(rows);
    source.k = static_cast<uint32_t>(k);
    source.piece_rows = source.piece_stride = source.scale_run_rows = rows;
    return source;
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
};

MatrixSource MatrixFinder::module(const std::string& name, uint64_t rows, uint64_t k) const {
  MatrixSource source = plain(name + ".weight", rows, k);
  source.format = config_.format_of(name);
  if (source.format == WeightFormat::fp8_block) {
    source.scale = &checkpoint_.at(name + ".weight_scale_inv");
    source.scale_block_rows = config_.fp8_block_rows;
    source.scale_block_cols = config_.fp8_block_cols;
  } else if (source.format == WeightFormat::mxfp4) {
    source.scale = &checkpoint_.at(name + ".weight_scale");
    source.scale_block_cols = 32;
  }
  return source;
}

/// A k_proj whose scale blocks restart at each head shows it by its number of scale rows. Published
/// checkpoints restart on full layers alone, so the same number is a doubt only there.
uint64_t k_scale_run_rows(const MatrixSource& source, const LayerConfig& layer) {
  const uint64_t head_rows = layer.qk_head_dim, num_heads = layer.num_kv_heads;
  const uint64_t block_rows = source.scale_block_rows;
  const uint64_t num_blocks = ceil_div(source.rows, block_rows);
  if (source.scale->shape[0] != num_blocks) return head_rows;
  const bool is_same_grid = num_heads == 1 || head_rows % block_rows == 0;
  MIMO_RT_CHECK(layer.window_tokens != 0 || is_same_grid ||
                    num_blocks != num_heads * ceil_div(head_rows, block_rows),
                unsupported_shape, "Checkpoint.find_matrix", "tensor ",
                printable(source.scale->name), ": expected a number of scale rows that tells "
                "whether blocks of ", block_rows, " rows restart at each of ", num_heads,
                " heads of ", head_rows, " rows, got ", num_blocks, ", which both ways have");
  return source.rows;
}

MatrixSource MatrixFinder::qkv_part(MatrixKind kind, uint32_t layer_idx) const {
  const LayerConfig& layer = config_.layers[layer_idx];
  const bool is_q = kind == MatrixKind::q_proj, is_v = kind == MatrixKind::v_proj;
  const uint64_t num_heads = is_q ? layer.num_q_heads : layer.num_kv_heads;
  const uint64_t head_rows = is_v ? layer.v_head_dim : layer.qk_head_dim;
  const uint64_t rows = num_heads * head_rows;
  if (config_.qkv_layout == QkvLayout::split) {
    const char* tail = is_q ? "self_attn.q_proj" : is_v ? "self_attn.v_proj" : "self_attn.k_proj";
    MatrixSource source = module(layer_name(layer_idx, tail), rows, config_.hidden_size);
    if (kind == MatrixKind::k_proj && source.format == WeightFormat::fp8_block)
      source.scale_run_rows = k_scale_run_rows(source, layer);
    return source;
  }
  const uint64_t chunks = config_.qkv_chunks;
  const uint64_t q_rows = layer.num_q_heads / chunks * layer.qk_head_dim;
  const uint64_t k_rows = layer.num_kv_heads / chunks * layer.qk_head_dim;
  MatrixSource source =
      module(layer_name(layer_idx, "self_attn.qkv_proj"), rows, config_.hidden_size);
  source.first_row = is_q ? 0 : is_v ? q_rows + k_rows : q_rows;
  source.piece_rows = rows / chunks;
  source.piece_stride = source.scale_run_rows = fused_chunk_rows(config_, layer);
  return source;
}

MatrixSource MatrixFinder::expert(MatrixKind kind, uint32_t layer_idx, uint32_t expert_idx) const {
  const uint64_t hidden = config_.hidden_size, width = config_.expert_intermediate_size;
  const bool is_down = kind == MatrixKind::expert_down_proj;
  const bool is_up = kind == MatrixKind::expert_up_proj;
  const uint64_t rows = is_down ? hidden : width, k = is_down ? width : hidden;
  if (naming_of(&checkpoint_, layer_idx).stacked_experts) {
    MatrixSource source = plain(
        layer_name(layer_idx, is_down ? "mlp.experts.down_proj" : "mlp.experts.gate_up_proj"), rows,
        k);
    source.first_row = is_down ? expert_idx * hidden : expert_idx * 2 * width + (is_up ? width : 0);
    return source;
  }
  const char* tail = is_down ? ".down_proj" : is_up ? ".up_proj" : ".gate_proj";
  return module(layer_name(layer_idx, concat("mlp.experts.", expert_idx, tail)), rows, k);
}

}  // namespace

std::vector<ExpectedTensor> expected_tensors(const ModelConfig& config,
                                             const Checkpoint* checkpoint) {
  check_config(config);
  return TableBuilder(config, checkpoint).build();
}

bool is_ignored_tensor(std::string_view name) {
  static constexpr std::string_view kPrefixes[] = {"model.mtp.", "visual.", "audio_encoder.",
                                                   "speech_embeddings."};
  return std::any_of(std::begin(kPrefixes), std::end(kPrefixes),
                     [&](std::string_view prefix) { return name.starts_with(prefix); });
}

MatrixSource find_matrix(const Checkpoint& checkpoint, const ModelConfig& config, MatrixKind kind,
                         uint32_t layer_idx, uint32_t expert_idx) {
  const MatrixFinder finder(checkpoint, config);
  const uint64_t hidden = config.hidden_size, vocab = config.vocab_size;
  const uint64_t width = config.intermediate_size;
  switch (kind) {
    case MatrixKind::lm_head:
      if (!config.tie_word_embeddings) return finder.plain("lm_head.weight", vocab, hidden);
      [[fallthrough]];
    case MatrixKind::embed: return finder.plain("model.embed_tokens.weight", vocab, hidden);
    case MatrixKind::q_proj:
    case MatrixKind::k_proj:
    case MatrixKind::v_proj: return finder.qkv_part(kind, layer_idx);
    case MatrixKind::o_proj: {
      const LayerConfig& layer = config.layers[layer_idx];
      return finder.module(layer_name(layer_idx, "self_attn.o_proj"), hidden,
                           uint64_t{layer.num_q_heads} * layer.v_head_dim);
    }
    case MatrixKind::gate_proj:
      return finder.module(layer_name(layer_idx, "mlp.gate_proj"), width, hidden);
    case MatrixKind::up_proj:
      return finder.module(layer_name(layer_idx, "mlp.up_proj"), width, hidden);
    case MatrixKind::down_proj:
      return finder.module(layer_name(layer_idx, "mlp.down_proj"), hidden, width);
    case MatrixKind::router:
      return finder.plain(layer_name(layer_idx, "mlp.gate.weight"), config.num_experts, hidden);
    case MatrixKind::expert_gate_proj:
    case MatrixKind::expert_up_proj:
    case MatrixKind::expert_down_proj: return finder.expert(kind, layer_idx, expert_idx);
    case MatrixKind::context_fc: break;
  }
  fail(ErrorCode::internal, "find_matrix", "unknown matrix kind");
}

const TensorInfo& find_vector(const Checkpoint& checkpoint, VectorKind kind, uint32_t layer_idx) {
  switch (kind) {
    case VectorKind::final_norm: return checkpoint.at("model.norm.weight");
    case VectorKind::attn_norm:
      return checkpoint.at(layer_name(layer_idx, "input_layernorm.weight"));
    case VectorKind::mlp_norm:
      return checkpoint.at(layer_name(layer_idx, "post_attention_layernorm.weight"));
    case VectorKind::sink_logits:
      return checkpoint.at(layer_name(layer_idx, naming_of(&checkpoint, layer_idx).short_sinks
                                                     ? "self_attn.sinks"
                                                     : "self_attn.attention_sink_bias"));
    case VectorKind::router_bias:
      return checkpoint.at(layer_name(layer_idx, "mlp.gate.e_score_correction_bias"));
    case VectorKind::hidden_norm:
    case VectorKind::q_norm:
    case VectorKind::k_norm: break;
  }
  fail(ErrorCode::internal, "find_vector", "unknown vector kind");
}

}  // namespace mimo_rt
