#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/activations.h"
#include "kbench/cpu_subjects.h"
#include "kbench/random_rows.h"
#include "weights/arena.h"

namespace mimo_rt::kbench {
namespace {

constexpr uint32_t kCheckedRows = 64, kCheckedTokens = 8;
constexpr uint32_t kHotGroups = 4;

class CpuGemm : public Subject {
 public:
  CpuGemm(const KernelCase& kernel_case, const KernelBenchOptions& options,
          const cpu::Kernels& kernels)
      : Subject(kernel_case),
        kernels_(kernels),
        format_(format_of(kernel_case.format)),
        is_int8_(options.activations == "int8"),
        group_bytes_(row_group_bytes(format_, kernel_case.k)) {
    cut_call(options);
    const uint64_t call_bytes = num_groups_ * group_bytes_;
    num_places_ = options.is_hot ? 1 : std::max<uint64_t>(rotation_bytes(options) / call_bytes, 1);
    weights_ = Arena(num_places_ * call_bytes, kWhere);
    for (uint64_t group = 0; group < num_places_ * num_groups_; ++group) {
      uint8_t* place = weights_.data() + group * group_bytes_;
      if (group < kDistinctPieces) {
        const RandomRows random(format_, measured_.k, options.seed + group);
        pack_rows(format_, measured_.k, measured_.k, random.rows(), place);
      } else {
        std::memcpy(place, place - kDistinctPieces * group_bytes_, group_bytes_);
      }
    }
    walk_ = std::make_unique<ColdWalk>(weights_.data(), num_places_, call_bytes);
    work_ = {static_cast<double>(call_bytes),
             2.0 * measured_.rows * measured_.k * measured_.num_tokens,
             static_cast<double>(walk_->read_bytes())};
    prepare(options.seed);
  }

  double worst_error() override {
    const double first = worst_error_at(0);
    return num_places_ == 1 ? first : std::max(first, worst_error_at(num_places_ - 1));
  }

  KernelTimes run(uint32_t num_calls) override {
    return walk_->run(num_calls, num_repeats_, [this](uint64_t place) { call(place); });
  }
  std::optional<VectorPeak> measure_peak() override { return product_peak(kernels_, format_); }

 private:
  /// Rows that a call multiplies; hot calls are short, several make up a sample.
  void cut_call(const KernelBenchOptions& options) {
    const double group_flops = 2.0 * kTileRows * measured_.k * measured_.num_tokens;
    const auto by_flops = static_cast<uint32_t>(std::max(kCallFlops / group_flops, 1.0));
    const auto by_bytes = static_cast<uint32_t>(std::max<uint64_t>(kCallBytes / group_bytes_, 1));
    const uint32_t limit = options.is_hot ? kHotGroups : std::min(by_flops, by_bytes);
    num_groups_ = std::min(measured_.rows / kTileRows, limit);
    if (options.is_hot) num_repeats_ = std::max(by_flops / (5 * num_groups_), 1u);
    measured_.rows = num_groups_ * kTileRows;
  }

  void prepare(uint64_t seed) {
    const KernelCase& c = measured_;
    x_ = random_bf16(uint64_t{c.num_tokens} * c.k, seed ^ 1);
    prepared_ = Arena(kernels_.prepared_bytes(code(), c.num_tokens, c.k), kWhere);
    kernels_.prepare(code(), {x_.data(), c.k, nullptr, c.num_tokens, c.k, c.k, prepared_.data()});
    y_.resize(uint64_t{c.num_tokens} * c.rows);
  }

  int code() const { return static_cast<int>(format_); }

  void call(uint64_t place) {
    kernels_.gemm(code(), {weights_.data() + place * num_groups_ * group_bytes_, num_groups_,
                           measured_.k, prepared_.data(), measured_.num_tokens, y_.data(),
                           measured_.rows});
  }

  /// A block of 32 k has at most 32 products and 32 additions, its scale and its addition to the
  /// running sum are two more, the final sum one. 2^-126 per product covers flushed subnormals.
  /// INT8 activations are exact products of what x is rounded to.
  double worst_error_at(uint64_t place) {
    std::fill(y_.begin(), y_.end(), std::numeric_limits<float>::quiet_NaN());
    call(place);
    for (const float y : y_)
      if (std::isnan(y)) return std::numeric_limits<double>::infinity();
    const uint32_t k = measured_.k;
    const double relative = rounding_of(65.0 + 2.0 * (k / 32.0), 0x1p-24);
    const PackedMatrix matrix{weights_.data() + place * num_groups_ * group_bytes_, format_,
                              measured_.rows, k};
    double worst = 0;
    for (const uint32_t row : spread_over(measured_.rows, kCheckedRows)) {
      const std::vector<double> weights = row_values(format_, unpack_row(matrix, row), k);
      for (const uint32_t token : spread_over(measured_.num_tokens, kCheckedTokens)) {
        const Product p = dot(weights, inputs(token));
        worst = worst_of(worst, double{y_[uint64_t{token} * measured_.rows + row]}, p.value,
                         relative * p.magnitude + k * 0x1p-126);
      }
    }
    return worst;
  }

  /// What the kernel multiplies for a token.
  std::vector<double> inputs(uint32_t token) const {
    std::vector<double> x(measured_.k);
    for (uint32_t i = 0; i < measured_.k; ++i)
      x[i] = double{bf16_to_f32(x_[uint64_t{token} * measured_.k + i])};
    for (uint32_t i = 0; is_int8_ && i < measured_.k; i += kBlockK)
      round_to_int8(std::span<double, kBlockK>(x.data() + i, kBlockK));
    return x;
  }

  const cpu::Kernels& kernels_;
  const PackedFormat format_;
  const bool is_int8_;
  const uint64_t group_bytes_;
  uint32_t num_groups_ = 0, num_repeats_ = 1;
  uint64_t num_places_ = 1;
  Arena weights_, prepared_;
  std::unique_ptr<ColdWalk> walk_;
  std::vector<bf16_t> x_;
  std::vector<float> y_;
};

}  // namespace

std::unique_ptr<Subject> make_cpu_gemm(const KernelCase& kernel_case,
                                       const KernelBenchOptions& options,
                                       const cpu::Kernels& kernels) {
  check_matrix(kernel_case);
  return std::make_unique<CpuGemm>(kernel_case, options, kernels);
}

}  // namespace mimo_rt::kbench
