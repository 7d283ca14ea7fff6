// Draft directories with random but valid tensors, for tests of loading.
#pragma once

#include "checkpoint/draft_tensors.h"
#include "checkpoint_fixture.h"

#include <string>
#include <vector>

namespace fixture {

/// Two layers in MiMo's dialect; hidden size and MLP width are not multiples of 16.
inline DraftConfig small_draft() {
  DraftConfig config;
  config.hidden_size = 72;
  config.num_layers = 2;
  config.intermediate_size = 100;
  config.num_q_heads = 4;
  config.num_kv_heads = 2;
  config.qk_head_dim = 32;
  config.v_head_dim = 16;
  config.rotary_dim = 16;
  config.rope_theta = 10000;
  config.rms_norm_eps = 1e-5;
  config.value_scale = 0.612;
  config.has_sink = config.has_qk_norm = true;
  config.block_size = 8;
  config.mask_token_id = 7;
  config.window_tokens = {64, 64};
  config.target_layer_ids = {0, 2, 3};
  return config;
}

inline writer::Tensor mask_tensor(const std::string& name, uint32_t hidden_size) {
  std::string bytes;
  for (uint32_t i = 0; i < hidden_size; ++i) bytes += {static_cast<char>(i), '\x3f'};
  return {name, "BF16", {hidden_size}, bytes};
}

struct DraftFiles {
  std::string prefix;                        ///< of all tensor names
  bool has_index = true;                     ///< two shards; else one file
  std::map<std::string, DType> dtypes = {};  ///< of tensors, by their whole name
  Edit edit = {};                            ///< may change the bytes of small tensors
  std::string mask = {};                     ///< bytes of the mask's embedding; empty: any
};

inline std::vector<ExpectedTensor> draft_tensors(const DraftConfig& config, const std::string& prefix) {
  std::vector<ExpectedTensor> tensors = expected_draft_tensors(config);
  for (ExpectedTensor& tensor : tensors) tensor.name = prefix + tensor.name;
  return tensors;
}

inline void write_draft(const writer::TempDir& dir, const DraftConfig& config, const DraftFiles& files = {}) {
  const std::vector<ExpectedTensor> tensors = draft_tensors(config, files.prefix);
  writer::Tensor mask = mask_tensor("embedding", config.hidden_size);
  if (!files.mask.empty()) mask.data = files.mask;
  dir.write("mask_embedding.safetensors", writer::make_file({mask}));
  if (!files.has_index) {
    write_tensor_file(dir.path() / "anything.safetensors", tensors, files.dtypes, files.edit);
    return;
  }
  const auto middle = tensors.begin() + static_cast<std::ptrdiff_t>(tensors.size() / 2);
  const std::string names[] = {"dflash_draft_model-00001-of-00002.safetensors",
                               "dflash_draft_model-00002-of-00002.safetensors"};
  write_tensor_file(dir.path() / names[0], {tensors.begin(), middle}, files.dtypes, files.edit);
  write_tensor_file(dir.path() / names[1], {middle, tensors.end()}, files.dtypes, files.edit);
  std::string map;
  for (auto tensor = tensors.begin(); tensor != tensors.end(); ++tensor)
    map += (map.empty() ? "\"" : ",\"") + tensor->name + "\":\"" + names[tensor >= middle] + "\"";
  dir.write("model.safetensors.index.json", "{\"weight_map\":{" + map + "}}");
}

}  // namespace fixture
