// What names the contents of a checkpoint's files, and how not to read them all again to know it.
#pragma once

#include "core/sha256.h"
#include "weights/weights.h"

#include <mimo_rt/checkpoint.h>

namespace mimo_rt {

/// SHA-256 of the names, sizes and bytes of all files, in blocks that threads hash side by side. Reads everything.
/// @throws Error{cancelled} as `options.progress` says, which sees no progress
Digest hash_contents(const Checkpoint& checkpoint, const Weights::Options& options, const char* where);

/// Brings the files to the disk, so that their stamps tell later changes from what is hashed now (core/file.h). False
/// where they do not even so.
bool write_back(const Checkpoint& checkpoint);

/// SHA-256 of the names and stamps (core/file.h) of all files: cheap, and another one after any change.
Digest hash_stamps(const Checkpoint& checkpoint);

/// Whether the files still have the stamps with which they were opened.
bool is_unchanged(const Checkpoint& checkpoint);

/// Whether stamps taken now tell later changes from the files as they were opened: a file changed a moment ago may
/// change again within the resolution of its time stamps.
bool are_stamps_settled(const Checkpoint& checkpoint);

}  // namespace mimo_rt
