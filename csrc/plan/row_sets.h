// Sets of rows as small numbers: every distinct set is stored once, results of operations are remembered.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

namespace mimo_rt {

using RowSet = uint32_t;

/// Subsets of rows 0 .. num_rows - 1.
class RowSets {
 public:
  static constexpr RowSet kNone = 0, kAll = 1;

  explicit RowSets(uint32_t num_rows);
  RowSet progression(uint32_t first, uint32_t stride);  ///< first, first + stride, … below num_rows
  RowSet minus(RowSet a, RowSet b);
  bool meets(RowSet a, RowSet b);

 private:
  using Bits = std::vector<uint64_t>;
  RowSet intern(const Bits& bits);

  uint32_t num_rows_;
  std::vector<Bits> sets_;
  std::map<Bits, RowSet> ids_;
  std::unordered_map<uint64_t, RowSet> progressions_, differences_;
};

}  // namespace mimo_rt
