#include "plan/row_sets.h"

namespace mimo_rt {
namespace {

uint64_t pair_key(uint32_t a, uint32_t b) { return uint64_t{a} << 32 | b; }

}  // namespace

RowSets::RowSets(uint32_t num_rows) : num_rows_(num_rows) {
  const Bits none((num_rows + 63) / 64, 0);
  Bits all = none;
  for (uint32_t row = 0; row < num_rows; ++row) all[row / 64] |= uint64_t{1} << row % 64;
  intern(none);
  intern(all);
}

RowSet RowSets::intern(const Bits& bits) {
  const auto [found, is_new] = ids_.try_emplace(bits, static_cast<RowSet>(sets_.size()));
  if (is_new) sets_.push_back(bits);
  return found->second;
}

RowSet RowSets::progression(uint32_t first, uint32_t stride) {
  if (first == 0 && stride == 1) return num_rows_ ? kAll : kNone;
  const auto [found, is_new] = progressions_.try_emplace(pair_key(first, stride), kNone);
  if (!is_new) return found->second;
  Bits bits(sets_[kNone]);
  for (uint64_t row = first; row < num_rows_; row += stride) bits[row / 64] |= uint64_t{1} << row % 64;
  return found->second = intern(bits);
}

RowSet RowSets::minus(RowSet a, RowSet b) {
  if (a == b || b == kAll || a == kNone) return kNone;
  if (b == kNone) return a;
  const auto [found, is_new] = differences_.try_emplace(pair_key(a, b), kNone);
  if (!is_new) return found->second;
  Bits bits(sets_[a]);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] &= ~sets_[b][i];
  return found->second = intern(bits);
}

bool RowSets::meets(RowSet a, RowSet b) {
  if (a == kNone || b == kNone) return false;
  if (a == b || a == kAll || b == kAll) return true;
  return minus(a, b) != a;
}

}  // namespace mimo_rt
