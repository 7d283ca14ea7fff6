// Where the reference executor keeps activations, keys and values.
//
// Rounded: the plan's own bytes (BF16 and FP32) and the caller's KvCache: what is stored is rounded
// to the nearest, once. Exact: float64 everywhere, nothing is rounded, keys and values lie in the
// cache's KvStore.
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

/// What exact steps keep of a cache: float64, grows as positions are written.
struct ExactRows final : KvStore {
  struct Head {
    std::vector<double> k, v;  // [pos][dim]
  };
  explicit ExactRows(uint64_t most) : most_bytes(most) {}
  uint64_t bytes() const override { return most_bytes; }

  const uint64_t most_bytes;  ///< when all positions are written
  std::map<uint64_t, Head> heads;  ///< key: see KeyValues::stored
  std::map<uint32_t, std::vector<double>> features;  ///< [seq][pos][col]
};

/// Keys and values.
class KeyValues {
 public:
  enum class Part : uint8_t { k, v };

  /// @param draft  of the model, or nullptr; its layers follow the target's
  KeyValues(const ModelConfig& config, bool exact, const DraftConfig* draft = nullptr)
      : config_(config), draft_(draft), exact_(exact) {}

  /// Exact: makes the cache's store if it has none, while steps may run with others.
  void prepare(KvCache& cache) const;
  /// Later calls mean this cache.
  void select(KvCache& cache);
  void write(Part part, uint32_t layer, uint32_t seq, uint32_t head, uint32_t pos, uint32_t dim,
             double value);
  void read(Part part, uint32_t layer, uint32_t seq, uint32_t head, uint32_t pos, double* out);
  /// Captured features of one position; `col` counts over all captured layers.
  void write_feature(uint32_t seq, uint32_t pos, uint32_t col, double value);
  void read_features(uint32_t seq, uint32_t pos, double* out);

 private:
  uint32_t num_dims(Part part, uint32_t layer) const;
  uint64_t num_features() const;
  uint64_t num_values(const KvCache& cache) const;  ///< of one position: keys, values and features
  std::vector<double>& stored(Part part, uint32_t layer, uint32_t seq, uint32_t head);

  const ModelConfig& config_;
  const DraftConfig* const draft_;
  bool exact_;
  KvCache* cache_ = nullptr;
  ExactRows* rows_ = nullptr;  ///< exact: the cache's
};

}  // namespace mimo_rt::ref
