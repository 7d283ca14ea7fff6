// Where keys and values lie on the device: as in kv/kv_cache.h, with rows that are 8 elements longer
// than a head (attention_params.h says why). Rings have as many rows or more: KvCache says what they
// still hold. With a draft there are its layers, the rows of its block, and the features of the last
// positions. Behind all that a cache describes itself, so that a step finds the keys of any.
#pragma once

#include <mimo_rt/config.h>
#include <mimo_rt/draft.h>

#include <cstdint>
#include <vector>

#include "cuda/attention_params.h"
#include "cuda/step_params.h"

namespace mimo_rt::cuda {

class KvLayout {
 public:
  static constexpr uint32_t kPageTokens = 64;

  struct Options {
    uint32_t max_context = 0;      ///< tokens per sequence
    uint32_t max_step_tokens = 1;  ///< rows that one step may add to a sequence
    uint32_t num_seqs = 1;
  };
  /// `layers`: with the heads of the rank.
  /// @throws Error{invalid_argument} for options that are 0; Error{capacity} for too many pages
  KvLayout(const std::vector<LayerConfig>& layers, const Options& options,
           const DraftConfig* draft = nullptr);

  const Options& options() const { return options_; }
  uint64_t bytes() const { return bytes_; }
  uint32_t pages_per_seq() const;
  uint32_t num_pages() const { return pages_per_seq() * options_.num_seqs; }
  uint32_t num_target_layers() const { return num_target_layers_; }
  /// Layer `layer_idx` of a sequence, the draft's behind the target's, in a cache at `device`.
  KvView view(uint32_t layer_idx, uint32_t seq_idx, const uint8_t* device) const;
  KvSequence sequence(uint32_t seq_idx, uint8_t* device) const;
  /// Of what describes the cache: from here to its end.
  uint64_t tables_begin() const { return views_begin_; }
  /// All views, and the pages that they look up: page p of sequence s is s * pages_per_seq + p.
  std::vector<uint8_t> tables(const uint8_t* device) const;
  /// Keys and values of a draft's block.
  KvView block_view(const uint8_t* device) const;

 private:
  struct Layer {
    uint64_t begin;  ///< bytes from the start of the cache
    KvView view;     ///< without addresses
    bool is_ring;
  };
  void add_layer(const LayerConfig& layer, uint32_t step_rows);
  void add_draft(const DraftConfig& draft);
  void add_tables();
  static void set_heads(KvView& view, const LayerConfig& layer);

  Options options_;
  uint32_t num_target_layers_;
  std::vector<Layer> layers_;  ///< the target's, then the draft's
  uint64_t block_begin_ = 0, features_begin_ = 0;
  KvView block_;               ///< without addresses
  FeatureRing features_;       ///< without an address
  uint64_t views_begin_ = 0;   ///< KvView [num_seqs, layers], see view()
  uint64_t pages_begin_ = 0;   ///< uint32 [num_seqs, pages_per_seq]
  uint64_t bytes_ = 0;
};

}  // namespace mimo_rt::cuda
