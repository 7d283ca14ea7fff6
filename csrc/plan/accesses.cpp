#include "plan/accesses.h"

#include "core/checks.h"
#include "plan/buffers.h"
#include "plan/kinds.h"
#include "plan/task_shares.h"
#include "weights/packed.h"

#include <algorithm>
#include <array>
#include <map>

namespace mimo_rt {
namespace {

struct Cols {
  uint32_t begin, end;
};

/// Sorts and joins touching intervals.
void coalesce(std::vector<Cols>& cols) {
  std::sort(cols.begin(), cols.end(), [](const Cols& a, const Cols& b) { return a.begin < b.begin; });
  size_t kept = 0;
  for (const Cols& next : cols) {
    if (kept && cols[kept - 1].end >= next.begin) cols[kept - 1].end = std::max(cols[kept - 1].end, next.end);
    else cols[kept++] = next;
  }
  cols.resize(kept);
}

/// Output columns of a matrix task, 16 per tile, cut off at the true width.
std::vector<Cols> tile_cols(const Task& task, uint32_t width) {
  std::vector<Cols> cols;
  for (uint64_t tile = task.tile_first; tile < task.tile_end; tile += task.tile_stride) {
    const uint32_t begin = static_cast<uint32_t>(tile) * kTileRows;
    cols.push_back({begin, std::min(begin + kTileRows, width)});
  }
  coalesce(cols);
  return cols;
}

/// Tokens of a round's block that the round before it left: the anchor, and where no draft fills it, all.
uint32_t num_carried(const Plan& plan) { return plan.shape().draft.num_layers ? 1 : plan.options().max_tokens; }

/// What the rows count that a kind takes normalised.
RowDomain consumed_rows(TaskKind kind) {
  if (kind < TaskKind::context_fc) return RowDomain::token;
  return kind == TaskKind::context_kv ? RowDomain::context_row : RowDomain::draft_row;
}

}  // namespace

struct AccessModel::Sink {
  std::vector<Access>& out;

