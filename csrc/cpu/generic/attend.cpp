// Attention over one kv head: online softmax, one token and one key at a time.
//
// Per head (m: running maximum, l: running denominator, o: running output):
//   m' = max(m, s_j)   l = l e^(m - m') + e^(s_j - m')   o = o e^(m - m') + e^(s_j - m') v_j
// A block is one key, so segment boundaries cannot matter. A sink starts as m = sink, l = 1.
#include <math.h>

#include "entries.h"
#include "scalar.h"

namespace mimo_rt::cpu::generic {
namespace {

static float score(const AttendArgs& args, const bf16_t* q, const bf16_t* k) {
  float sums[8] = {};
  for (uint32_t i = 0; i < args.qk_head_dim; ++i) sums[i % 8] += widen(q[i]) * widen(k[i]);
  const float sum =
      ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
  return sum * args.scale;
}

static void attend_row(const AttendArgs& args, const AttendRow& row) {
  float* acc = args.scratch;
  for (uint32_t h = 0; h < args.num_q; ++h) {
    const bf16_t* q = row.q + uint64_t{h} * args.qk_head_dim;
    const bool has_sink = args.sink_logit && args.sink_logit[h] > -1e30f;
    float max = has_sink ? args.sink_logit[h] : -1e30f;
    float sum = has_sink ? 1.0f : 0.0f;
    for (uint32_t i = 0; i < args.v_head_dim; ++i) acc[i] = 0.0f;
    uint32_t left = row.num_keys;
    for (const KvSegment* s = args.segments; left; ++s) {
      const uint32_t num_keys = s->num_keys < left ? s->num_keys : left;
      left -= num_keys;
      for (uint32_t j = 0; j < num_keys; ++j) {
        const float logit = score(args, q, s->k + uint64_t{j} * args.qk_head_dim);
        const bf16_t* v = s->v + uint64_t{j} * args.v_head_dim;
        const float new_max = logit > max ? logit : max;
        const float factor = expf(max - new_max), p = expf(logit - new_max);
        sum = sum * factor + p;
        for (uint32_t i = 0; i < args.v_head_dim; ++i) acc[i] = acc[i] * factor + p * widen(v[i]);
        max = new_max;
      }
    }
    for (uint32_t i = 0; i < args.v_head_dim; ++i)
      row.out[uint64_t{h} * args.v_head_dim + i] = narrow(acc[i] / sum);
  }
}

}  // namespace

uint64_t attend_scratch_floats(uint32_t, uint32_t, uint32_t v_head_dim) { return v_head_dim; }

void attend(const AttendArgs& args) {
  for (uint32_t r = 0; r < args.num_rows; ++r) attend_row(args, args.rows[r]);
}

}  // namespace mimo_rt::cpu::generic
