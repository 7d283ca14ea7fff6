// Where keys and values lie on the device: as in kv/kv_cache.h, with rows that are 8 elements longer
// than a head (attention_params.h says why). Rings have as many rows: KvCache says what they still hold.
#pragma once

#include <mimo_rt/config.h>

#include <cstdint>
#include <vector>

#include "cuda/attention_params.h"

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
  KvLayout(const std::vector<LayerConfig>& layers, const Options& options);

  const Options& options() const { return options_; }
  uint64_t bytes() const { return bytes_; }
  uint32_t pages_per_seq() const;
  uint32_t num_pages() const { return pages_per_seq() * options_.num_seqs; }
  /// Layer `layer_idx` of a cache at `device`; full layers look up `pages`, those of sequence 0.
  KvView view(uint32_t layer_idx, const uint8_t* device, const uint32_t* pages) const;

 private:
  struct Layer {
    uint64_t begin;  ///< bytes from the start of the cache
    KvView view;     ///< without addresses
    bool is_ring;
  };
  void add_layer(const LayerConfig& layer);

  Options options_;
  std::vector<Layer> layers_;
  uint64_t bytes_ = 0;
};

}  // namespace mimo_rt::cuda