  void all_rows(AccessMode mode, uint16_t buffer, Cols cols, RowDomain domain = RowDomain::token) {
    out.push_back({buffer, domain, mode, 0, 1, cols.begin, cols.end});
  }
  void all_rows(AccessMode mode, uint16_t buffer, const std::vector<Cols>& list,
                RowDomain domain = RowDomain::token) {
    for (const Cols& cols : list) all_rows(mode, buffer, cols, domain);
  }
};

uint32_t domain_rows(const Plan& plan, RowDomain domain) {
  switch (domain) {
    case RowDomain::token: return plan.options().max_tokens;
    case RowDomain::logit_row: return plan.options().max_logit_rows;
    case RowDomain::active_expert: return max_active_experts(plan.shape(), plan.options().max_tokens);
    case RowDomain::whole: return 1;
    case RowDomain::context_row: return plan.options().max_context_rows;
    case RowDomain::draft_row: return plan.shape().draft.block_size;
    case RowDomain::draft_logit_row: return std::max(plan.shape().draft.block_size, 1u) - 1;
  }
  fail(ErrorCode::internal, "plan", "unknown row domain");
}

AccessModel::AccessModel(const Plan& plan) : plan_(plan) {
  std::map<std::array<uint32_t, 5>, std::shared_ptr<const std::vector<QkvTile>>> by_heads;
  for (const PlanShape::Layer& layer : plan.shape().layers) {
    auto& tiles = by_heads[{layer.num_q_heads, layer.num_kv_heads, layer.qk_head_dim, layer.v_head_dim,
                            layer.rotary_dim}];
    if (!tiles) tiles = std::make_shared<const std::vector<QkvTile>>(qkv_tiles(layer_config(layer)));
    qkv_tiles_.push_back(tiles);
  }
}

void AccessModel::append(const Task& task, std::vector<Access>& out) const {
  using enum AccessMode;
  const PlanShape& shape = plan_.shape();
  const Cols hidden{0, shape.hidden_size};
  Sink sink{out};
  if (takes_norm(task.kind)) sink.all_rows(read, task.input, hidden, consumed_rows(task.kind));
  switch (task.kind) {
    case TaskKind::embed:
      if (task.flags & kFromBlock) append_block_reads(task, sink);
      out.push_back({task.output, RowDomain::token, write, task.tile_first, task.tile_stride, 0, hidden.end});
      break;
    case TaskKind::rms_norm: append_norm(task, RowDomain::token, sink); break;
    case TaskKind::qkv_proj: append_qkv(task, sink); break;
    case TaskKind::attention: append_attention(task, sink); break;
    case TaskKind::o_proj: {
      const PlanShape::Layer& layer = shape.layers[task.layer_idx];
      sink.all_rows(read, task.input, Cols{0, layer.num_q_heads * layer.v_head_dim});
      sink.all_rows(update, task.output, tile_cols(task, shape.hidden_size));
      break;
    }
    case TaskKind::router:
      sink.all_rows(write, task.output, tile_cols(task, round_up(shape.num_experts, kTileRows)));
      break;
    case TaskKind::select_experts:
      sink.all_rows(read, task.input, Cols{0, shape.num_experts});
      sink.all_rows(write, task.output, Cols{0, plan_.buffers()[kRoute].cols}, RowDomain::whole);
      break;
    case TaskKind::expert_gate_up: append_expert_gate_up(task, sink); break;
    case TaskKind::expert_down:
      sink.all_rows(read, task.input2, Cols{0, plan_.buffers()[kRoute].cols}, RowDomain::whole);
      sink.all_rows(read, task.input, Cols{0, shape.expert_width}, RowDomain::active_expert);
      sink.all_rows(update, task.output, tile_cols(task, shape.hidden_size));
      append_capture(task, sink);
      break;
    case TaskKind::gate_up_proj: sink.all_rows(write, task.output, tile_cols(task, shape.dense_width)); break;
    case TaskKind::down_proj:
      sink.all_rows(read, task.input, Cols{0, shape.dense_width});
      sink.all_rows(update, task.output, tile_cols(task, shape.hidden_size));
      append_capture(task, sink);
      break;
    case TaskKind::lm_head:
      sink.all_rows(write, task.output, tile_cols(task, round_up(shape.vocab_size, kTileRows)), RowDomain::logit_row);
      break;
    case TaskKind::sample:
      sink.all_rows(read, task.input, Cols{0, shape.vocab_size}, RowDomain::logit_row);
      if (task.tile_first == 0) sink.all_rows(write, task.output, Cols{0, 1}, RowDomain::logit_row);
      break;
    default: append_draft(task, sink);
  }
}

void AccessModel::append_norm(const Task& task, RowDomain domain, Sink& sink) const {
  const uint32_t hidden = plan_.shape().hidden_size;
  sink.out.push_back({task.input, domain, AccessMode::read, task.tile_first, task.tile_stride, 0, hidden});
  sink.out.push_back({task.output, domain, AccessMode::write, task.tile_first, task.tile_stride, 0, hidden});
}

void AccessModel::append_capture(const Task& task, Sink& sink) const {
  if (!(task.flags & kCapture)) return;
  std::vector<Cols> cols = tile_cols(task, plan_.shape().hidden_size);
  const uint32_t base = static_cast<uint32_t>(capture_index(plan_.shape(), task.layer_idx)) * plan_.shape().hidden_size;
  for (Cols& part : cols) part.begin += base, part.end += base;
  sink.all_rows(AccessMode::write, task.output2, cols);
}

void AccessModel::append_draft(const Task& task, Sink& sink) const {
  using enum AccessMode;
  using enum RowDomain;
  const PlanShape& shape = plan_.shape();
  const PlanShape::Draft& draft = shape.draft;
  const uint32_t num_features = static_cast<uint32_t>(draft.target_layer_ids.size()) * shape.hidden_size;
  switch (task.kind) {
    case TaskKind::context_fc:
      sink.all_rows(read_earlier, task.input, Cols{0, num_features});
      sink.all_rows(write, task.output, tile_cols(task, shape.hidden_size), context_row);
      break;
    case TaskKind::context_norm: append_norm(task, context_row, sink); break;
    case TaskKind::context_kv: append_context_kv(task, sink); break;
    case TaskKind::draft_embed:
      if (task.tile_first == 0) sink.all_rows(read_earlier, task.input, Cols{0, 1}, whole);
      sink.out.push_back({task.output, draft_row, write, task.tile_first, task.tile_stride, 0, shape.hidden_size});
      break;
    case TaskKind::draft_norm: append_norm(task, draft_row, sink); break;
    case TaskKind::draft_qkv_proj: append_draft_qkv(task, sink); break;
    case TaskKind::draft_attention: append_draft_attention(task, sink); break;
    case TaskKind::draft_o_proj:
      sink.all_rows(read, task.input, Cols{0, draft.num_q_heads * draft.v_head_dim}, draft_row);
      sink.all_rows(update, task.output, tile_cols(task, shape.hidden_size), draft_row);
      break;
    case TaskKind::draft_gate_up_proj:
      sink.all_rows(write, task.output, tile_cols(task, draft.intermediate_size), draft_row);
      break;
    case TaskKind::draft_down_proj:
      sink.all_rows(read, task.input, Cols{0, draft.intermediate_size}, draft_row);
      sink.all_rows(update, task.output, tile_cols(task, shape.hidden_size), draft_row);
      break;
    case TaskKind::draft_lm_head:
      sink.all_rows(write, task.output, tile_cols(task, round_up(draft.vocab_size, kTileRows)), draft_logit_row);
      break;
    case TaskKind::draft_sample:
      for (uint64_t row = task.tile_first; row < draft.block_size; row += task.tile_stride) {
        if (row == 0) continue;  // the anchor is not drafted
        const uint32_t t = static_cast<uint32_t>(row);
        sink.out.push_back({task.input, draft_logit_row, read, t - 1, draft.block_size, 0, draft.vocab_size});
        sink.all_rows(write, task.output, Cols{t, t + 1}, whole);
      }
      break;
    case TaskKind::accept:
      sink.all_rows(read, task.input, Cols{0, shape.vocab_size}, logit_row);
      if (draft.num_layers != 0) sink.all_rows(read, task.input2, Cols{0, draft.vocab_size}, draft_logit_row);
      if (task.tile_first != 0) break;  // the block: whoever is done last comes after all others' reads
      sink.all_rows(read_earlier, task.output, Cols{0, num_carried(plan_)}, whole);
      if (draft.num_layers != 0) sink.all_rows(read, task.output, Cols{1, draft.block_size}, whole);
      sink.all_rows(write, task.output, Cols{0, num_carried(plan_)}, whole);  // the next round's
      break;
    default: fail(ErrorCode::internal, "plan", "task kind ", static_cast<int>(task.kind), " has no accesses");
  }
}

/// All drafts, whichever rows the task embeds: how many rows there are is known when the last of them is.
void AccessModel::append_block_reads(const Task& task, Sink& sink) const {
  const uint32_t num_earlier = num_carried(plan_), block_size = plan_.options().max_tokens;
  sink.all_rows(AccessMode::read_earlier, task.input, Cols{0, num_earlier}, RowDomain::whole);
  if (block_size > num_earlier)
    sink.all_rows(AccessMode::read, task.input, Cols{num_earlier, block_size}, RowDomain::whole);
}

void AccessModel::append_context_kv(const Task& task, Sink& sink) const {
  const PlanShape::Draft& draft = plan_.shape().draft;
  std::vector<Cols> cols;
  for (uint64_t tile = task.tile_first; tile < task.tile_end; tile += task.tile_stride) {
    const uint32_t head = static_cast<uint32_t>(tile) % draft.num_kv_heads;
    const uint32_t part = static_cast<uint32_t>(tile) / draft.num_kv_heads;  // layer * 2 + is_v
    const uint32_t head_dim = part % 2 ? draft.v_head_dim : draft.qk_head_dim;
    const uint32_t part_begin =
        context_kv_begin(draft, part / 2) + (part % 2 ? draft.num_kv_heads * draft.qk_head_dim : 0);
    cols.push_back({part_begin + head * head_dim, part_begin + (head + 1) * head_dim});
  }
  coalesce(cols);
  sink.all_rows(AccessMode::write, task.output, cols, RowDomain::context_row);
}

void AccessModel::append_draft_qkv(const Task& task, Sink& sink) const {
  const PlanShape::Draft& draft = plan_.shape().draft;
  const uint32_t num_qk = draft.num_q_heads + draft.num_kv_heads;
  std::vector<Cols> q, kv;
  for (uint64_t tile = task.tile_first; tile < task.tile_end; tile += task.tile_stride) {
    const uint32_t head = static_cast<uint32_t>(tile);
    const uint32_t dk = draft.qk_head_dim, dv = draft.v_head_dim;
    if (head < draft.num_q_heads) {
      q.push_back({head * dk, (head + 1) * dk});
    } else if (head < num_qk) {
      kv.push_back({(head - draft.num_q_heads) * dk, (head - draft.num_q_heads + 1) * dk});
    } else {
      const uint32_t begin = draft.num_kv_heads * dk + (head - num_qk) * dv;
      kv.push_back({begin, begin + dv});
    }
  }
  coalesce(q);
  coalesce(kv);
  sink.all_rows(AccessMode::write, task.output, q, RowDomain::draft_row);
  sink.all_rows(AccessMode::write, task.output2, kv, RowDomain::draft_row);
}

/// Of a share of a row's attention: its q heads, and the kv heads that it reads.
struct SharedHeads {
  uint32_t begin, end, kv_begin, kv_end;
};

static SharedHeads heads_of_share(uint32_t share, uint32_t num_shares, uint32_t num_q_heads, uint32_t q_per_kv) {
  const uint32_t begin = share_begin(share, num_shares, num_q_heads);
  const uint32_t end = share_begin(share + 1, num_shares, num_q_heads);
  return {begin, end, begin / q_per_kv, (end - 1) / q_per_kv + 1};
}

void AccessModel::append_draft_attention(const Task& task, Sink& sink) const {
  const PlanShape::Draft& draft = plan_.shape().draft;
  const uint32_t q_per_kv = draft.num_q_heads / draft.num_kv_heads;
  const uint32_t dk = draft.qk_head_dim, dv = draft.v_head_dim, v_base = draft.num_kv_heads * dk;
  const uint32_t context = context_kv_begin(draft, task.layer_idx);
  for_each_share(task, draft.block_size, [&](uint32_t share, uint32_t first, uint32_t stride) {
    const auto [begin, end, kv_begin, kv_end] = heads_of_share(share, task.tile_end, draft.num_q_heads, q_per_kv);
    const Cols k{kv_begin * dk, kv_end * dk}, v{v_base + kv_begin * dv, v_base + kv_end * dv};
    // Shares that do a kv head together read all of its q heads.
    sink.out.push_back({task.input, RowDomain::draft_row, AccessMode::read, first, stride, kv_begin * q_per_kv * dk,
                        kv_end * q_per_kv * dk});
    sink.all_rows(AccessMode::read, task.input2, std::vector{k, v}, RowDomain::draft_row);
    for (const Cols& cols : {k, v})  // any row of context made in this step may be visible
      sink.all_rows(AccessMode::read, kContextKv, Cols{context + cols.begin, context + cols.end},
                    RowDomain::context_row);
    sink.out.push_back({task.output, RowDomain::draft_row, AccessMode::write, first, stride, begin * dv, end * dv});
  });
}

void AccessModel::append_qkv(const Task& task, Sink& sink) const {
  const PlanShape::Layer& layer = plan_.shape().layers[task.layer_idx];
  const std::vector<QkvTile>& tiles = *qkv_tiles_[task.layer_idx];
  std::vector<Cols> q, kv;
  for (uint64_t i = task.tile_first; i < task.tile_end; i += task.tile_stride) {
    const QkvTile& tile = tiles[i];
    const bool is_v = tile.part == QkvTile::Part::v;
    const uint32_t head_dim = is_v ? layer.v_head_dim : layer.qk_head_dim;
    const uint32_t v_base = is_v ? layer.num_kv_heads * layer.qk_head_dim : 0;
    const uint32_t begin = v_base + tile.head_idx * head_dim + tile.dim_begin;
    std::vector<Cols>& cols = tile.part == QkvTile::Part::q ? q : kv;
    cols.push_back({begin, begin + tile.num_dims});
    const uint32_t partner = begin + layer.rotary_dim / 2;
    if (tile.rotary) cols.push_back({partner, partner + tile.num_dims});
  }
  coalesce(q);
  coalesce(kv);
  sink.all_rows(AccessMode::write, task.output, q);
  sink.all_rows(AccessMode::write, task.output2, kv);
}

void AccessModel::append_attention(const Task& task, Sink& sink) const {
  const PlanShape::Layer& layer = plan_.shape().layers[task.layer_idx];
  const uint32_t q_per_kv = layer.num_q_heads / layer.num_kv_heads;
  const uint32_t dk = layer.qk_head_dim, dv = layer.v_head_dim, v_base = layer.num_kv_heads * dk;
  for_each_share(task, plan_.options().max_tokens, [&](uint32_t share, uint32_t first, uint32_t stride) {
    const auto [begin, end, kv_begin, kv_end] = heads_of_share(share, task.tile_end, layer.num_q_heads, q_per_kv);
    // Shares that do a kv head together read all of its q heads.
    sink.out.push_back({task.input, RowDomain::token, AccessMode::read, first, stride, kv_begin * q_per_kv * dk,
                        kv_end * q_per_kv * dk});
    // Any row of this step may belong to the same sequence and be visible.
    sink.all_rows(AccessMode::read, task.input2, Cols{kv_begin * dk, kv_end * dk});
    sink.all_rows(AccessMode::read, task.input2, Cols{v_base + kv_begin * dv, v_base + kv_end * dv});
    // The last share to be done writes all of its kv head's columns; readers wait for whole rows, see task.h.
    sink.out.push_back({task.output, RowDomain::token, AccessMode::write, first, stride, begin * dv, end * dv});
  });
}

void AccessModel::append_expert_gate_up(const Task& task, Sink& sink) const {
  const PlanShape& shape = plan_.shape();
  const uint32_t pairs = num_tiles(shape, task.kind, task.layer_idx);
  sink.all_rows(AccessMode::read, task.input2, Cols{0, plan_.buffers()[kRoute].cols}, RowDomain::whole);
  const uint32_t num_rows = domain_rows(plan_, RowDomain::active_expert);
  for_each_share(task, num_rows, [&](uint32_t share, uint32_t first, uint32_t stride) {
    const uint32_t begin = share_begin(share, task.tile_end, pairs) * kTileRows;
    const uint32_t end = share_begin(share + 1, task.tile_end, pairs) * kTileRows;
    sink.out.push_back({task.output, RowDomain::active_expert, AccessMode::write, first, stride, begin,
                        std::min(end, shape.expert_width)});
  });
}

std::vector<Access> task_accesses(const Plan& plan, const Task& task) {
  std::vector<Access> out;
  AccessModel(plan).append(task, out);
  return out;
}

}  // namespace mimo_rt
