#include "engine/weight_readers.h"

#include "core/memory_nodes.h"
#include "plan/kinds.h"

#include <algorithm>
#include <memory>

namespace mimo_rt {
namespace {

/// The kind that multiplies by the matrix. An embedding that is also the lm_head is read as that; one that is not has
/// single rows gathered, and lies well wherever the rows are spread.
TaskKind kind_of(MatrixRole role) {
  switch (role) {
    case MatrixRole::embed:
    case MatrixRole::lm_head: return TaskKind::lm_head;
    case MatrixRole::qkv: return TaskKind::qkv_proj;
    case MatrixRole::o_proj: return TaskKind::o_proj;
    case MatrixRole::router: return TaskKind::router;
    case MatrixRole::gate_up: return TaskKind::gate_up_proj;
    case MatrixRole::down: return TaskKind::down_proj;
    case MatrixRole::expert_gate_up: return TaskKind::expert_gate_up;
    case MatrixRole::expert_down: return TaskKind::expert_down;
    case MatrixRole::context_fc: break;  // of a draft
  }
  return TaskKind::embed;  // reads no matrix
}

/// Calls visit(tile_begin, tile_end) for tiles, of `num_tiles`, that are the task's in every step.
template <typename Visit>
void for_tiles(const Task& task, uint32_t num_tiles, const Visit& visit) {
  if (task.kind != TaskKind::expert_gate_up) {
    for (uint32_t tile = task.tile_first; tile < task.tile_end; tile += task.tile_stride) visit(tile, tile + 1);
    return;
  }
  if (task.tile_end % task.tile_stride != 0) return;  // who has a share depends on the experts before it
  for (uint32_t share = task.tile_first; share < task.tile_end; share += task.tile_stride)
    visit(share_begin(share, task.tile_end, num_tiles), share_begin(share + 1, task.tile_end, num_tiles));
}

}  // namespace

WeightReaders::WeightReaders(const Plan& plan) : plan_(plan) {
  for (uint32_t worker = 0; worker < plan.num_workers(); ++worker)
    for (const Task& task : plan.tasks(worker))
      tasks_[{task.kind, task.layer_idx}].push_back({worker, &task});
}

std::vector<uint32_t> WeightReaders::of(const MatrixSlot& slot) const {
  const TaskKind kind = kind_of(slot.role);
  const auto layer_idx = kind == TaskKind::lm_head ? kNoLayer : static_cast<uint16_t>(slot.layer_idx);
  std::vector<uint32_t> readers(slot.matrix->num_row_groups(), kNoReader);
  const auto found = tasks_.find({kind, layer_idx});
  if (found == tasks_.end()) return readers;
  const uint32_t num_tiles = mimo_rt::num_tiles(plan_.shape(), kind, layer_idx);
  const uint32_t groups_per_tile = kind == TaskKind::gate_up_proj || kind == TaskKind::expert_gate_up ? 2 : 1;
  for (const Reader& reader : found->second)
    for_tiles(*reader.task, num_tiles, [&](uint32_t begin, uint32_t end) {
      const auto last = std::min<size_t>(uint64_t{end} * groups_per_tile, readers.size());
      for (size_t group = uint64_t{begin} * groups_per_tile; group < last; ++group) readers[group] = reader.worker;
    });
  return readers;
}

PagePlacement placement_for(const Plan& plan, std::span<const int> cores, const std::string& root) {
  PagePlacement placement;
  if (cores.size() < plan.num_workers()) return placement;
  cores = cores.first(plan.num_workers());
  const std::vector<uint32_t> nodes = memory_nodes(cores, root);
  if (nodes.empty()) return placement;
  for (size_t i = 0; i < nodes.size(); ++i) placement.cores.push_back({cores[i], nodes[i]});
  placement.readers = [readers = std::make_shared<WeightReaders>(plan)](const MatrixSlot& slot) {
    return readers->of(slot);
  };
  return placement;
}

}  // namespace mimo_rt
