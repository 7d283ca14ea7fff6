// What launches of kernels say when CUDA fails them, and which devices and memory they take: decided
// without CUDA.
#include "check.h"

#include "cuda/kernel_call.h"

using namespace mimo_rt;
using namespace mimo_rt::cuda;

TEST_CASE("a fault that a later call tells names the last launch and its shapes") {
  LastLaunch launch;
  const KernelCall memory{"KernelBench", "memory"};
  const auto text = [&] {
    return cuda_error_text("cudaDeviceSynchronize()", "cudaErrorIllegalAddress", "illegal access",
                           memory, launch.text());
  };
  const std::string plain =
      "cudaDeviceSynchronize() failed: cudaErrorIllegalAddress, illegal access (memory)";
  CHECK_EQ(text(), plain);  // nothing was launched
  launch.note({"cuda.projection", "num_tokens 8, rows 64"});
  launch.note({"cuda.expert_down", "num_tokens 8, width 256"});
  CHECK_EQ(text(),
           plain + "; after cuda.expert_down (num_tokens 8, width 256) or an earlier launch");
}

CHECK_MAIN()
