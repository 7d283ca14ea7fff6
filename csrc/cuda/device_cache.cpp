#include "cuda/device_cache.h"

#include "core/checks.h"

namespace mimo_rt::cuda {

void check_free(const DeviceMemory& device, uint64_t num_bytes, const char* what,
                const char* advice) {
  const uint64_t free_bytes = device.free_bytes();
  MIMO_RT_CHECK(num_bytes <= free_bytes, out_of_memory, "cuda", what, ": expected ", num_bytes,
                " free bytes on ", device.name(), ", got ", free_bytes, "; ",
                num_bytes - free_bytes, " are missing. ", advice);
}

DeviceCache::DeviceCache(std::shared_ptr<const DeviceModel> model, const KvCache& cache)
    : model_(std::move(model)),
      layout_(model_->config.layers, {.max_context = cache.max_context(),
                                      .max_step_tokens = cache.max_step_tokens(),
                                      .num_seqs = cache.num_seqs()},
              model_->draft_config()) {
  uint64_t num_bytes = layout_.bytes();
  for (const Plan& plan : model_->plans) {
    blocks_.push_back(std::make_unique<StepBlock>(
        StepBlock{DevicePlan(plan, model_->config, model_->weights, model_->draft_weights(), layout_)}));
    num_bytes += blocks_.back()->plan.layout().bytes;
  }
  check_free(*model_->device, num_bytes, "keys and values and the memory of a session's steps",
             "Lower max_context or prefill_chunk_tokens, or close other sessions and programs.");
  memory_ = DeviceBuffer(model_->device, layout_.bytes());
  const std::vector<uint8_t> tables = layout_.tables(memory_.data());
  model_->device->upload(memory_.data() + layout_.tables_begin(), tables.data(), tables.size());
  const PlaceChecks places(*model_->device);
  for (const auto& block : blocks_) {
    block->memory = DeviceBuffer(model_->device, block->plan.layout().bytes);
    block->addresses = {model_->memory.data(), model_->draft_memory.data(), memory_.data(),
                        block->memory.data()};
    const std::vector<uint8_t> image = block->plan.image(block->addresses);
    model_->device->upload(block->memory.data(), image.data(), image.size());
  }
}

}  // namespace mimo_rt::cuda
