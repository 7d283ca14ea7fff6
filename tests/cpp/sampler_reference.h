// What sampling parameters mean, in long double with full sorts and no shortcuts; and the chi-square test of counts.
#pragma once

#include <mimo_rt/sampling.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace sampler_reference {

using mimo_rt::SamplingParams;

/// What a draw depends on.
struct Setting {
  std::vector<float> logits;
  SamplingParams params;
  std::vector<uint32_t> counts = {};
  std::vector<int32_t> masked = {};
};

/// The distribution that the parameters define.
inline std::vector<long double> enumerate(const Setting& setting) {
  const size_t n = setting.logits.size();
  const SamplingParams& p = setting.params;
  std::vector<long double> score(n), probability(n, 0.0L);
  std::vector<size_t> order;
  for (size_t i = 0; i < n; ++i) {
    score[i] = setting.logits[i];
    for (const mimo_rt::TokenBias& bias : p.logit_bias)
      if (size_t(bias.token_id) == i) score[i] += bias.bias;
    if (!setting.counts.empty() && setting.counts[i])
      score[i] = score[i] > 0 ? score[i] / p.repetition_penalty : score[i] * p.repetition_penalty;
    const bool masked = std::count(setting.masked.begin(), setting.masked.end(), int(i)) > 0;
    if (std::isfinite(setting.logits[i]) && !masked) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return score[a] > score[b]; });
  if (p.sample_top_k && order.size() > p.sample_top_k) order.resize(p.sample_top_k);
  const long double best = score[order[0]];
  const auto softmax = [&] {
    std::fill(probability.begin(), probability.end(), 0.0L);
    long double sum = 0;
    for (const size_t i : order) sum += std::exp((score[i] - best) / p.temperature);
    for (const size_t i : order) probability[i] = std::exp((score[i] - best) / p.temperature) / sum;
  };
  softmax();
  long double before = 0;
  size_t kept = 0;
  while (kept < order.size() && before < p.sample_top_p) before += probability[order[kept++]];
  if (p.sample_top_p < 1.0f) order.resize(kept);
  softmax();
  const long double floor = p.min_p * probability[order[0]];
  std::erase_if(order, [&](size_t i) { return probability[i] < floor; });
  softmax();
  return probability;
}

/// Upper tail of the chi-square distribution: regularised incomplete gamma Q(dof/2, x/2).
inline double chi_square_tail(double x, double dof) {
  const double a = dof / 2, z = x / 2;
  if (z <= 0) return 1.0;
  const double front = std::exp(a * std::log(z) - z - std::lgamma(a));
  if (z < a + 1) {
    double term = 1 / a, sum = term;
    for (int i = 1; i < 2000; ++i) sum += term *= z / (a + i);
    return 1.0 - front * sum;
  }
  double b = z + 1 - a, c = 1e300, d = 1 / b, h = d;  // continued fraction, Lentz
  for (int i = 1; i < 2000; ++i) {
    const double an = -i * (i - a);
    b += 2;
    d = 1 / (an * d + b);
    c = b + an / c;
    h *= d * c;
  }
  return front * h;
}

/// p-value of counts under `expected` probabilities; 0 when something impossible was seen. Cells that expect fewer than
/// five are merged.
inline double p_value(const std::vector<double>& seen, const std::vector<long double>& expected) {
  double num_draws = 0, statistic = 0, rest_seen = 0, rest_expected = 0;
  for (const double count : seen) num_draws += count;
  int cells = 0;
  const auto add = [&](double count, double want) {
    statistic += (count - want) * (count - want) / want;
    ++cells;
  };
  for (size_t i = 0; i < expected.size(); ++i) {
    const double want = static_cast<double>(expected[i]) * num_draws;
    if (want == 0 && seen[i] > 0) return 0.0;
    if (want >= 5) add(seen[i], want);
    else rest_seen += seen[i], rest_expected += want;
  }
  if (rest_expected >= 5) add(rest_seen, rest_expected);
  if (cells < 2) return 1.0;
  return chi_square_tail(statistic, cells - 1);
}

inline std::vector<float> random_logits(size_t n, float scale, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<float> logits(n);
  for (float& x : logits)  // a sum of uniforms: the same numbers with every standard library
    x = scale * (float(generator() % 1000 + generator() % 1000 + generator() % 1000) / 500 - 3);
  return logits;
}

inline SamplingParams sampling(float temperature, uint32_t k = 0, float p = 1, float min_p = 0,
                        float penalty = 1, uint64_t seed = 7) {
  return {.temperature = temperature, .sample_top_k = k, .sample_top_p = p, .min_p = min_p,
          .repetition_penalty = penalty, .seed = seed};
}

}  // namespace sampler_reference
