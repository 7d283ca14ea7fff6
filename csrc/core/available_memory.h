// How much memory the machine can give.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace mimo_rt {

/// Bytes that can still be used without swapping: MemAvailable, and what the memory cgroups of this
/// process leave (their page cache counts as free). UINT64_MAX when nothing is known.
/// `root`: the directory that holds `proc` and `sys`, for tests.
uint64_t available_memory_bytes(const std::filesystem::path& root = "/");

/// `what`, of many, needs them. @throws Error{out_of_memory} naming both numbers when `needed_bytes` are more than
/// available
void check_memory(uint64_t needed_bytes, uint64_t available_bytes, const char* where,
                  std::string_view what = "the packed weights");

}  // namespace mimo_rt
