// Matrix products and what follows them: residual additions, dense MLP, router and experts.
#include "core/numeric.h"
#include "plan/buffers.h"
#include "plan/kinds.h"
#include "plan/route_table.h"
#include "ref/ops.h"
#include "ref/packed_access.h"

#include <algorithm>
#include <cmath>

namespace mimo_rt::ref {
namespace {

constexpr uint32_t kLanes = kTileRows;

double silu(double value) { return value / (1.0 + std::exp(-value)); }

RouteTable route_of(const ModelConfig& config, const Step& step) {
  const uint32_t max_slots = step.plan->options().max_tokens * config.experts_per_token;
  return RouteTable::view(step.buffers->data(kRoute), config.num_experts, max_slots);
}

}  // namespace

void Ops::project(const PackedMatrix& matrix, uint32_t group, const Rows& rows, uint32_t num_rows,
                  Rows& y) {
  unpacked_.resize(uint64_t{matrix.k} * kLanes);
  unpack_row_group(matrix, group, unpacked_.data());
  y.assign(uint64_t{num_rows} * kLanes, 0.0);
  const bool is_int8 = activations_ == Activations::int8 && matrix.format == PackedFormat::mxfp4;
  for (uint32_t r = 0; r < num_rows; ++r) {
    const double* row = rows.data() + uint64_t{r} * matrix.k;
    Rows x(row, row + matrix.k);
    for (uint32_t k = 0; is_int8 && k < matrix.k; k += kBlockK)
      round_to_int8(std::span<double, kBlockK>(x.data() + k, kBlockK));
    double sums[kLanes] = {};
    for (uint32_t k = 0; k < matrix.k; ++k)
      for (uint32_t lane = 0; lane < kLanes; ++lane)
        sums[lane] += unpacked_[k * kLanes + lane] * x[k];
    std::copy(sums, sums + kLanes, y.begin() + r * kLanes);
  }
}

void Ops::for_each_tile(const Task& task, const PackedMatrix& matrix, const Rows& rows,
                        uint32_t num_rows, const Epilogue& epilogue) {
  Rows y;
  for (uint32_t tile = task.tile_first; tile < task.tile_end; tile += task.tile_stride) {
    project(matrix, tile, rows, num_rows, y);
    for (uint32_t r = 0; r < num_rows; ++r) epilogue(tile, r, y.data() + r * kLanes);
  }
}

void Ops::add_to_residual(const Task& task, const Step& step, uint32_t row, uint32_t col,
                          double delta) const {
  double x = 0.0;
  step.buffers->read(task.output, row, col, 1, &x);
  step.buffers->write(task.output, row, col, x + delta);
  if (!(task.flags & kCapture)) return;
  step.buffers->read(task.output, row, col, 1, &x);  // a feature is x as it was rounded
  const auto slot = static_cast<uint32_t>(capture_index(step.plan->shape(), task.layer_idx));
  step.kv->write_feature(step.input->seq_idx[row], step.input->positions[row],
                         slot * config_.hidden_size + col, x);
}

/// Output projections, the draft's included: x += W rows, where the rows have `width` elements.
void Ops::output_proj(const Task& task, const Step& step, const PackedMatrix& matrix,
                      uint32_t width, uint32_t num_rows) {
  Rows rows(uint64_t{num_rows} * matrix.k);
  for (uint32_t t = 0; t < num_rows; ++t)
    step.buffers->read(task.input, t, 0, width, rows.data() + uint64_t{t} * matrix.k);
  for_each_tile(task, matrix, rows, num_rows, [&](uint32_t tile, uint32_t t, const double* y) {
    for (uint32_t i = 0; i < kLanes && tile * kLanes + i < config_.hidden_size; ++i)
      add_to_residual(task, step, t, tile * kLanes + i, y[i]);
  });
}

/// router and lm_head: FP32 results, padding columns included.
void Ops::logits(const Task& task, const Step& step, const PackedMatrix& matrix) {
  const bool is_head = task.kind == TaskKind::lm_head;
  const uint32_t num_rows = is_head ? step.input->num_logit_rows : step.input->num_tokens;
  const uint32_t* row_ids = is_head ? step.input->logit_rows : nullptr;
  const Rows rows = consumer_rows(task, step, row_ids, num_rows, matrix.k);
  for_each_tile(task, matrix, rows, num_rows, [&](uint32_t tile, uint32_t r, const double* y) {
    for (uint32_t i = 0; i < kLanes; ++i)
      step.buffers->write(task.output, r, tile * kLanes + i, y[i]);
  });
}

/// Columns [16 * pair, 16 * pair + 16) of act for some rows, stored from row `first_row` of act on.
void Ops::gate_up(const Task& task, const Step& step, const PackedMatrix& matrix, uint32_t pair,
                  const Rows& rows, uint32_t first_row, uint32_t num_rows, uint32_t width) {
  project(matrix, 2 * pair, rows, num_rows, gate_);
  project(matrix, 2 * pair + 1, rows, num_rows, up_);
  for (uint32_t r = 0; r < num_rows; ++r)
    for (uint32_t i = 0; i < kLanes && pair * kLanes + i < width; ++i)
      step.buffers->write(task.output, first_row + r, pair * kLanes + i,
                          silu(gate_[r * kLanes + i]) * up_[r * kLanes + i]);
}

void Ops::gate_up_proj(const Task& task, const Step& step) {
  const PackedMatrix& matrix = weights_.layer(task.layer_idx).gate_up;
  const uint32_t num_tokens = step.input->num_tokens;
  const Rows rows = consumer_rows(task, step, nullptr, num_tokens, matrix.k);
  for (uint32_t tile = task.tile_first; tile < task.tile_end; tile += task.tile_stride)
    gate_up(task, step, matrix, tile, rows, 0, num_tokens, config_.intermediate_size);
}

void Ops::select_experts(const Task& task, const Step& step) {
  const uint32_t num_experts = config_.num_experts, chosen = config_.experts_per_token;
  const float* bias = weights_.layer(task.layer_idx).router_bias;
  struct Slot {
    uint32_t expert, token;
    double weight;
  };
  std::vector<Slot> slots;
  Rows sigma(num_experts), score(num_experts);
  std::vector<uint32_t> order(num_experts);
  for (uint32_t t = 0; t < step.input->num_tokens; ++t) {
    step.buffers->read(task.input, t, 0, num_experts, sigma.data());
    for (uint32_t e = 0; e < num_experts; ++e) {
      sigma[e] = 1.0 / (1.0 + std::exp(-sigma[e]));
      score[e] = std::isnan(sigma[e]) ? -INFINITY : sigma[e] + (bias ? bias[e] : 0.0f);
      order[e] = e;
    }
    std::stable_sort(order.begin(), order.end(),  // stable: the lowest index wins a tie
                     [&](uint32_t a, uint32_t b) { return score[a] > score[b]; });
    double sum = 1e-20;
    for (uint32_t i = 0; i < chosen; ++i) sum += sigma[order[i]];
    for (uint32_t i = 0; i < chosen; ++i) {
      const double weight = sigma[order[i]] / (config_.norm_topk_prob ? sum : 1.0);
      slots.push_back({order[i], t, weight * config_.routed_scaling_factor});
    }
  }
  std::stable_sort(slots.begin(), slots.end(),
                   [](const Slot& a, const Slot& b) { return a.expert < b.expert; });

  RouteTable route = route_of(config_, step);
  uint32_t num_active = 0;
  slot_weights_.resize(slots.size());
  for (uint32_t s = 0; s < slots.size(); ++s) {
    if (s == 0 || slots[s].expert != slots[s - 1].expert) {
      route.active_experts[num_active] = slots[s].expert;
      route.slot_begin[num_active++] = s;
    }
    route.slot_token[s] = slots[s].token;
    route.slot_weight[s] = static_cast<float>(slots[s].weight);
    slot_weights_[s] = exact_ ? slots[s].weight : route.slot_weight[s];
  }
  route.slot_begin[num_active] = static_cast<uint32_t>(slots.size());
  *route.num_active = num_active;
  step.output->active_experts += num_active;
}

void Ops::expert_gate_up(const Task& task, const Step& step) {
  const LayerWeights& layer = weights_.layer(task.layer_idx);
  const RouteTable route = route_of(config_, step);
  const uint32_t width = config_.expert_intermediate_size, shares = task.tile_end;
  const uint32_t num_pairs = (width + kLanes - 1) / kLanes;
  const uint64_t num_tiles = uint64_t{shares} * *route.num_active;
  for (uint64_t t = task.tile_first; t < num_tiles; t += task.tile_stride) {
    const uint32_t i = static_cast<uint32_t>(t / shares), share = static_cast<uint32_t>(t % shares);
    const PackedMatrix& matrix = layer.expert_gate_up[route.active_experts[i]];
    const uint32_t begin = route.slot_begin[i], num_rows = route.slot_begin[i + 1] - begin;
    const Rows rows = consumer_rows(task, step, route.slot_token + begin, num_rows, matrix.k);
    for (uint32_t pair = share_begin(share, shares, num_pairs);
         pair < share_begin(share + 1, shares, num_pairs); ++pair)
      gate_up(task, step, matrix, pair, rows, begin, num_rows, width);
  }
}

void Ops::expert_down(const Task& task, const Step& step) {
  const LayerWeights& layer = weights_.layer(task.layer_idx);
  const RouteTable route = route_of(config_, step);
  const uint32_t width = config_.expert_intermediate_size;
  const uint32_t num_slots = route.slot_begin[*route.num_active];
  const uint32_t k = layer.expert_down[route.active_experts[0]].k;
  Rows act(uint64_t{num_slots} * k), y, expert_rows;
  for (uint32_t s = 0; s < num_slots; ++s)
    step.buffers->read(task.input, s, 0, width, act.data() + uint64_t{s} * k);
  for (uint32_t tile = task.tile_first; tile < task.tile_end; tile += task.tile_stride) {
    Rows sums(uint64_t{step.input->num_tokens} * kLanes);
    for (uint32_t i = 0; i < *route.num_active; ++i) {
      const uint32_t begin = route.slot_begin[i], end = route.slot_begin[i + 1];
      expert_rows.assign(act.data() + uint64_t{begin} * k, act.data() + uint64_t{end} * k);
      project(layer.expert_down[route.active_experts[i]], tile, expert_rows, end - begin, y);
      for (uint32_t s = begin; s < end; ++s)
        for (uint32_t lane = 0; lane < kLanes; ++lane)
          sums[route.slot_token[s] * kLanes + lane] +=
              slot_weights_[s] * y[(s - begin) * kLanes + lane];
    }
    for (uint32_t t = 0; t < step.input->num_tokens; ++t)
      for (uint32_t lane = 0; lane < kLanes && tile * kLanes + lane < config_.hidden_size; ++lane)
        add_to_residual(task, step, t, tile * kLanes + lane, sums[t * kLanes + lane]);
  }
}

}  // namespace mimo_rt::ref
