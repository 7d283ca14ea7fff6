#include <algorithm>

#include "kbench/cuda_subject.h"
#include "kbench/cuda_subjects.h"
#include "weights/pack_cuda_dense.h"

namespace mimo_rt::kbench {
namespace {

class CudaGemm final : public RowsSubject<cuda::ProjectionParams, float> {
 public:
  CudaGemm(const KernelCase& c, const KernelBenchOptions& options,
           std::unique_ptr<cuda::BenchDevice> device)
      : RowsSubject(c, std::move(device)),
        shape_{format_of(c.format), c.rows, c.k},
        x_(random_bf16(uint64_t{c.num_tokens} * c.k, options.seed ^ 1)) {
    num_places_ = static_cast<uint32_t>(
        std::max<uint64_t>(cuda_rotation_bytes(options) / shape_.bytes(), 1));
    upload_weights(options.seed);
    params_.num_tokens = c.num_tokens;
    params_.rows = params_.num_columns = c.rows;
    params_.k = c.k;
    params_.format =
        shape_.is_fp8() ? cuda::ProjectionFormat::fp8_e4m3 : cuda::ProjectionFormat::bf16;
    params_.x = {upload(x_), c.k};
    params_.out_f32 = make_out(c.num_tokens, c.rows);
    work_.bytes = static_cast<double>(shape_.bytes());
    work_.flops = 2.0 * c.rows * c.k * c.num_tokens;
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

  void aim(uint32_t place) override { params_.tiles = tiles_ + place * shape_.bytes(); }

  /// k additions of exact products, one FMA per scale block, the parts of K.
  Bounded expected(uint32_t place, uint32_t token, uint32_t row) override {
    const auto num_distinct = static_cast<uint32_t>(host_tiles_.size() / shape_.group_bytes());
    const uint32_t group = (place * shape_.num_row_groups() + row / kTileRows) % num_distinct;
    const UnpackedRow unpacked =
        unpack_cuda_dense_row(shape_, host_tiles_.data(), group * kTileRows + row % kTileRows);
    const Product p = dot(row_values(shape_.format, unpacked, shape_.k),
                          x_.data() + uint64_t{token} * shape_.k);
    const double n = shape_.k + shape_.tiles_per_group() + 2.0 * 8;
    return {p.value, rounding_of(n, kProductSumUnit) * p.magnitude + 0x1p-120};
  }

  const CudaDenseShape shape_;
  const std::vector<bf16_t> x_;
  uint8_t* tiles_ = nullptr;
  std::vector<uint8_t> host_tiles_;  // the distinct groups
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
