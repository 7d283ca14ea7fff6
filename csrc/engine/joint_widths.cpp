#include "engine/joint_widths.h"

#include <algorithm>
#include <numeric>

namespace mimo_rt {
namespace {

constexpr double kDecay = 0.98;       // per step: half of the weight in the last 34
constexpr double kBelievable = 2.0;   // times what was expected, or half of it
constexpr double kFirstSlope = 0.2;   // of a row, relative to a step of none, before any is known
constexpr double kPriorSquare = 1.0;  // rows^2: how many deviations weigh as much as that

/// Drafts chosen so far.
struct Choice {
  Choice(std::span<const DraftOffer* const> offers_, const StepTimes& times_)
      : offers(offers_), times(times_), widths(offers.size()), num_tokens(offers.size(), 0.0),
        num_rows(static_cast<uint32_t>(offers.size())), plain_ns(times.at(num_rows)) {}

  void add_draft(size_t i) {
    num_tokens[i] += offers[i]->confirmed[widths[i]++];
    ++num_rows;
  }
  void take_draft(size_t i) {
    num_tokens[i] -= offers[i]->confirmed[--widths[i]];
    --num_rows;
  }
  double rate() const { return std::accumulate(num_tokens.begin(), num_tokens.end(), double(offers.size())) / times.at(num_rows); }
  /// Whether what a session may expect of its own drafts, and its credit, make up for the longer step.
  bool is_affordable() const {
    const double longer = times.at(num_rows) / plain_ns - 1.0;
    for (size_t i = 0; i < offers.size(); ++i)
      if (longer > offers[i]->credit + num_tokens[i]) return false;
    return true;
  }
  /// The session whose next draft is most likely confirmed; offers.size(): none has any.
  size_t most_likely() const {
    size_t best = offers.size();
    double most = 0.0;
    for (size_t i = 0; i < offers.size(); ++i) {
      if (widths[i] >= offers[i]->num_drafts || offers[i]->confirmed[widths[i]] <= most) continue;
      most = offers[i]->confirmed[widths[i]];
      best = i;
    }
    return best;
  }

  std::span<const DraftOffer* const> offers;
  const StepTimes& times;
  std::vector<uint32_t> widths;
  std::vector<double> num_tokens;  ///< of each session, expected from its drafts
  uint32_t num_rows;
  double plain_ns;
};

/// The drafts that sessions insist on, one of each after the other: what there is no room for is missing from all alike.
void add_least(Choice& choice, uint32_t max_rows) {
  for (bool has_added = true; has_added;) {
    has_added = false;
    for (size_t i = 0; i < choice.offers.size() && choice.num_rows < max_rows; ++i) {
      if (choice.widths[i] >= choice.offers[i]->least) continue;
      choice.add_draft(i);
      if (choice.is_affordable()) has_added = true;
      else choice.take_draft(i);
    }
  }
}

}  // namespace

/// A longer step than is believable was interrupted, or it will repeat. A far shorter one says that those before it were
/// interrupted: the first of all may have been, and rows would look dear for as long as no step has many.
void StepTimes::add(uint32_t num_rows, double ns) {
  if (kBelievable * ns < at(num_rows)) *this = {};
  if (weight_ > 0.0) ns = std::min(ns, kBelievable * at(num_rows));
  const double old = kDecay * weight_;
  weight_ = old + 1.0;
  const double row_gap = num_rows - rows_, ns_gap = ns - ns_, share = old / weight_;
  rows_ += row_gap / weight_;
  ns_ += ns_gap / weight_;
  square_ = kDecay * square_ + share * row_gap * row_gap;
  product_ = kDecay * product_ + share * row_gap * ns_gap;
}

double StepTimes::at(uint32_t num_rows) const {
  if (weight_ == 0.0) return 1.0 + kFirstSlope * (num_rows - 1.0);
  return ns_ + row_ns() * (num_rows - rows_);
}

/// Between nothing and an equal share of the step.
double StepTimes::row_ns() const {
  const double guess = kFirstSlope * ns_ / (1.0 + kFirstSlope * rows_);
  const double slope = (product_ + kPriorSquare * guess) / (square_ + kPriorSquare);
  return std::clamp(slope, 0.0, ns_ / rows_);
}

std::vector<uint32_t> choose_joint_widths(std::span<const DraftOffer* const> offers, uint32_t max_rows, const StepTimes& times) {
  Choice choice(offers, times);
  add_least(choice, max_rows);
  std::vector<uint32_t> best = choice.widths;
  double best_rate = choice.rate();
  while (choice.num_rows < max_rows) {
    const size_t next = choice.most_likely();
    if (next == offers.size()) break;
    choice.add_draft(next);
    const double rate = choice.rate();
    if (rate <= best_rate || !choice.is_affordable()) continue;
    best = choice.widths;
    best_rate = rate;
  }
  return best;
}

}  // namespace mimo_rt
