// Plan::verify(): structure, then one symbolic epoch that shows liveness, order and data flow at once.

#include "core/checks.h"
#include "plan/data_flow.h"
#include "plan/epoch_order.h"
#include "plan/structure.h"
#include "plan/task.h"

#include <mimo_rt/plan.h>

#include <chrono>

namespace mimo_rt {

VerifyReport Plan::verify() const {
  const auto begin = std::chrono::steady_clock::now();
  check_structure(*this);
  EpochOrder order(*this);
  DataFlow flow(*this);
  VerifyReport report;
  order.run([&](uint32_t worker_idx, uint32_t task_idx, const Clock& before) {
    ++report.num_tasks;
    report.num_waits += tasks(worker_idx)[task_idx].num_waits;
    flow.visit(worker_idx, task_idx, before);
  });
  order.check_gate();
  flow.finish();
  report.num_accesses = flow.num_accesses();
  report.num_ordered_pairs = flow.num_ordered_pairs();
  report.num_workers = num_workers();
  report.num_counters = static_cast<uint32_t>(counters_.size());
  report.num_buffers = static_cast<uint32_t>(buffers_.size());
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return report;
}

std::string VerifyReport::to_string() const {
  return concat("proved for 1..max_tokens tokens and any routing: ", num_tasks, " tasks on ", num_workers,
                " workers complete without deadlock; ", num_accesses, " accesses to ", num_buffers,
                " buffers are inside their buffer and read what the model's data flow asks for; ", num_ordered_pairs,
                " conflicting pairs are ordered by ", num_waits, " waits on ", num_counters,
                " counters; epochs do not overlap (", seconds, " s)");
}

}  // namespace mimo_rt
