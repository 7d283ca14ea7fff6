// One packed arena in a file. The file holds no offsets: its size follows from the number of payload bytes, and what
// lies where inside them follows, as in memory, from the config and the checkpoint's headers.
//
//   byte 0        header: magic, versions, key, number of payload bytes, where they came from, a sum of all this
//   byte 4096     one 64-bit sum per block of 2 MiB of the payload
//   next 2 MiB    the payload: the bytes of the arena, so that they can be mapped in huge pages
#pragma once

#include "core/sha256.h"
#include "weights/arena.h"
#include "weights/weights.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace mimo_rt {

/// What a file says about itself.
struct PackedFileInfo {
  Digest key = {};               ///< names contents and layout: see packed_cache.cpp
  uint32_t layout_version = 0;   ///< `kPackedLayoutVersion` of the writer
  uint64_t num_bytes = 0;        ///< of the payload
  std::string part;              ///< "target" or "draft"
  std::string library_version;   ///< of the writer
  std::string source_dir;        ///< of the checkpoint, cut off when long
};

/// Reads and checks the header alone. `name`: for errors; `where`: the public operation.
/// @throws Error{io}; Error{bad_format} naming what is wrong with the header or the size of the file
PackedFileInfo read_packed_info(int descriptor, const std::string& name, const char* where);

/// Bytes of the header; the last eight are the `packed_sum` of the others, with start 0.
inline constexpr uint64_t kPackedHeaderBytes = 1152;

/// Two running sums of 64-bit words, as Fletcher's: the first sees any change of one word, the second also words that
/// changed places. Against accidents, not against an attacker; as fast as memory.
uint64_t packed_sum(std::span<const std::byte> bytes, uint64_t start);

/// Bytes of the whole file.
uint64_t packed_file_bytes(uint64_t num_payload_bytes);

/// The arena of a file whose key is `expected.key` and whose payload has `expected.num_bytes`: mapped, or with
/// `options.use_mmap` false a copy. Every byte is read and compared with its block's sum.
/// @throws Error{io, bad_format, out_of_memory}; Error{cancelled} as the progress callback says
Arena read_packed_file(int descriptor, const std::string& name, const PackedFileInfo& expected,
                       const Weights::Options& options, const char* where);

/// Writes the file from byte 0 and waits until it has reached the disk; reserves its space first.
/// @throws Error{io} naming what the system said, e.g. that the disk is full; Error{cancelled}
void write_packed_file(int descriptor, const std::string& name, const PackedFileInfo& info,
                       const Arena& arena, const Weights::Options& options, const char* where);

}  // namespace mimo_rt
