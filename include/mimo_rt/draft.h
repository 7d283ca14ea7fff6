// The DFlash draft model: what its config.json says, and how a generation uses it.
//
// Source: "DFlash: Block Diffusion for Flash Speculative Decoding" (arXiv 2602.06036) and the `dflash/` folder of the
// published MiMo-V2.5-Pro-FP4-DFlash checkpoint.
#pragma once

#include <mimo_rt/api.h>
#include <mimo_rt/config.h>

#include <cstdint>
#include <filesystem>
#include <string_view>
#include <vector>

namespace mimo_rt {

/// A validated draft description. All layers have one geometry; embedding and lm_head are the target's, of the latter
/// perhaps a part of its rows (`draft_vocab_size`, as in EAGLE-3 drafts).
struct DraftConfig {
  uint32_t hidden_size = 0;          ///< the target's
  uint32_t num_layers = 0;
  uint32_t intermediate_size = 0;
  uint32_t num_q_heads = 0;
  uint32_t num_kv_heads = 0;         ///< divides num_q_heads
  uint32_t qk_head_dim = 0;          ///< multiple of 16
  uint32_t v_head_dim = 0;           ///< multiple of 16
  uint32_t rotary_dim = 0;           ///< leading elements of a q/k head that rotate; even, <= qk_head_dim; 0: none
  double rope_theta = 0.0;
  double rms_norm_eps = 0.0;
  double value_scale = 1.0;          ///< multiplies V of context and block
  bool has_sink = false;             ///< one `sink_logit` per query head in every layer
  bool has_qk_norm = false;          ///< RMSNorm over each q and k head before RoPE
  uint32_t block_size = 0;           ///< 2..16: the anchor and block_size - 1 masks
  int32_t mask_token_id = -1;
  /// Qwen3's dialect: a draft without a mask embedding takes the row of mask_token_id in the target's embedding. MiMo's
  /// drafts were trained with a vector of their own, which must be there.
  bool uses_target_mask = false;
  uint32_t num_target_layers = 0;    ///< as the config states it; 0: not stated
  uint32_t vocab_size = 0;           ///< as the config states it; 0: not stated
  uint32_t draft_vocab_size = 0;     ///< tokens that the draft can propose, listed by its tensor `d2t`; 0: all of the target's
  uint32_t max_position_embeddings = 0;  ///< nominal only
  std::vector<uint32_t> window_tokens;   ///< [num_layers] a query sees keys less than this far away; 0: all
  std::vector<uint32_t> target_layer_ids;  ///< distinct; the residual stream after these layers conditions the draft

  uint32_t q_per_kv() const { return num_q_heads / num_kv_heads; }

  /// Parses `dflash/config.json`, both the MiMo dialect (sinks, value scale, partial rotary) and Qwen3's.
  /// @throws Error{bad_format} naming the field; Error{unsupported_shape} for a valid value this library cannot compute.
  MIMO_RT_API static DraftConfig from_json(std::string_view json, std::string_view source_name);
  MIMO_RT_API static DraftConfig from_directory(const std::filesystem::path& draft_dir);
  /// Whether this draft can serve `target`: hidden size, layer ids, number of layers, vocabulary.
  /// @throws Error{shape_mismatch} saying which field, both values, and what to do.
  MIMO_RT_API void check_target(const ModelConfig& target) const;
};

/// How a generation drafts.
struct DraftOptions {
  enum class Mode : uint8_t {
    /// Plain decoding. With a draft model its context is still made, 64 tokens at a time, so that any later turn may draft
    /// without running its history again: 0.7 % of a step of the demo with a draft of three layers, 0.9 % with five.
    off,
    /// Verify `num_draft_tokens` drafts in every round, of lookups where something was found; in steps that sessions share,
    /// as many of them as there is room for and the others can pay for.
    fixed,
    /// 0..num_draft_tokens, whatever measured cost and acceptance promise the most tokens per second; of a model 0 while
    /// steps that several sessions share bring more.
    adaptive,
  } mode = Mode::adaptive;
  uint32_t num_draft_tokens = 0;  ///< 0: all of a block (block_size - 1)
  /// How a draft token is chosen when temperature > 0. Both are exact. Lookups propose tokens, not probabilities: always argmax.
  enum class Proposal : uint8_t {
    argmax,   ///< the draft's best token; the output equals plain decoding with the same seed, token for token
    sampled,  ///< a draw from the draft, accepted by the ratio test; distributed as plain decoding. The draws depend on
              ///< the widths of the rounds: a seed repeats the output in Mode::fixed only
  } proposal = Proposal::argmax;
};

inline constexpr uint32_t kMaxBlockSize = 16;
inline constexpr uint32_t kNgramBlockSize = 8;  ///< of EngineOptions.draft = "ngram"

}  // namespace mimo_rt
