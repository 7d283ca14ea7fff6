// Checkpoints of random values in memory, for benchmarks: every tensor that a config implies, in its usual format, with
// values that keep activations of order one through all layers.
//
// Tensors of one kind are windows into the same random bytes, each at a place of its own, so that a model of any number
// of layers and experts takes little more than its largest tensors.
#pragma once

#include <mimo_rt/checkpoint.h>
#include <mimo_rt/config.h>
#include <mimo_rt/draft.h>

#include <cstdint>

namespace mimo_rt {

/// Equal seeds give equal bytes. @throws Error{out_of_memory}
Checkpoint random_checkpoint(const ModelConfig& config, uint64_t seed);

/// The same for a draft. Its attention is sharp and its mask small: the rows of a block, which begin alike, propose
/// different tokens, as those of a trained draft do, and the target routes them to different experts.
Checkpoint random_checkpoint(const DraftConfig& config, uint64_t seed);

}  // namespace mimo_rt
