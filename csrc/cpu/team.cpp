#include "cpu/team.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

namespace mimo_rt::cpu {

Team::Team(uint32_t num_workers) : num_workers_(num_workers), members_(num_workers) {
  std::iota(members_.begin(), members_.end(), 0u);
}

void Team::reset() {
  grow(num_workers_);
  kinds_.clear();
}

bool Team::is_recent(const Time& time) const {
  const auto some_steps_ns = static_cast<int64_t>(time.step_ns * kRecentSteps);
  return time.step_ns > 0.0 && now_ns_ - time.at_ns < std::max(kRecentNs, some_steps_ns);
}

Team::Kind& Team::kind_of(const Run& run) {
  const int rows_class = std::bit_width(run.num_rows);
  const auto found = std::find_if(kinds_.begin(), kinds_.end(), [&](const Kind& kind) {
    return kind.id == run.kind && kind.rows_class == rows_class;
  });
  kind_idx_ = static_cast<size_t>(found - kinds_.begin());
  if (found == kinds_.end()) kinds_.push_back({run.kind, rows_class, std::vector<Time>(num_workers_ + 1)});
  return kinds_[kind_idx_];
}

bool Team::observe(const Run& run) {
  Kind& kind = kind_of(run);
  now_ns_ = run.now_ns;
  kind.ns += run.ns;
  kind.num_steps += run.num_steps;
  return kind.ns >= kReviewNs && kind.num_steps >= kReviewSteps;
}

/// What a step costs at this size. The next review has all of its time ahead.
void Team::learn_time() {
  Kind& kind = kinds_[kind_idx_];
  Time& time = kind.times[size()];
  const double step_ns = static_cast<double>(kind.ns) / kind.num_steps;
  time = {is_recent(time) ? (time.step_ns + step_ns) / 2 : step_ns, now_ns_};
  for (Kind& any : kinds_) any.ns = any.num_steps = 0;
}

void Team::review(std::span<const uint8_t> is_shared) {
  learn_time();
  ++num_reviews_;
  if (shrink(is_shared) || is_whole()) return;
  const std::vector<Time>& times = kinds_[kind_idx_].times;
  const Time& before = times[left_size_];
  const bool was_better = is_recent(before) && before.step_ns < times[size()].step_ns;
  if (was_better && left_size_ > size()) grow(left_size_);
  else if (now_ns_ - shrunk_ns_ >= patience_ns_) grow(num_workers_);
}

/// Without those who share their cores; without half of the team when all do.
bool Team::shrink(std::span<const uint8_t> is_shared) {
  const auto num_shared = static_cast<uint32_t>(std::count(is_shared.begin(), is_shared.end(), 1));
  if (!num_shared || size() == 1) return false;
  const uint32_t target = num_shared < size() ? size() - num_shared : size() / 2;
  const std::vector<Time>& times = kinds_[kind_idx_].times;
  if (is_recent(times[target]) && times[target].step_ns >= times[size()].step_ns) return false;
  std::vector<uint32_t> stay;
  for (uint32_t i = 0; i < size() && stay.size() < target; ++i)
    if (num_shared == size() || !is_shared[i]) stay.push_back(members_[i]);
  patience_ns_ = num_reviews_ <= kVainReviews ? std::min(2 * patience_ns_, kMaxPatienceNs) : kFirstPatienceNs;
  left_size_ = size();
  shrunk_ns_ = now_ns_;
  members_ = std::move(stay);
  return true;
}

/// Lower numbers come back first.
void Team::grow(uint32_t size) {
  for (uint32_t worker = 0; worker < num_workers_ && members_.size() < size; ++worker)
    if (std::find(members_.begin(), members_.end(), worker) == members_.end()) members_.push_back(worker);
  std::sort(members_.begin(), members_.end());
  num_reviews_ = 0;
}

}  // namespace mimo_rt::cpu
