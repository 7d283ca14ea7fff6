// Which accesses of a run are ordered on a GPU, in whatever order the run makes them.
//
// A counter releases all that came before its signal: its signallers' tasks and what they have seen. A word of a tag edge
// releases nothing but itself, so what its producer has done or seen may still be on its way when a reader goes on. No
// order of whole tasks shows that. Here every granule of memory remembers who wrote it and who has read it since, and
// whoever touches it must have seen them, by a clock that counters pass on and tags do not.
#pragma once

#include <mimo_rt/plan.h>

#include "plan/task.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace plan_oracle {

using namespace mimo_rt;

struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline bool is_tag(const Plan& plan, uint32_t counter) {
  return counter < plan.counters().size() && plan.counters()[counter].kind == CounterInfo::Kind::tag;
}

class SeenOrder {
 public:
  explicit SeenOrder(const Plan& plan)
      : plan_(plan), clocks_(plan.num_workers(), Clock(plan.num_workers(), 0)),
        released_(plan.counters().size(), Clock(plan.num_workers(), 0)) {}

  void begin(uint32_t worker, const Task& task) {
    worker_ = worker;
    for (uint32_t i = 0; i < std::min<uint32_t>(task.num_waits, 2); ++i)
      if (!is_tag(plan_, task.waits[i].counter)) join(clocks_[worker], released_[task.waits[i].counter]);
    ++clocks_[worker][worker];
  }
  void end(const Task& task) {
    if (task.signal_counter < released_.size()) join(released_[task.signal_counter], clocks_[worker_]);
  }

  void read(const uint64_t* granule) {
    Mark& mark = marks_[granule];
    require(mark.writer, mark.written, "reads what may not have arrived");
    mark.read.resize(clocks_.size());
    mark.read[worker_] = clocks_[worker_][worker_];
  }
  void write(const uint64_t* granule) {
    Mark& mark = marks_[granule];
    require(mark.writer, mark.written, "overwrites what may still be on its way");
    for (uint32_t w = 0; w < mark.read.size(); ++w) require(w, mark.read[w], "overwrites what may not have been read");
    mark = {worker_, clocks_[worker_][worker_], {}};
  }

 private:
  using Clock = std::vector<uint32_t>;  // [num_workers] tasks of each, over all epochs
  struct Mark {
    uint32_t writer = 0, written = 0;
    Clock read;
  };
  static void join(Clock& into, const Clock& from) {
    for (size_t w = 0; w < into.size(); ++w) into[w] = std::max(into[w], from[w]);
  }
  void require(uint32_t worker, uint32_t count, const char* what) const {
    if (worker != worker_ && clocks_[worker_][worker] < count)
      throw Violation("worker " + std::to_string(worker_) + " " + what);
  }

  const Plan& plan_;
  std::vector<Clock> clocks_, released_;
  std::unordered_map<const uint64_t*, Mark> marks_;
  uint32_t worker_ = 0;
};

}  // namespace plan_oracle
