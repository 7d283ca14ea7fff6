// The slots by which tasks go through a block of the persistent kernel, its own source under the
// emulated GPU: a loader that is late holds nobody up for ever.
#define MIMO_RT_HOST_EMULATION
#include <cstring>
#include <vector>

#include "cuda/device/persistent/roles.cuh"
#include "kernel_launch.h"

using namespace mimo_rt;
using namespace fixture;

namespace {

/// One block: an expert_gate_up without active experts among tasks that do nothing. None of them
/// has weights, so the compute warps never wait for the loader, but it for them.
struct Program {
  static constexpr uint32_t kNumTasks = 2 * cuda::kTaskSlots + 2;
  std::vector<Task> tasks = std::vector<Task>(kNumTasks);
  std::vector<cuda::TaskOperands> operands = std::vector<cuda::TaskOperands>(2);
  std::vector<uint32_t> operand_idx = std::vector<uint32_t>(kNumTasks, 0);
  uint32_t worker_begin[2] = {0, kNumTasks}, num_active = 0, total = 0, stop = cuda::kRunning;
  cuda::CounterCell counter{};
  cuda::HangReport report{};

  Program() {
    for (Task& task : tasks)
      task.signal_counter = kNoCounter, task.tile_end = 1, task.tile_stride = 1;
    tasks[1].kind = TaskKind::expert_gate_up;
    operand_idx[1] = 1;
    operands[1].body = cuda::TaskBody::expert_gate_up;
    cuda::ExpertGateUpParams params;
    params.route.num_active = &num_active;
    params.width = 64;
    std::memcpy(operands[1].params, &params, sizeof params);
  }
  cuda::PersistentParams params() {
    cuda::PersistentParams p;
    p.tasks = tasks.data();
    p.operands = operands.data();
    p.operand_idx = operand_idx.data();
    p.worker_begin = worker_begin;
    p.counters = &counter;
    p.counter_totals = &total;
    p.watchdog = {&stop, &report, 800'000};
    return p;
  }
};

}  // namespace

TEST_CASE("a loader that is late for the end of the task before does not miss it") {
  for (uint64_t seed = 0; seed <= 4; ++seed) {
    Program program;
    emulation::LaunchOptions options =
        options_of({1, seed}, cuda::kPersistentThreads, sizeof(cuda::PersistentShared));
    uint32_t num_waits = 0;  // of the loader's lanes
    options.skip_wait = [&](uint32_t warp_idx, const uint64_t* mbarrier) {
      auto& shared = *reinterpret_cast<cuda::PersistentShared*>(ptx::dynamic_shared_memory());
      if (warp_idx != cuda::kComputeWarps + 1 || mbarrier != &shared.slots.of(0).done) return false;
      {
        const emulation::Unchecked unchecked;  // lanes share it
        ++num_waits;
      }
      ptx::sleep_ns(200'000);  // as long as the other tasks take
      return false;
    };
    run_emulated(cuda::persistent_kernel, program.params(), options);
    CHECK_EQ(num_waits, 32u);
    CHECK_EQ(program.stop, cuda::kRunning);
  }
}

CHECK_MAIN()
