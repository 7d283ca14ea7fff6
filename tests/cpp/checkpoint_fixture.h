// Whole checkpoint directories with random but valid tensors, for tests of loading.
#pragma once

#include "checkpoint/tensor_table.h"
#include "safetensors_writer.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <string>

namespace fixture {

using namespace mimo_rt;

inline const char* file_dtype(DType dtype) {
  switch (dtype) {
    case DType::f32: return "F32";
    case DType::bf16: return "BF16";
    case DType::f16: return "F16";
    case DType::fp8_e4m3: return "F8_E4M3";
    case DType::i64: return "I64";
    case DType::i32: return "I32";
    default: return "U8";
  }
}

/// A layer with one full-attention shape; callers change what they test.
inline LayerConfig small_layer(bool is_moe, bool has_sink) {
  LayerConfig layer;
  layer.is_moe = is_moe;
  layer.has_sink = has_sink;
  layer.num_q_heads = 8;
  layer.num_kv_heads = 4;
  layer.qk_head_dim = 48;
  layer.v_head_dim = 32;
  layer.rotary_dim = 16;
  layer.rope_theta = 10000;
  return layer;
}

/// Two layers, the first dense: fused FP8 qkv in 2 chunks of 352 rows (3 scale rows each), MXFP4
/// experts, widths that are not multiples of 16 or 128.
inline ModelConfig small_config() {
  ModelConfig config;
  config.model_type = "mimo_v2";
  config.hidden_size = 160;
  config.num_layers = 2;
  config.vocab_size = 101;
  config.intermediate_size = 200;
  config.expert_intermediate_size = 96;
  config.num_experts = 5;
  config.experts_per_token = 2;
  config.max_position_embeddings = 64;
  config.rms_norm_eps = 1e-5;
  config.qkv_layout = QkvLayout::fused;
  config.qkv_chunks = 2;
  config.expert_format = WeightFormat::mxfp4;
  config.linear_format = WeightFormat::fp8_block;
  config.ignored_layers = {"model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj"};
  config.layers = {small_layer(false, false), small_layer(true, true)};
  return config;
}

/// Small fast generator; the quality of the numbers does not matter.
struct Bits {
  uint64_t state;
  uint64_t next() {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
  }
};

/// Bytes that are valid for a tensor of this name and type.
inline void fill_valid(const std::string& name, DType dtype, std::string& bytes, Bits& bits) {
  for (size_t i = 0; i < bytes.size(); i += 8) {
    const uint64_t word = bits.next();
    std::memcpy(bytes.data() + i, &word, std::min<size_t>(8, bytes.size() - i));
  }
  auto* data = reinterpret_cast<uint8_t*>(bytes.data());
  const size_t size = bytes.size();
  if (dtype == DType::fp8_e4m3)
    for (size_t i = 0; i < size; ++i)
      if ((data[i] & 0x7f) == 0x7f) data[i] ^= 1;
  if (dtype == DType::bf16 || dtype == DType::f16)
    for (size_t i = 1; i < size; i += 2) data[i] &= 0xaf;
  if (dtype == DType::f32)  // scales must not be negative either
    for (size_t i = 3; i < size; i += 4) data[i] &= 0x2f;
  if (dtype == DType::u8 && name.ends_with("_scale"))
    for (size_t i = 0; i < size; ++i) data[i] = static_cast<uint8_t>(data[i] % 255);
}

using Edit = std::function<void(const std::string& name, std::string& bytes)>;

/// Writes one file with `tensors`. `dtypes` overrides the type of a tensor, `edit` may change the
/// bytes of small tensors. Streams: memory stays small.
inline void write_tensor_file(const std::filesystem::path& path,
                              const std::vector<ExpectedTensor>& tensors,
                              const std::map<std::string, DType>& dtypes = {},
                              const Edit& edit = {}) {
  struct Entry {
    std::string name;
    DType dtype;
    uint64_t num_bytes;
  };
  std::vector<Entry> entries;
  std::string json = "{";
  uint64_t end = 0;
  for (const ExpectedTensor& tensor : tensors) {
    const auto wanted = dtypes.find(tensor.name);
    const DType dtype = wanted != dtypes.end() ? wanted->second : tensor.forms[0].dtypes[0];
    uint64_t num_bytes = dtype_bits(dtype) / 8;
    for (const uint64_t dim : tensor.forms[0].shape) num_bytes *= dim;
    json += (entries.empty() ? "" : ",") +
            writer::entry(tensor.name, file_dtype(dtype), writer::shape_text(tensor.forms[0].shape),
                          writer::shape_text({end, end + num_bytes}));
    entries.push_back({tensor.name, dtype, num_bytes});
    end += num_bytes;
  }
  json += "}";
  std::ofstream out(path, std::ios::binary);
  out << writer::make_file(json, "");
  Bits bits{88172645463325252u};
  for (const Entry& entry : entries)
    for (uint64_t at = 0; at < entry.num_bytes; at += 1 << 20) {
      std::string bytes(std::min<uint64_t>(entry.num_bytes - at, 1 << 20), '\0');
      fill_valid(entry.name, entry.dtype, bytes, bits);
      if (edit) edit(entry.name, bytes);
      out << bytes;
    }
  if (!out.flush()) throw std::runtime_error("cannot write the checkpoint");
}

/// Writes model.safetensors with every tensor of `config`.
inline void write_checkpoint(const writer::TempDir& dir, const ModelConfig& config,
                             const std::map<std::string, DType>& dtypes = {},
                             const Edit& edit = {}) {
  write_tensor_file(dir.path() / "model.safetensors", expected_tensors(config), dtypes, edit);
}

}  // namespace fixture
