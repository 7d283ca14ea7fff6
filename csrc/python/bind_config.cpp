#include "bind.h"

#include <mimo_rt/config.h>
#include <mimo_rt/draft.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

namespace mimo_rt::python {

void bind_config(py::module_& m) {
  py::enum_<QkvLayout>(m, "QkvLayout").value("split", QkvLayout::split).value("fused", QkvLayout::fused);
  py::enum_<WeightFormat>(m, "WeightFormat")
      .value("plain", WeightFormat::plain)
      .value("fp8_block", WeightFormat::fp8_block)
      .value("mxfp4", WeightFormat::mxfp4);
  py::class_<LayerConfig>(m, "LayerConfig", "How one decoder layer is built.")
      .def_readonly("is_moe", &LayerConfig::is_moe)
      .def_readonly("has_sink", &LayerConfig::has_sink)
      .def_readonly("window_tokens", &LayerConfig::window_tokens)
      .def_readonly("num_q_heads", &LayerConfig::num_q_heads)
      .def_readonly("num_kv_heads", &LayerConfig::num_kv_heads)
      .def_readonly("qk_head_dim", &LayerConfig::qk_head_dim)
      .def_readonly("v_head_dim", &LayerConfig::v_head_dim)
      .def_readonly("rotary_dim", &LayerConfig::rotary_dim)
      .def_readonly("rope_theta", &LayerConfig::rope_theta);
  py::class_<ModelConfig>(m, "ModelConfig", "A validated model description, read from config.json.")
      .def_static("from_json", &ModelConfig::from_json, py::arg("json"), py::arg("source_name") = "config.json",
                  py::arg("window_tokens") = 0)
      .def_static("from_directory", &ModelConfig::from_directory, py::arg("directory"), py::arg("window_tokens") = 0)
      .def_readonly("model_type", &ModelConfig::model_type)
      .def_readonly("hidden_size", &ModelConfig::hidden_size)
      .def_readonly("num_layers", &ModelConfig::num_layers)
      .def_readonly("vocab_size", &ModelConfig::vocab_size)
      .def_readonly("intermediate_size", &ModelConfig::intermediate_size)
      .def_readonly("expert_intermediate_size", &ModelConfig::expert_intermediate_size)
      .def_readonly("num_experts", &ModelConfig::num_experts)
      .def_readonly("experts_per_token", &ModelConfig::experts_per_token)
      .def_readonly("max_position_embeddings", &ModelConfig::max_position_embeddings)
      .def_readonly("rms_norm_eps", &ModelConfig::rms_norm_eps)
      .def_readonly("value_scale", &ModelConfig::value_scale)
      .def_readonly("routed_scaling_factor", &ModelConfig::routed_scaling_factor)
      .def_readonly("norm_topk_prob", &ModelConfig::norm_topk_prob)
      .def_readonly("tie_word_embeddings", &ModelConfig::tie_word_embeddings)
      .def_readonly("qkv_layout", &ModelConfig::qkv_layout)
      .def_readonly("qkv_chunks", &ModelConfig::qkv_chunks)
      .def_readonly("expert_format", &ModelConfig::expert_format)
      .def_readonly("linear_format", &ModelConfig::linear_format)
      .def_property_readonly("ignored_layers",
                             [](const ModelConfig& config) {
                               const auto& names = config.ignored_layers;
                               return std::vector<std::string>(names.begin(), names.end());
                             })
      .def_readonly("layers", &ModelConfig::layers)
      .def_readonly("eos_token_ids", &ModelConfig::eos_token_ids);
  m.attr("NGRAM_BLOCK_SIZE") = kNgramBlockSize;
  py::class_<DraftConfig>(m, "DraftConfig", "A validated description of a DFlash draft; fields as in mimo_rt/draft.h.")
      .def_static("from_json", &DraftConfig::from_json, py::arg("json"), py::arg("source_name") = "dflash/config.json")
      .def_static("from_directory", &DraftConfig::from_directory, py::arg("directory"))
      .def("check_target", &DraftConfig::check_target, py::arg("target"))
      .def_readonly("hidden_size", &DraftConfig::hidden_size)
      .def_readonly("num_layers", &DraftConfig::num_layers)
      .def_readonly("intermediate_size", &DraftConfig::intermediate_size)
      .def_readonly("num_q_heads", &DraftConfig::num_q_heads)
      .def_readonly("num_kv_heads", &DraftConfig::num_kv_heads)
      .def_readonly("qk_head_dim", &DraftConfig::qk_head_dim)
      .def_readonly("v_head_dim", &DraftConfig::v_head_dim)
      .def_readonly("rotary_dim", &DraftConfig::rotary_dim)
      .def_readonly("rope_theta", &DraftConfig::rope_theta)
      .def_readonly("rms_norm_eps", &DraftConfig::rms_norm_eps)
      .def_readonly("value_scale", &DraftConfig::value_scale)
      .def_readonly("has_sink", &DraftConfig::has_sink)
      .def_readonly("has_qk_norm", &DraftConfig::has_qk_norm)
      .def_readonly("block_size", &DraftConfig::block_size)
      .def_readonly("mask_token_id", &DraftConfig::mask_token_id)
      .def_readonly("uses_target_mask", &DraftConfig::uses_target_mask)
      .def_readonly("num_target_layers", &DraftConfig::num_target_layers)
      .def_readonly("vocab_size", &DraftConfig::vocab_size)
      .def_readonly("draft_vocab_size", &DraftConfig::draft_vocab_size)
      .def_readonly("max_position_embeddings", &DraftConfig::max_position_embeddings)
      .def_readonly("window_tokens", &DraftConfig::window_tokens)
      .def_readonly("target_layer_ids", &DraftConfig::target_layer_ids);
}

}  // namespace mimo_rt::python
