// Small models with random weights, and a driver that feeds token sequences to an executor.
#pragma once

#include "engine/step.h"
#include "plan/buffers.h"
#include "plan/task.h"
#include "test_configs.h"

#include <mimo_rt/device.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace fixture {

using namespace mimo_rt;

/// Of this build on this machine.
inline std::vector<std::string> runnable_cpu_backends() {
  std::vector<std::string> names;
  for (const Backend& backend : list_backends())
    if (backend.available && backend.name.starts_with("cpu-")) names.push_back(backend.name);
  return names;
}

inline std::vector<int32_t> random_tokens(const ModelConfig& config, uint32_t count, uint32_t seed) {
  std::vector<int32_t> tokens(count);
  uint64_t state = seed * 2654435761u + 1;
  for (int32_t& token : tokens) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    token = static_cast<int32_t>((state >> 33) % config.vocab_size);
  }
  return tokens;
}

/// Dense, then MoE; window layers with sinks between two full ones without.
inline void set_four_layers(ModelConfig& config, const test_configs::Heads& heads) {
  config.num_layers = 4;
  config.layers.clear();
  config.ignored_layers.clear();
  for (uint32_t l = 0; l < config.num_layers; ++l) {
    const bool is_full = l == 0 || l == 3;
    config.layers.push_back(
        test_configs::make_layer(heads, l != 0, is_full ? 0 : 24, !is_full));
  }
  test_configs::set_o_proj_unquantised(config);
}

/// The bench slice's features at test size: every format, both attention kinds, sparse top-k, ragged tiles.
inline ModelConfig small_quantised() {
  ModelConfig config = test_configs::mimo_v2_5_pro_fp4();
  config.hidden_size = 160;
  config.vocab_size = 203;
  config.intermediate_size = 176;
  config.expert_intermediate_size = 96;
  config.num_experts = 10;
  config.experts_per_token = 3;
  config.max_position_embeddings = 4096;
  config.qkv_chunks = 2;
  config.routed_scaling_factor = 1.5;
  set_four_layers(config, {4, 2, 24, 16, 8});
  return config;
}

inline PlanOptions plan_options(uint32_t num_workers, uint32_t max_tokens, uint32_t max_logit_rows,
                                PlanOptions::FuseNorm fuse_norm = PlanOptions::FuseNorm::automatic) {
  PlanOptions options;
  options.num_workers = num_workers;
  options.max_tokens = max_tokens;
  options.max_logit_rows = max_logit_rows;
  options.fuse_norm = fuse_norm;
  return options;
}

/// Of a plan as the CUDA engine makes it.
inline PlanOptions device_plan_options(uint32_t num_workers, uint32_t max_tokens, uint32_t max_logit_rows) {
  PlanOptions options = plan_options(num_workers, max_tokens, max_logit_rows, PlanOptions::FuseNorm::no);
  options.attention_split_keys = 64;  // the least, so that short sequences have several
  options.tag_edges = true;
  options.sample_by_all = true;
  return options;
}

/// The arrays of a step over rows [begin, end) of one sequence, all of whose logits are wanted.
struct StepRows {
  std::vector<uint32_t> seq_idx, positions, logit_rows;
  StepInput input;

  StepRows(const std::vector<int32_t>& tokens, uint32_t seq, uint32_t begin, uint32_t end) {
    for (uint32_t pos = begin; pos < end; ++pos) {
      seq_idx.push_back(seq);
      positions.push_back(pos);
      logit_rows.push_back(pos - begin);
    }
    input.num_tokens = input.num_logit_rows = end - begin;
    input.token_ids = tokens.data() + begin;
    input.seq_idx = seq_idx.data();
    input.positions = positions.data();
    input.logit_rows = logit_rows.data();
  }
};

/// Logits [tokens, vocab] of a sequence that is fed in chunks of at most `chunk` tokens.
inline std::vector<float> feed(Executor& executor, const Plan& plan, KvCache& cache,
                               const std::vector<int32_t>& tokens, uint32_t chunk, uint32_t vocab,
                               uint32_t seq = 0) {
  std::vector<float> logits;
  cache.reserve(seq, static_cast<uint32_t>(tokens.size()));
  for (uint32_t begin = 0; begin < tokens.size(); begin += chunk) {
    const StepRows rows(tokens, seq, begin,
                        std::min(begin + chunk, static_cast<uint32_t>(tokens.size())));
    StepOutput output;
    executor.run(plan, cache, rows.input, output);
    for (uint32_t r = 0; r < rows.input.num_tokens; ++r) {
      const float* row = output.logits + uint64_t{r} * output.logits_stride;
      logits.insert(logits.end(), row, row + vocab);
    }
  }
  return logits;
}

inline bool bit_equal(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size() * sizeof(float));
}

/// |a - b| / |b|
inline double relative_distance(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0.0, norm = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace fixture
