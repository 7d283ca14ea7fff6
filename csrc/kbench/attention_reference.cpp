#include "kbench/attention_reference.h"

#include <algorithm>
#include <cmath>

namespace mimo_rt::kbench {

ReferenceHead::ReferenceHead(const bf16_t* q, const bf16_t* keys, uint32_t num_keys, uint32_t dim,
                             double scale, double sink) {
  std::vector<double> row(dim);
  for (uint32_t i = 0; i < dim; ++i) row[i] = double{bf16_to_f32(q[i])} * scale;
  double max = sink, min = sink;
  for (uint32_t j = 0; j < num_keys; ++j) {
    const Product score = dot(row, keys + uint64_t{j} * dim);
    p.push_back(score.value);
    max = std::max(max, score.value);
    min = std::min(min, score.value);
    score_magnitude = std::max(score_magnitude, score.magnitude);
  }
  range = max - min;
  max_abs = std::abs(max);
  double sum = std::exp(sink - max);
  for (double& x : p) sum += x = std::exp(x - max);
  for (double& x : p) x /= sum;
}

Product ReferenceHead::weighted(const bf16_t* values, uint32_t dim, uint32_t i) const {
  Product sum;
  for (size_t j = 0; j < p.size(); ++j) {
    const double term = p[j] * double{bf16_to_f32(values[j * dim + i])};
    sum.value += term;
    sum.magnitude += std::abs(term);
  }
  return sum;
}

}  // namespace mimo_rt::kbench
