// Where the reference executor keeps activations, keys and values.
//
// Rounded: the plan's own bytes (BF16 and FP32) and the caller's KvCache: what is stored is rounded
// to the nearest, once. Exact: float64 everywhere, nothing is rounded, keys and values lie in a
// store of their own.
#pragma once

#include "kv/kv_cache.h"

#include <mimo_rt/config.h>
#include <mimo_rt/plan.h>

#include <cstdint>
#include <map>
#include <vector>

namespace mimo_rt::ref {

/// The buffers of one plan, read and written as float64.
class Buffers {
 public:
  Buffers(const Plan& plan, bool exact);

  void read(uint16_t buffer_id, uint64_t row, uint32_t col, uint32_t num_cols, double* out) const;
  void write(uint16_t buffer_id, uint64_t row, uint32_t col, double value);
  /// Rounded: bytes as the plan lays them out. Exact: the float64 elements (`route`: bytes as
  /// well).
  uint8_t* data(uint16_t buffer_id);
  const uint8_t* data(uint16_t buffer_id) const;

 private:
  bool holds_float64(uint16_t buffer_id) const;

  bool exact_;
  std::vector<BufferInfo> infos_;
  std::vector<std::vector<uint64_t>> bytes_;  // words: 8-byte alignment serves every element type
};

/// Keys and values. A float64 store per cache that steps were run with; grows as positions are
/// written.
class KeyValues {
 public:
  enum class Part : uint8_t { k, v };

  /// @param draft  of the model, or nullptr; its layers follow the target's
  KeyValues(const ModelConfig& config, bool exact, const DraftConfig* draft = nullptr)
      : config_(config), draft_(draft), exact_(exact) {}

  /// Later calls mean this cache.
  void select(KvCache& cache) { cache_ = &cache; }
  void write(Part part, uint32_t layer, uint32_t seq, uint32_t head, uint32_t pos, uint32_t dim,
             double value);
  void read(Part part, uint32_t layer, uint32_t seq, uint32_t head, uint32_t pos, double* out);
  /// Captured features of one position; `col` counts over all captured layers.
  void write_feature(uint32_t seq, uint32_t pos, uint32_t col, double value);
  void read_features(uint32_t seq, uint32_t pos, double* out);

 private:
  struct Head {
    std::vector<double> k, v;  // [pos][dim]
  };
  uint32_t num_dims(Part part, uint32_t layer) const;
  uint64_t num_features() const;
  std::vector<double>& stored(Part part, uint32_t layer, uint32_t seq, uint32_t head);

  const ModelConfig& config_;
  const DraftConfig* const draft_;
  bool exact_;
  KvCache* cache_ = nullptr;
  std::map<const KvCache*, std::map<uint32_t, std::vector<double>>> exact_features_;  // [seq][pos][col]
  std::map<const KvCache*, std::map<uint64_t, Head>> exact_heads_;  // key: see `stored`
};

}  // namespace mimo_rt::ref
