// Binds threads to the processors that this process may use.
#pragma once

#include <cstdint>
#include <vector>

namespace mimo_rt {

/// Cores for `num_threads` threads, ascending, at least one each. Empty when they should not be
/// bound: there are fewer cores, or a CPU quota gives the process less time than its cores have.
/// Then the cores are shared with others, and a thread bound to a busy one would wait while another
/// is free.
std::vector<int> cores_to_pin(uint32_t num_threads);

/// Binds the calling thread. False: the system refuses, which costs speed, not correctness.
bool pin_this_thread(int core) noexcept;

}  // namespace mimo_rt
