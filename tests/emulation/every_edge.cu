// Uses every edge of csrc/cuda/device/sync once, so that nvcc compiles them. Only compiled, never
// run.
#include "cuda/device/sync/counter.cuh"
#include "cuda/device/sync/tagged.cuh"

using namespace mimo_rt::cuda;

constexpr uint32_t kNumPayloads = num_received_words(300);

__global__ void use_every_edge(Watchdog watchdog, CounterCell* counters, TaggedWord* rows,
                               WaitSite site, uint32_t epoch) {
  uint32_t payload;
  if (!wait_for_counter(watchdog, &counters[0], epoch, site)) return;
  if (!wait_for_tagged(watchdog, tagged_row(rows, 8, epoch), epoch, site, payload)) return;
  publish_tagged(tagged_row(rows, 8, epoch + 1), payload, epoch + 1);
  __shared__ uint32_t payloads[kNumPayloads];
  if (!receive_tagged(watchdog, rows + 16, 300, epoch, site, payloads)) return;
  signal_counter(&counters[1]);
}
