#include "core/checks.h"
#include "plan/kinds.h"
#include "plan/task.h"

#include <mimo_rt/plan.h>

#include <sstream>

namespace mimo_rt {
namespace {

/// 64-bit FNV-1a.
class Fnv1a {
 public:
  void bytes(const void* data, size_t size) {
    const auto* byte = static_cast<const unsigned char*>(data);
    for (size_t i = 0; i < size; ++i) value_ = (value_ ^ byte[i]) * 0x100000001b3u;
  }
  template <typename... Ints>
  void ints(Ints... values) {
    (u64(static_cast<uint64_t>(values)), ...);
  }
  void text(const std::string& text) {
    u64(text.size());
    bytes(text.data(), text.size());
  }
  uint64_t value() const { return value_; }

 private:
  void u64(uint64_t value) { bytes(&value, sizeof value); }
  uint64_t value_ = 0xcbf29ce484222325u;
};

const char* space_name(BufferInfo::Space space) {
  constexpr const char* kNames[] = {"arena", "kv", "input", "output"};
  return kNames[static_cast<size_t>(space)];
}

std::string edge_name(const CounterInfo& info) {
  return info.kind == CounterInfo::Kind::tag ? info.name + " (tag)" : info.name;
}

void dump_task(std::ostream& out, const Plan& plan, const Task& task) {
  out << stage_name(stage_of(task)) << (task.flags & kFusedNorm ? " +norm" : "")
      << (task.flags & kCapture ? " +capture" : "") << (task.flags & kFromBlock ? " +block" : "") << " tiles "
      << task.tile_first << ".." << task.tile_end << " step " << task.tile_stride;
  constexpr const char* kPer[] = {"", " per token", " per active expert", " per context row", " per draft row"};
  out << kPer[static_cast<size_t>(trip_count(task.kind))];
  for (uint32_t i = 0; i < task.num_waits; ++i)
    out << (i ? ", " : " | waits ") << edge_name(plan.counters()[task.waits[i].counter]) << " >= " << task.waits[i].value;
  if (task.signal_counter != kNoCounter) out << " | signals " << edge_name(plan.counters()[task.signal_counter]);
  out << " | " << task.cost_ns << " ns\n";
}

}  // namespace

std::span<const Task> Plan::tasks(uint32_t worker_idx) const {
  return {tasks_->data() + worker_begin_[worker_idx], worker_begin_[worker_idx + 1] - worker_begin_[worker_idx]};
}

uint64_t Plan::hash() const {
  Fnv1a hash;
  hash.ints(options_.num_workers, options_.max_tokens, options_.max_logit_rows, shape_.hidden_size, shape_.vocab_size,
            shape_.dense_width, shape_.expert_width, shape_.num_experts, shape_.experts_per_token,
            shape_.layers.size());
  for (const PlanShape::Layer& layer : shape_.layers)
    hash.ints(layer.is_moe, layer.num_q_heads, layer.num_kv_heads, layer.qk_head_dim, layer.v_head_dim,
              layer.rotary_dim);
  const PlanShape::Draft& draft = shape_.draft;
  hash.ints(options_.is_round, options_.max_context_rows, options_.attention_split_keys);
  hash.ints(draft.num_layers, draft.block_size, draft.intermediate_size,
            draft.vocab_size, draft.num_q_heads, draft.num_kv_heads, draft.qk_head_dim, draft.v_head_dim,
            draft.rotary_dim, draft.target_layer_ids.size());
  for (uint32_t id : draft.target_layer_ids) hash.ints(id);
  hash.ints(buffers_.size());
  for (const BufferInfo& info : buffers_) {
    hash.text(info.name);
    hash.ints(info.space, info.rows, info.cols, info.element_bytes, info.offset, info.bytes);
  }
  hash.ints(counters_.size(), gate_counter_, arena_bytes_);
  for (const CounterInfo& info : counters_) {
    hash.text(info.name);
    hash.ints(info.total, info.kind, info.buffer);
  }
  for (uint32_t begin : worker_begin_) hash.ints(begin);
  hash.bytes(tasks_->data(), tasks_->size() * sizeof(Task));
  return hash.value();
}

std::string Plan::dump() const {
  std::ostringstream out;
  out.imbue(std::locale::classic());
  out << (options_.is_round ? "round " : "plan ") << std::hex << hash() << std::dec << ": " << num_workers()
      << " workers, " << tasks_->size() << " tasks, " << counters_.size() << " counters, arena " << arena_bytes_ << " bytes, up to "
      << options_.max_tokens << " tokens\n";
  for (size_t id = 0; id < buffers_.size(); ++id) {
    const BufferInfo& info = buffers_[id];
    out << "buffer " << id << ' ' << info.name << ' ' << space_name(info.space) << " [" << info.rows << ", "
        << info.cols << "] x " << info.element_bytes << " B";
    if (info.space == BufferInfo::Space::arena) out << " at " << info.offset;
    out << '\n';
  }
  for (uint32_t w = 0; w < num_workers(); ++w) {
    uint32_t task_idx = 0;
    for (const Task& task : tasks(w)) {
      out << 'w' << w << " #" << task_idx++ << ' ';
      dump_task(out, *this, task);
    }
  }
  return out.str();
}

}  // namespace mimo_rt
