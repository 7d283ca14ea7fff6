// Refuses generation options outside their documented ranges, naming the field.
#pragma once

#include <mimo_rt/session.h>

#include <cstdint>
#include <span>

namespace mimo_rt {

inline constexpr size_t kMaxStopStrings = 16;
inline constexpr size_t kMaxStopBytes = 1024;
inline constexpr size_t kMaxStopTokenIds = 4096;

/// @throws Error{invalid_argument}
void check_generate_options(const GenerateOptions& options, uint32_t vocab_size,
                            bool has_vocabulary, const DraftConfig* draft);

/// Token ids must lie in [0, vocab_size); `where` names the public operation.
/// @throws Error{invalid_argument} when empty or out of range
void check_tokens(std::span<const int32_t> tokens, uint32_t vocab_size, const char* where,
                  const char* name);

}  // namespace mimo_rt
