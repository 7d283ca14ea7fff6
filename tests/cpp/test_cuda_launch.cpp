// What launches of kernels say when CUDA fails them, and which devices and memory they take: decided
// without CUDA.
#include "check.h"

#include "cuda/kernel_call.h"
#include "cuda/memory_place.h"

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
           plain + "; after cuda.expert_down (num_tokens 8, width 256) or an earlier launch, of any device");
}

TEST_CASE("devices without binaries in this library are refused") {
  for (const char* both : {"9.0 or 10.0", "10.0 or 9.0"}) {
    check_compute_capability("cuda.x", both, 9, 0);
    check_compute_capability("cuda.x", both, 10, 0);
    for (const auto& [major, minor] : {std::pair{8, 9}, {9, 1}, {10, 3}, {12, 0}, {0, 0}})
      CHECK_THROWS(unavailable,
                   concat("[cuda.x] device: expected compute capability ", both, ", which the kernels are compiled for, got ",
                          major, '.', minor)
                       .c_str(),
                   check_compute_capability("cuda.x", both, major, minor));
  }
  check_compute_capability("cuda.x", "9.0", 9, 0);
  CHECK_THROWS(unavailable, "expected compute capability 9.0, which the kernels are compiled for, got 10.0",
               check_compute_capability("cuda.x", "9.0", 10, 0));
  CHECK_THROWS(unavailable, "expected compute capability 10.0, ", check_compute_capability("cuda.x", "10.0", 9, 0));
}

TEST_CASE("operands lie on the device that runs the kernel; others are refused by name") {
  using Kind = MemoryPlace::Kind;
  const auto check = [](const MemoryPlace& place) { check_place("cuda.x", "tiles", place, 1); };
  check({Kind::device, 1});
  check({Kind::managed, 0});
  CHECK_THROWS(invalid_argument, "[cuda.x] tiles: expected memory of device 1, got memory of device 0. Copy",
               check({Kind::device, 0}));
  CHECK_THROWS(invalid_argument, "tiles: expected memory of device 1, got host memory", check({Kind::host, 1}));
  CHECK_THROWS(invalid_argument, "got pinned host memory", check({Kind::pinned, 1}));
}

CHECK_MAIN()
