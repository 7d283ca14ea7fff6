#include "cpu/team.h"

#include <algorithm>
#include <numeric>

namespace mimo_rt::cpu {

Team::Team(uint32_t num_workers) : num_workers_(num_workers), members_(num_workers), times_(num_workers + 1) {
  std::iota(members_.begin(), members_.end(), 0u);
}

void Team::reset() {
  grow(num_workers_);
  std::fill(times_.begin(), times_.end(), Time{});
}

void Team::begin_review() {
  ns_ = 0;
  num_steps_ = 0;
}

bool Team::observe(const Run& run) {
  if (run.kind != kind_) {
    kind_ = run.kind;
    std::fill(times_.begin(), times_.end(), Time{});
    begin_review();
  }
  now_ns_ = run.now_ns;
  ns_ += run.ns;
  num_steps_ += run.num_steps;
  return ns_ >= kReviewNs && num_steps_ >= kReviewSteps;
}

/// What a step costs at this size.
double Team::learn_time() {
  Time& time = times_[size()];
  const double step_ns = static_cast<double>(ns_) / num_steps_;
  time = {is_recent(time) ? (time.step_ns + step_ns) / 2 : step_ns, now_ns_};
  return time.step_ns;
}

void Team::review(std::span<const uint8_t> is_shared, double idle_cores) {
  const double step_ns = learn_time();
  begin_review();
  ++num_reviews_;
  if (shrink(is_shared, step_ns) || is_whole()) return;
  const Time& before = times_[left_size_];
  if (is_recent(before) && before.step_ns < step_ns) {
    grow(left_size_);
  } else if (idle_cores >= kIdleCores) {
    grow(std::min(num_workers_, size() + static_cast<uint32_t>(idle_cores + 1.0 - kIdleCores)));
  } else if (now_ns_ - shrunk_ns_ >= patience_ns_) {
    grow(num_workers_);
  }
}

/// Without those who share their cores; without half of the team when all do.
bool Team::shrink(std::span<const uint8_t> is_shared, double step_ns) {
  const auto num_shared = static_cast<uint32_t>(std::count(is_shared.begin(), is_shared.end(), 1));
  if (!num_shared || size() == 1) return false;
  const uint32_t target = num_shared < size() ? size() - num_shared : size() / 2;
  if (is_recent(times_[target]) && times_[target].step_ns >= step_ns) return false;
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
