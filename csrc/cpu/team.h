// How many workers should take part while other processes want cores, too.
//
// The workers of a plan wait for each other hundreds of times per step. One that shares its core with a busy process
// runs half of the time, and all others wait through its pauses: the step takes several times as long, not half as long
// again. Fewer workers, each with a core of its own, are then faster. Pure bookkeeping: times come from the caller.
//
// A team shrinks by the members that were kept waiting, and tries to be whole again after a while, less and less often
// while that is in vain. Where both sizes have been seen lately, the time of a step decides between them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace mimo_rt::cpu {

class Team {
 public:
  explicit Team(uint32_t num_workers);

  /// The workers that take part, ascending; never empty.
  std::span<const uint32_t> members() const { return members_; }
  uint32_t size() const { return static_cast<uint32_t>(members_.size()); }
  bool is_whole() const { return size() == num_workers_; }

  /// Steps that the members have just run.
  struct Run {
    const void* kind = nullptr;  ///< only times of steps of one kind and of about as many rows are compared
    uint32_t num_rows = 1;       ///< of a step
    uint32_t num_steps = 1;
    int64_t ns = 0;              ///< of all of them
    int64_t now_ns = 0;          ///< steady clock, at their end
  };
  /// True when enough has been seen: then `review` is due.
  bool observe(const Run& run);
  /// @param is_shared  [size()] whether the member was kept from its core since the last review
  void review(std::span<const uint8_t> is_shared);
  /// Everybody takes part; what was measured is forgotten.
  void reset();

  static constexpr int64_t kReviewNs = 40'000'000;
  static constexpr uint32_t kReviewSteps = 2;
  /// Times of a size count for so long, or for so many steps.
  static constexpr int64_t kRecentNs = 4'000'000'000;
  static constexpr int64_t kRecentSteps = 16;
  static constexpr int64_t kFirstPatienceNs = 250'000'000, kMaxPatienceNs = 16 * kFirstPatienceNs;
  static constexpr uint32_t kVainReviews = 2;  ///< a team that has grown and shrinks this soon has grown in vain

 private:
  struct Time {
    double step_ns = 0.0;
    int64_t at_ns = 0;
  };
  /// Steps of one kind: sessions may take turns with steps of several.
  struct Kind {
    const void* id = nullptr;
    int rows_class = 0;
    std::vector<Time> times;  ///< [size], of the last reviews at that size, each weighing half of the next
    int64_t ns = 0;           ///< since the last review of any kind
    uint32_t num_steps = 0;
  };
  bool is_recent(const Time& time) const;
  Kind& kind_of(const Run& run);
  void learn_time();
  bool shrink(std::span<const uint8_t> is_shared);
  void grow(uint32_t size);

  uint32_t num_workers_;
  std::vector<uint32_t> members_;
  std::vector<Kind> kinds_;
  size_t kind_idx_ = 0;      ///< of the last steps
  int64_t now_ns_ = 0;
  uint32_t left_size_ = 0;   ///< from which it shrank last
  int64_t shrunk_ns_ = 0;    ///< when last
  uint32_t num_reviews_ = kVainReviews;     ///< since it grew
  int64_t patience_ns_ = kFirstPatienceNs;  ///< how long it stays small
};

}  // namespace mimo_rt::cpu
