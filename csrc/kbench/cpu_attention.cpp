#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kbench/attention_reference.h"
#include "kbench/cpu_subjects.h"
#include "weights/arena.h"

namespace mimo_rt::kbench {
namespace {

constexpr double kF32Unit = 0x1p-24;
constexpr double kBf16Unit = 0x1.01p-8;  // and the second order
constexpr bf16_t kNan = 0x7fc1;

/// The larger of `worst` and the largest error over its bound in one row of the output. A score is
/// off by at most (qk_dim + 3) u scale sum|q k|, its distance to the maximum by twice that and 90 u,
/// an exponential by 4 u more; rescaling and adding cost at most 8 u per key in numerator and
/// denominator each. The result is rounded to BF16 once.
double worst_row(double worst, const ReferenceHead& head, uint32_t qk_dim, const bf16_t* values,
                 uint32_t dim, const bf16_t* out) {
  const double score_error = (qk_dim + 3) * kF32Unit * head.score_magnitude;
  const double relative =
      2 * (2 * score_error + 94 * kF32Unit + 8 * kF32Unit * static_cast<double>(head.p.size()));
  for (uint32_t i = 0; i < dim; ++i) {
    const Product y = head.weighted(values, dim, i);
    worst = worst_of(worst, double{bf16_to_f32(out[i])}, y.value,
                     kBf16Unit * std::abs(y.value) + relative * y.magnitude);
  }
  return worst;
}

/// One layer's keys and values lie together: all keys of a head, then all its values.
class CpuAttention : public Subject {
 public:
  CpuAttention(const KernelCase& kernel_case, const KernelBenchOptions& options,
               const cpu::Kernels& kernels)
      : Subject(kernel_case), kernels_(kernels) {
    KernelCase& c = measured_;
    const double head_flops = 2.0 * c.num_tokens * c.num_q_per_kv * c.num_keys *
                              (c.qk_head_dim + c.v_head_dim);
    const auto most_heads = static_cast<uint32_t>(std::max(kCallFlops / head_flops, 1.0));
    c.num_kv_heads = std::min(c.num_kv_heads, most_heads);
    num_stored_ = uint64_t{c.num_keys} + c.num_tokens - 1;
    head_elements_ = num_stored_ * (c.qk_head_dim + c.v_head_dim);
    layer_bytes_ = (c.num_kv_heads * head_elements_ * 2 + 63) / 64 * 64;
    num_places_ = std::max<uint64_t>(rotation_bytes(options) / layer_bytes_, 1);
    kv_ = Arena(num_places_ * layer_bytes_, kWhere);
    const std::vector<bf16_t> random =
        random_bf16(c.num_kv_heads * head_elements_, options.seed);
    for (uint64_t place = 0; place < num_places_; ++place)
      std::memcpy(kv_.data() + place * layer_bytes_, random.data(), random.size() * 2);
    walk_ = std::make_unique<ColdWalk>(kv_.data(), num_places_, layer_bytes_);
    const uint64_t num_q = uint64_t{c.num_tokens} * c.num_kv_heads * c.num_q_per_kv;
    q_ = random_bf16(num_q * c.qk_head_dim, options.seed ^ 1);
    out_.resize(num_q * c.v_head_dim);
    sinks_.assign(c.num_q_per_kv, 1.0f);
    scratch_ = Arena(
        kernels_.attend_scratch_floats(c.num_q_per_kv, c.qk_head_dim, c.v_head_dim) * sizeof(float),
        kWhere);
    work_ = {static_cast<double>(c.num_kv_heads * head_elements_ * 2), head_flops * c.num_kv_heads,
             static_cast<double>(walk_->read_bytes())};
  }

  double worst_error() override {
    std::fill(out_.begin(), out_.end(), kNan);
    call(num_places_ - 1);
    for (const bf16_t value : out_)
      if (std::isnan(bf16_to_f32(value))) return std::numeric_limits<double>::infinity();
    const KernelCase& c = measured_;
    double worst = 0;
    for (const uint32_t token : spread_over(c.num_tokens, 2))
      for (const uint32_t head : spread_over(c.num_kv_heads, 2))
        for (const uint32_t i : spread_over(c.num_q_per_kv, 4)) {
          const uint64_t row = first_q(token, head) + i;
          const ReferenceHead reference(q_.data() + row * c.qk_head_dim,
                                        keys(num_places_ - 1, head, token), c.num_keys,
                                        c.qk_head_dim, double{scale()}, double{sinks_[i]});
          worst = worst_row(worst, reference, c.qk_head_dim, values(num_places_ - 1, head, token),
                            c.v_head_dim, out_.data() + row * c.v_head_dim);
        }
    return worst;
  }

  KernelTimes run(uint32_t num_calls) override {
    return walk_->run(num_calls, 1, [this](uint64_t place) { call(place); });
  }
  std::optional<VectorPeak> measure_peak() override {
    return product_peak(kernels_, PackedFormat::f32);  // attend is FP32 throughout
  }

 private:
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(measured_.qk_head_dim)); }
  uint64_t first_q(uint32_t token, uint32_t head) const {
    return (uint64_t{token} * measured_.num_kv_heads + head) * measured_.num_q_per_kv;
  }
  const bf16_t* head_data(uint64_t place, uint32_t head) const {
    return reinterpret_cast<const bf16_t*>(kv_.data() + place * layer_bytes_) +
           head * head_elements_;
  }
  const bf16_t* keys(uint64_t place, uint32_t head, uint32_t token) const {
    return head_data(place, head) + uint64_t{token} * measured_.qk_head_dim;
  }
  const bf16_t* values(uint64_t place, uint32_t head, uint32_t token) const {
    return head_data(place, head) + num_stored_ * measured_.qk_head_dim +
           uint64_t{token} * measured_.v_head_dim;
  }

  void call(uint64_t place) {
    const KernelCase& c = measured_;
    for (uint32_t head = 0; head < c.num_kv_heads; ++head)
      for (uint32_t token = 0; token < c.num_tokens; ++token) {
        const KvSegment segment{keys(place, head, token), values(place, head, token), c.num_keys};
        const uint64_t row = first_q(token, head);
        const cpu::AttendRow attended{q_.data() + row * c.qk_head_dim,
                                      out_.data() + row * c.v_head_dim, c.num_keys};
        kernels_.attend({&attended, 1, c.num_q_per_kv, c.qk_head_dim, c.v_head_dim, scale(),
                         sinks_.data(), &segment, 1, reinterpret_cast<float*>(scratch_.data())});
      }
  }

  const cpu::Kernels& kernels_;
  uint64_t num_stored_ = 0;     // keys of a head
  uint64_t head_elements_ = 0;  // keys and values of a head
  uint64_t layer_bytes_ = 0, num_places_ = 1;
  Arena kv_, scratch_;
  std::unique_ptr<ColdWalk> walk_;
  std::vector<bf16_t> q_, out_;
  std::vector<float> sinks_;
};

}  // namespace

std::unique_ptr<Subject> make_cpu_attention(const KernelCase& kernel_case,
                                            const KernelBenchOptions& options,
                                            const cpu::Kernels& kernels) {
  MIMO_RT_CHECK(kernel_case.format == "bf16", invalid_argument, kWhere,
                "format: expected bf16 keys and values, got '", kernel_case.format, "'");
  check_attention_case(kernel_case);
  return std::make_unique<CpuAttention>(kernel_case, options, kernels);
}

}  // namespace mimo_rt::kbench
