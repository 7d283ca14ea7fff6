// Checks of the persistent kernel's arguments. No CUDA in here: they are tested on every machine.
#include "cuda/param_checks.h"
#include "cuda/persistent.h"

namespace mimo_rt::cuda {

void check_persistent(const PersistentParams& p, uint32_t num_blocks) {
  constexpr const char* kWhere = "cuda.persistent";
  MIMO_RT_CHECK(num_blocks != 0, invalid_argument, kWhere,
                "num_blocks: expected the number of workers, got 0");
  check_pointer(kWhere, "tasks", p.tasks, alignof(Task));
  check_pointer(kWhere, "operand_idx", p.operand_idx, 4);
  check_pointer(kWhere, "operands", p.operands, alignof(TaskOperands));
  check_pointer(kWhere, "worker_begin", p.worker_begin, 4);
  check_pointer(kWhere, "counters", p.counters, alignof(CounterCell));
  check_pointer(kWhere, "counter_totals", p.counter_totals, 4);
  if (p.step) check_pointer(kWhere, "step", p.step, alignof(StepTables));
  if (p.stamps) check_pointer(kWhere, "stamps", p.stamps, alignof(TaskStamps));
  MIMO_RT_CHECK(p.num_epochs != 0, invalid_argument, kWhere, "num_epochs: expected > 0, got 0");
  check_pointer(kWhere, "watchdog.stop", p.watchdog.stop, 4);
  check_pointer(kWhere, "watchdog.report", p.watchdog.report, alignof(HangReport));
  const uint64_t deadline_ns = p.watchdog.deadline_ns;
  MIMO_RT_CHECK(deadline_ns != 0 && deadline_ns <= kMaxDeadlineNs, invalid_argument, kWhere,
                "watchdog.deadline_ns: expected 1 .. ", kMaxDeadlineNs, ", got ", deadline_ns);
}

void check_resident(uint32_t num_blocks, uint32_t max_blocks, uint32_t num_sms) {
  MIMO_RT_CHECK(num_blocks <= max_blocks, unavailable, "cuda.persistent",
                "num_blocks: expected at most ", max_blocks, ", which ", num_sms,
                " multiprocessors hold at the same time, got ", num_blocks,
                ". Make a plan with fewer workers, or free the device of other limits (MIG, MPS).");
}

void check_room(int status, uint32_t num_blocks) {
  const bool is_crowded = status == kCooperativeLaunchTooLarge || status == kLaunchOutOfResources;
  const char* other_cause = status == kLaunchOutOfResources
                                ? ". If it comes back without such processes, a block takes more registers or threads "
                                  "than the device has, and this is a bug"
                                : "";
  MIMO_RT_CHECK(!is_crowded, unavailable, "cuda.persistent",
                "num_blocks: expected as many as the device holds at the same time beside what others run on it, got ",
                num_blocks, ", which CUDA refused (error ", status,
                "). End the other processes that hold multiprocessors (MPS clients, other persistent kernels) "
                "and try again, or make a plan with fewer workers", other_cause, '.');
}

}  // namespace mimo_rt::cuda
