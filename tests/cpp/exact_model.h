// The weights of exact_weights.h as checkpoints of a model with all features and of its draft.
#pragma once

#include "device_draft_fixture.h"
#include "exact_weights.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>
#include <utility>

namespace fixture {
namespace exact {

/// Dense, then MoE; full attention, windows with sinks, full attention: the formats of device_config().
inline ModelConfig target_config() {
  ModelConfig config = device_config();
  config.num_experts = 9;
  config.experts_per_token = 4;
  config.value_scale = 0.5;
  config.routed_scaling_factor = 1.5;
  for (LayerConfig& layer : config.layers) layer.rope_theta = Heads::kTheta;
  config.layers[1].window_tokens = config.layers[2].window_tokens = 20;  // the last key that a shift of 19 finds
  return config;
}

/// A layer with a window, one without; q and k norms, sinks.
inline DraftConfig draft_config(const ModelConfig& target) {
  DraftConfig draft = test_configs::make_draft(target, {4, 2, 32, 32, 16}, 2, 6, 20, {1, 0, 3});
  draft.has_sink = true;
  draft.value_scale = 0.5;
  draft.rope_theta = Heads::kTheta;
  draft.window_tokens[1] = 0;
  draft.vocab_size = target.vocab_size;
  return draft;
}

inline Heads target_heads(const ModelConfig& config, uint32_t layer_idx) {
  constexpr uint32_t kShifts[4][2] = {{6, 9}, {12, 19}, {7, 16}, {8, 13}};
  const LayerConfig& layer = config.layers[layer_idx];
  return {layer.num_q_heads, layer.num_kv_heads, layer.qk_head_dim, layer.v_head_dim, layer.rotary_dim,
          {kShifts[layer_idx][0], kShifts[layer_idx][1]}, false};
}
/// The copies of a row's draft are of the token that the target's next one is a copy of.
inline Heads draft_heads(const DraftConfig& config) {
  return {config.num_q_heads, config.num_kv_heads, config.qk_head_dim, config.v_head_dim, config.rotary_dim, {13, 16}, true};
}
inline constexpr uint32_t kCopyingLayer = 1;  ///< of the target

template <typename T>
void put(std::string& bytes, uint64_t i, T value) {
  std::memcpy(bytes.data() + i * sizeof value, &value, sizeof value);
}

inline void store_bf16(const Matrix& m, std::string& bytes) {
  for (uint64_t i = 0; i < m.values.size(); ++i) {
    const bf16_t value = f32_to_bf16(m.values[i]);
    if (bf16_to_f32(value) != m.values[i]) throw std::logic_error("not a BF16 number");
    put(bytes, i, value);
  }
}
inline void store_f32(const Matrix& m, std::string& bytes) {
  for (uint64_t i = 0; i < m.values.size(); ++i) put(bytes, i, m.values[i]);
}

/// The code of a value among `count` of them.
template <typename Value>
uint8_t code_of(float value, uint32_t count, const Value& value_of) {
  for (uint32_t code = 0; code < count; ++code)
    if (value_of(static_cast<uint8_t>(code)) == value) return static_cast<uint8_t>(code);
  throw std::logic_error("not a number of the format");
}

/// Scales are of two kinds, so that a neighbour's is seen.
inline int scale_exponent(uint64_t i, int exponent) { return exponent + std::popcount(i) % 2; }
inline float scale_of(uint64_t i, int exponent) { return std::ldexp(1.0f, scale_exponent(i, exponent)); }

/// Scale blocks of 128 x 128, which begin anew every `run_rows` rows.
inline void store_fp8(const Matrix& m, uint32_t run_rows, int exponent, std::string& bytes) {
  const uint32_t scale_cols = (m.cols + 127) / 128, scale_rows = (run_rows + 127) / 128;
  for (uint64_t i = 0; i < m.values.size(); ++i) {
    const auto row = static_cast<uint32_t>(i / m.cols), col = static_cast<uint32_t>(i % m.cols);
    const uint64_t scale_row = row / run_rows * scale_rows + row % run_rows / 128;
    const float scale = scale_of(scale_row * scale_cols + col / 128, exponent);
    put(bytes, i, code_of(m.values[i] / scale, 256, fp8_e4m3_to_f32));
  }
}
/// A scale for 32 neighbours, two codes in a byte.
inline void store_mxfp4(const Matrix& m, int exponent, std::string& bytes) {
  std::fill(bytes.begin(), bytes.end(), '\0');
  for (uint64_t i = 0; i < m.values.size(); ++i) {
    const uint8_t code = code_of(m.values[i] / scale_of(i / 32, exponent), 16, fp4_e2m1_to_f32);
    bytes[i / 2] = static_cast<char>(bytes[i / 2] | code << i % 2 * 4);
  }
}

/// The number behind `word` in a tensor's name.
inline uint32_t number_after(const std::string& name, const std::string& word) {
  const size_t at = name.find(word);
  return at == name.npos ? 0 : static_cast<uint32_t>(std::stoul(name.substr(at + word.size())));
}

inline Matrix embeddings(uint32_t vocab_size) {
  Matrix m(vocab_size, kHidden);
  for (uint32_t token = 0; token < vocab_size; ++token) embed(m, token, token, vocab_size);
  return m;
}

/// Chunks of [Q | K | V].
inline Matrix fused_qkv(const ModelConfig& config, uint32_t layer_idx, const std::string& name) {
  const Heads heads = target_heads(config, layer_idx);
  const uint32_t chunks = config.qkv_chunks, q = heads.num_q / chunks, kv = heads.num_kv / chunks;
  Matrix m(heads.num_q * heads.qk_dim + heads.num_kv * (heads.qk_dim + heads.v_dim), kHidden);
  Random random(name);
  uint32_t row = 0;
  for (uint32_t chunk = 0; chunk < chunks; ++chunk) {
    for (uint32_t i = 0; i < q; ++i, row += heads.qk_dim) heads.fill_q(m, row, chunk * q + i);
    for (uint32_t i = 0; i < kv; ++i, row += heads.qk_dim) heads.fill_k(m, row, chunk * kv + i);
    for (uint32_t i = 0; i < kv; ++i, row += heads.v_dim)
      heads.fill_v(m, row, chunk * kv + i, random, 2 * layer_idx, layer_idx > kCopyingLayer);
  }
  return m;
}

inline Matrix sinks(const Heads& heads, int largest) {
  Matrix m(1, heads.num_q);
  for (uint32_t h = 0; h < heads.num_q; ++h) m.at(0, h) = bf16_to_f32(f32_to_bf16(heads.sink(h, largest)));
  return m;
}

/// Matrices of an MLP, dense or an expert's, in the format of its tensor.
inline void fill_mlp(const Mlp& mlp, bool is_moe, const std::string& name, std::string& bytes) {
  const bool is_gate = name.find("gate_proj") != name.npos, is_up = name.find("up_proj") != name.npos;
  const int exponent = is_up ? -7 : !is_moe ? 0 : is_gate ? 5 : 1;
  if (name.ends_with("weight_scale_inv"))
    for (uint64_t i = 0; i < bytes.size() / 4; ++i) put(bytes, i, scale_of(i, exponent));
  else if (name.ends_with("weight_scale"))
    for (uint64_t i = 0; i < bytes.size(); ++i) put(bytes, i, static_cast<uint8_t>(127 + scale_exponent(i, exponent)));
  else {
    const Matrix m = is_gate ? mlp.gate(Random(name)) : is_up ? mlp.up(Random(name)) : mlp.down(Random(name), is_moe ? 8 : 1);
    is_moe ? store_mxfp4(m, exponent, bytes) : store_fp8(m, m.rows, exponent, bytes);
  }
}

inline void fill_target(const ModelConfig& config, const std::string& name, std::string& bytes) {
  const uint32_t layer_idx = number_after(name, "layers."), half_layer = 2 * layer_idx;
  const auto ends = [&](const char* tail) { return name.ends_with(tail); };
  Random random(name);
  if (ends("embed_tokens.weight")) return store_bf16(embeddings(config.vocab_size), bytes);
  if (ends("lm_head.weight")) return store_bf16(lm_head(config.vocab_size), bytes);
  if (ends("norm.weight") || ends("layernorm.weight")) return store_bf16(norm(), bytes);
  if (ends("qkv_proj.weight")) {
    const Matrix m = fused_qkv(config, layer_idx, name);
    return store_fp8(m, m.rows / config.qkv_chunks, 0, bytes);
  }
  if (ends("qkv_proj.weight_scale_inv")) {
    for (uint64_t i = 0; i < bytes.size() / 4; ++i) put(bytes, i, scale_of(i, 0));
    return;
  }
  const Heads heads = target_heads(config, layer_idx);
  if (ends("o_proj.weight")) return store_bf16(heads.o_proj(random, half_layer, layer_idx == kCopyingLayer), bytes);
  if (ends("sink_bias")) return store_bf16(sinks(heads, 85), bytes);
  if (ends("mlp.gate.weight")) return store_f32(router(config.num_experts, half_layer + 1, random), bytes);
  if (ends("e_score_correction_bias")) {
    for (uint64_t i = 0; i < bytes.size() / 2; ++i)  // the first four have more occasions
      put(bytes, i, f32_to_bf16(static_cast<float>(random.below(16) + (i < 4 ? 0 : 16)) / 64));
    return;
  }
  const bool is_moe = config.layers[layer_idx].is_moe;
  const uint32_t width = is_moe ? config.expert_intermediate_size : config.intermediate_size;
  fill_mlp({width, half_layer + 1, layer_idx >= kCopyingLayer}, is_moe, name, bytes);
}

inline void fill_draft(const DraftConfig& config, const std::string& name, std::string& bytes) {
  const uint32_t layer_idx = number_after(name, "layers."), half_layer = 2 * layer_idx;
  const auto ends = [&](const char* tail) { return name.ends_with(tail); };
  const Heads heads = draft_heads(config);
  const Mlp mlp{config.intermediate_size, half_layer + 1, true};
  Random random(name);
  const auto of_heads = [&](uint32_t num_heads, uint32_t num_dims, const auto& fill_head) {
    Matrix m(num_heads * num_dims, kHidden);
    for (uint32_t h = 0; h < num_heads; ++h) fill_head(m, h * num_dims, h);
    store_bf16(m, bytes);
  };
  if (ends("fc.weight")) return store_bf16(context_fc(), bytes);
  if (ends("q_norm.weight") || ends("k_norm.weight")) return store_bf16(heads.head_norm(), bytes);
  if (ends("norm.weight") || ends("layernorm.weight")) return store_bf16(norm(), bytes);
  if (ends("sink_bias")) return store_bf16(sinks(heads, 98), bytes);
  if (ends("q_proj.weight"))
    return of_heads(heads.num_q, heads.qk_dim, [&](Matrix& m, uint32_t row, uint32_t h) { heads.fill_q(m, row, h); });
  if (ends("k_proj.weight"))
    return of_heads(heads.num_kv, heads.qk_dim, [&](Matrix& m, uint32_t row, uint32_t h) { heads.fill_k(m, row, h); });
  if (ends("v_proj.weight"))
    return of_heads(heads.num_kv, heads.v_dim, [&](Matrix& m, uint32_t row, uint32_t h) {
      heads.fill_v(m, row, h, random, half_layer, true);
    });
  if (ends("o_proj.weight")) return store_bf16(heads.o_proj(random, half_layer, layer_idx == 0), bytes);
  if (ends("gate_proj.weight")) return store_bf16(mlp.gate(random), bytes);
  if (ends("up_proj.weight")) return store_bf16(mlp.up(random), bytes);
  store_bf16(mlp.down(random, 1.0f), bytes);
}

/// `damage` may change the bytes of a tensor of either model.
inline DeviceDraft make_model(const ModelConfig& target, const DraftConfig& draft, const Edit& damage = {}) {
  Matrix mask(1, kHidden);
  embed(mask, 0, target.vocab_size, target.vocab_size);
  std::string mask_bytes(2 * kHidden, '\0');
  store_bf16(mask, mask_bytes);
  const auto with_damage = [&](const auto& fill) {
    return [damage, fill](const std::string& name, std::string& bytes) {
      fill(name, bytes);
      if (damage) damage(name, bytes);
    };
  };
  return DeviceDraft(draft, target,
                     with_damage([target](const std::string& name, std::string& bytes) { fill_target(target, name, bytes); }),
                     with_damage([draft](const std::string& name, std::string& bytes) { fill_draft(draft, name, bytes); }),
                     mask_bytes);
}

}  // namespace exact
}  // namespace fixture
