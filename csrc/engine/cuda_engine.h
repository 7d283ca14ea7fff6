// The engine on a GPU: which one can be used, and how it is opened.
#pragma once

#include <mimo_rt/checkpoint.h>
#include <mimo_rt/device.h>
#include <mimo_rt/engine.h>

#include "core/cuda_devices.h"
#include "cuda/step_device.h"

#include <filesystem>
#include <memory>

namespace mimo_rt {

/// The "cuda" entry of list_backends: available when the first device runs this build's binaries.
Backend cuda_backend(const CudaDevices& cuda);

/// The rest of Engine::open for this device: a GPU, or in tests an emulated one. `draft_dir`: of the model's draft, or
/// empty.
/// @throws as Engine::open
std::shared_ptr<Engine> open_cuda_engine(const Checkpoint& checkpoint, const ModelConfig& config, EngineOptions options,
                                         const std::filesystem::path& draft_dir,
                                         std::shared_ptr<cuda::StepDevice> device);

/// The rest of Engine::synthetic for this device. Of every layer's experts the host packs a few, which the device
/// repeats; all else differs from layer to layer, so that routing is as even as if all experts differed.
/// @throws as Engine::synthetic
std::shared_ptr<Engine> synthetic_cuda_engine(const ModelConfig& config, uint64_t seed, const EngineOptions& options,
                                              const DraftConfig* draft, std::shared_ptr<cuda::StepDevice> device);

}  // namespace mimo_rt
