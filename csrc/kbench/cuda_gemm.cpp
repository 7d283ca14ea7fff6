#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kbench/cuda_subjects.h"
#include "kbench/random_rows.h"
#include "weights/pack_cuda_dense.h"

namespace mimo_rt::kbench {
namespace {

constexpr uint32_t kCheckedRows = 64, kCheckedTokens = 8;
constexpr uint64_t kRotationBytes = uint64_t{256} << 20;

class CudaGemm : public Subject {
 public:
  CudaGemm(const KernelCase& kernel_case, const KernelBenchOptions& options,
           std::unique_ptr<cuda::BenchDevice> device)
      : Subject(kernel_case),
        device_(std::move(device)),
        shape_{format_of(kernel_case.format), kernel_case.rows, kernel_case.k} {
    const uint64_t rotation = options.rotation_bytes ? options.rotation_bytes : kRotationBytes;
    num_places_ = static_cast<uint32_t>(std::max<uint64_t>(rotation / shape_.bytes(), 1));
    params_.num_tokens = measured_.num_tokens;
    params_.rows = measured_.rows;
    params_.k = measured_.k;
    params_.num_columns = measured_.rows;
    params_.format =
        shape_.is_fp8() ? cuda::ProjectionFormat::fp8_e4m3 : cuda::ProjectionFormat::bf16;
    upload_weights(options.seed);
    x_ = random_bf16(uint64_t{measured_.num_tokens} * measured_.k, options.seed ^ 1);
    void* x = device_->allocate(x_.size() * sizeof(bf16_t));
    device_->upload(x, x_.data(), x_.size() * sizeof(bf16_t));
    params_.x = {static_cast<const uint16_t*>(x), measured_.k};
    y_.resize(uint64_t{measured_.num_tokens} * measured_.rows);
    params_.out_f32 = {static_cast<float*>(device_->allocate(y_.size() * sizeof(float))),
                       measured_.rows};
    work_.bytes = static_cast<double>(shape_.bytes());
    work_.flops = 2.0 * measured_.rows * measured_.k * measured_.num_tokens;
    work_.read_bytes = static_cast<double>(device_->read_bytes());
  }

  double worst_error() override {
    const double first = worst_error_at(0);
    return num_places_ == 1 ? first : std::max(first, worst_error_at(num_places_ - 1));
  }

  KernelTimes run(uint32_t num_calls) override {
    return device_->time(num_calls, [this](uint32_t) { call(next_++ % num_places_); });
  }

 private:
  void upload_weights(uint64_t seed) {
    const uint32_t num_groups = shape_.num_row_groups() * num_places_;
    const uint32_t num_distinct = std::min(num_groups, kDistinctPieces);
    host_tiles_.resize(num_distinct * shape_.group_bytes());
    for (uint32_t group = 0; group < num_distinct; ++group) {
      const RandomRows random(shape_.format, shape_.k, seed + group);
      pack_cuda_dense_rows(shape_, random.rows(), host_tiles_.data() + group * shape_.group_bytes());
    }
    tiles_ = static_cast<uint8_t*>(device_->allocate(num_groups * shape_.group_bytes()));
    device_->upload(tiles_, host_tiles_.data(), host_tiles_.size());
    for (uint32_t done = num_distinct; done < num_groups; done += num_distinct)
      device_->copy(tiles_ + done * shape_.group_bytes(), tiles_,
                    std::min(num_distinct, num_groups - done) * shape_.group_bytes());
  }

  void call(uint32_t place) {
    params_.tiles = tiles_ + place * shape_.bytes();
    device_->launch(params_);
  }

  /// k additions of exact products, one FMA per scale block, the parts of K.
  double worst_error_at(uint32_t place) {
    std::fill(y_.begin(), y_.end(), std::numeric_limits<float>::quiet_NaN());
    device_->upload(params_.out_f32.data, y_.data(), y_.size() * sizeof(float));
    call(place);
    device_->download(y_.data(), params_.out_f32.data, y_.size() * sizeof(float));
    for (const float y : y_)
      if (std::isnan(y)) return std::numeric_limits<double>::infinity();
    // Tensor cores truncate where FP32 rounds: 2^-23 a step.
    const double relative = rounding_of(shape_.k + shape_.tiles_per_group() + 2.0 * 8, 0x1p-23);
    const auto num_distinct = static_cast<uint32_t>(host_tiles_.size() / shape_.group_bytes());
    double worst = 0;
    for (const uint32_t row : spread_over(shape_.rows, kCheckedRows)) {
      const uint32_t group = (place * shape_.num_row_groups() + row / kTileRows) % num_distinct;
      const UnpackedRow unpacked = unpack_cuda_dense_row(
          shape_, host_tiles_.data(), group * kTileRows + row % kTileRows);
      const std::vector<double> weights = row_values(shape_.format, unpacked, shape_.k);
      for (const uint32_t token : spread_over(measured_.num_tokens, kCheckedTokens)) {
        const Product p = dot(weights, x_.data() + uint64_t{token} * shape_.k);
        worst = worst_of(worst, double{y_[uint64_t{token} * shape_.rows + row]}, p.value,
                         relative * p.magnitude + 0x1p-120);
      }
    }
    return worst;
  }

  std::unique_ptr<cuda::BenchDevice> device_;
  const CudaDenseShape shape_;
  uint32_t num_places_ = 1, next_ = 0;
  uint8_t* tiles_ = nullptr;
  std::vector<uint8_t> host_tiles_;  // the distinct groups
  std::vector<bf16_t> x_;
  std::vector<float> y_;
  cuda::ProjectionParams params_;
};

}  // namespace

std::unique_ptr<Subject> make_cuda_gemm(const KernelCase& kernel_case,
                                        const KernelBenchOptions& options,
                                        std::unique_ptr<cuda::BenchDevice> device) {
  const PackedFormat format = format_of(kernel_case.format);
  MIMO_RT_CHECK(format == PackedFormat::fp8_e4m3 || format == PackedFormat::bf16, unavailable,
                kWhere, "format: expected fp8_e4m3 or bf16 for gemm on cuda, got '",
                kernel_case.format, "'");
  check_matrix(kernel_case);
  check_at_most("num_tokens", kernel_case.num_tokens, cuda::kMaxTokens);
  return std::make_unique<CudaGemm>(kernel_case, options, std::move(device));
}

}  // namespace mimo_rt::kbench
