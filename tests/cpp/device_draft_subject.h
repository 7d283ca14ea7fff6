// The draft's tasks on the device, a stage at a time from given bytes, for draft_lock_step.h.
#pragma once

#include "device_draft_fixture.h"
#include "draft_lock_step.h"
#include "plan/kinds.h"

namespace fixture {

class DeviceDraftSubject final : public DraftSubject {
 public:
  DeviceDraftSubject(const DeviceDraft& model, uint32_t num_workers, const StepInput& input)
      : run_(model, num_workers, 8), stages_(run_.round_plan) {
    run_.size = input.positions[0];
    run_.num_context = input.context_begin;
    run_.set_round(input.token_ids[0]);
  }

  void copy_cache(KvCache& from, uint32_t num_positions) override {
    const cuda::FeatureRing ring = run_.store().sequence(DeviceDraftRun::kSeq).features;
    const uint32_t begin = num_positions - std::min(num_positions, ring.ring_rows);
    for (uint32_t pos = begin; pos < num_positions; ++pos)
      run_.device->upload(ring.rows + uint64_t{ring.row_idx(pos)} * ring.width,
                          from.feature_row(0, pos), 2 * ring.width);
    const DraftConfig& draft = run_.draft_config;
    for (uint32_t l = 0; l < draft.num_layers; ++l)
      for (uint32_t h = 0; h < draft.num_kv_heads; ++h)
        for (uint32_t pos = 0; pos < num_positions; ++pos) {
          const uint32_t layer = run_.config.num_layers + l;
          run_.device->upload(run_.head_row(l, h, pos, false), from.k_row(layer, 0, h, pos), 2 * draft.qk_head_dim);
          run_.device->upload(run_.head_row(l, h, pos, true), from.v_row(layer, 0, h, pos), 2 * draft.v_head_dim);
        }
  }

  /// The stage's tasks on all workers, without their edges: nothing else runs.
  void run(const Task& task, const StepInput&, const ref::Buffers& inputs) override {
    cuda::StepBlock& block = run_.block();
    const cuda::StepLayout& layout = block.plan.layout();
    const Plan& plan = run_.round_plan;
    for (uint16_t id = kContext; id <= kDraftLogits; ++id)
      if (plan.buffers()[id].space == BufferInfo::Space::arena)
        run_.device->upload(block.addresses.step + layout.arena + plan.buffers()[id].offset, inputs.data(id),
                            plan.buffers()[id].bytes);
    put_block_kv(inputs);
    std::vector<Task> tasks;
    std::vector<uint32_t> operand_idx, worker_begin = {0};
    uint32_t task_idx = 0;
    for (uint32_t w = 0; w < plan.num_workers(); ++w) {
      for (Task found : plan.tasks(w)) {
        const uint32_t stage_idx = stages_.stage_idx[task_idx++];
        if (!(stage_of(found) == stage_of(task))) continue;
        found.num_waits = 0;
        found.signal_counter = kNoCounter;
        tasks.push_back(found);
        operand_idx.push_back(stage_idx);
      }
      worker_begin.push_back(static_cast<uint32_t>(tasks.size()));
    }
    uint8_t* step = block.addresses.step;
    run_.device->upload(step + layout.tasks, tasks.data(), sizeof(Task) * tasks.size());
    run_.device->upload(step + layout.operand_idx, operand_idx.data(), 4 * operand_idx.size());
    run_.device->upload(step + layout.worker_begin, worker_begin.data(), 4 * worker_begin.size());
    run_.launch(block, 0);
    arena_.resize(plan.arena_bytes());
    run_.device->download(arena_.data(), step + layout.arena, arena_.size());
    const cuda::KvView rows = run_.store().layout().block_view(block.addresses.kv);
    block_kv_.resize(rows.block_bytes);
    run_.device->download(block_kv_.data(), rows.blocks, block_kv_.size());
  }

  double read(uint16_t buffer, uint32_t row, uint32_t col) override {
    if (buffer == kDraftKv) {
      bf16_t value;
      std::memcpy(&value, block_kv_.data() + block_kv_offset(row, col), sizeof value);
      return bf16_to_f32(value);
    }
    const BufferInfo& info = run_.round_plan.buffers()[buffer];
    const uint8_t* element = arena_.data() + info.offset + (uint64_t{row} * info.cols + col) * info.element_bytes;
    if (buffer != kDraftLogits) return bf16_to_f32(*reinterpret_cast<const bf16_t*>(element));
    return double{*reinterpret_cast<const float*>(element)};
  }
  double read_context(uint32_t layer, uint32_t pos, uint32_t col) override {
    const auto [is_value, head, dim] = place_of(col);
    bf16_t value;
    run_.device->download(&value, run_.head_row(layer, head, pos, is_value) + 2 * dim, sizeof value);
    return bf16_to_f32(value);
  }
  /// Weights are rounded to BF16 before they meet the values; their sum is that of the rounded ones.
  double attention_unit() const override { return 0x1p-9; }

 private:
  struct HeadDim {
    bool is_value;
    uint32_t head, dim;
  };
  HeadDim place_of(uint32_t col) const {
    const uint32_t qk = run_.draft_config.qk_head_dim, vd = run_.draft_config.v_head_dim;
    const uint32_t v_begin = run_.draft_config.num_kv_heads * qk;
    if (col < v_begin) return {false, col / qk, col % qk};
    return {true, (col - v_begin) / vd, (col - v_begin) % vd};
  }
  uint64_t block_kv_offset(uint32_t row, uint32_t col) {
    const auto [is_value, head, dim] = place_of(col);
    const cuda::KvView rows = run_.store().layout().block_view(nullptr);
    const uint32_t stride = is_value ? rows.v_stride : rows.k_stride;
    return (is_value ? rows.v_begin : 0) + 2 * ((uint64_t{head} * rows.block_rows + row) * stride + dim);
  }
  /// The device has keys and values of the block elsewhere.
  void put_block_kv(const ref::Buffers& inputs) {
    const BufferInfo& info = run_.round_plan.buffers()[kDraftKv];
    const auto* values = reinterpret_cast<const bf16_t*>(inputs.data(kDraftKv));
    auto* rows = const_cast<uint8_t*>(run_.store().layout().block_view(run_.block().addresses.kv).blocks);
    for (uint32_t r = 0; r < info.rows; ++r)
      for (uint32_t c = 0; c < info.cols; ++c)
        run_.device->upload(rows + block_kv_offset(r, c), &values[r * info.cols + c], sizeof(bf16_t));
  }

  DeviceDraftRun run_;
  const cuda::StageList stages_;
  std::vector<uint8_t> arena_, block_kv_;
};

}  // namespace fixture
