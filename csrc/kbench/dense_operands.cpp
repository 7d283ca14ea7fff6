#include "kbench/dense_operands.h"

#include <algorithm>
#include <cmath>

#include "weights/random_fill.h"

namespace mimo_rt::kbench {

DenseOperands::DenseOperands(const KernelCase& c, uint32_t rows, bool is_normed,
                             uint64_t rotation_bytes, uint64_t seed, cuda::BenchDevice& device)
    : shape_{format_of(c.format), rows, c.k}, num_tokens_(c.num_tokens), is_normed_(is_normed) {
  num_places_ =
      static_cast<uint32_t>(std::max<uint64_t>(rotation_bytes / shape_.bytes(), 1));
  upload_weights(seed, device);
  const std::vector<bf16_t> x = random_bf16(uint64_t{c.num_tokens} * c.k, seed ^ 1);
  auto* memory = static_cast<uint16_t*>(device.allocate(x.size() * sizeof(uint16_t)));
  device.upload(memory, x.data(), x.size() * sizeof(uint16_t));
  device_x_ = {memory, c.k};
  if (!is_normed) {
    for (const bf16_t value : x) a_.push_back(double{bf16_to_f32(value)});
    return;
  }
  const std::vector<float> weights = norm_weights(c.k, seed ^ 2);
  auto* norm = static_cast<float*>(device.allocate(weights.size() * sizeof(float)));
  device.upload(norm, weights.data(), weights.size() * sizeof(float));
  device_norm_ = norm;
  a_ = normalised(x, weights);
}

void DenseOperands::upload_weights(uint64_t seed, cuda::BenchDevice& device) {
  const uint32_t num_groups = shape_.num_row_groups() * num_places_;
  const uint32_t num_distinct = std::min(num_groups, kDistinctPieces);
  host_tiles_.resize(num_distinct * shape_.group_bytes());
  for (uint32_t group = 0; group < num_distinct; ++group) {
    const RandomRows random(shape_.format, shape_.k, seed + group);
    pack_cuda_dense_rows(shape_, random.rows(), host_tiles_.data() + group * shape_.group_bytes());
  }
  tiles_ = static_cast<uint8_t*>(device.allocate(num_groups * shape_.group_bytes()));
  device.upload(tiles_, host_tiles_.data(), host_tiles_.size());
  for (uint32_t done = num_distinct; done < num_groups; done += num_distinct)
    device.copy(tiles_ + done * shape_.group_bytes(), tiles_,
                std::min(num_distinct, num_groups - done) * shape_.group_bytes());
}

cuda::ProjectionParams DenseOperands::params() const {
  cuda::ProjectionParams p;
  p.tiles = tiles_;
  p.x = device_x_;
  p.norm_weight = device_norm_;
  p.norm_eps = kNormEps;
  p.num_tokens = num_tokens_;
  p.rows = p.num_columns = shape_.rows;
  p.k = shape_.k;
  p.format = shape_.is_fp8() ? cuda::ProjectionFormat::fp8_e4m3 : cuda::ProjectionFormat::bf16;
  return p;
}

void DenseOperands::add_work(KernelWork& work) const {
  work.bytes += static_cast<double>(shape_.bytes());
  work.flops += 2.0 * shape_.rows * shape_.k * num_tokens_;
}

/// k additions of exact products, one FMA per scale block, the parts of K; the norm.
Bounded DenseOperands::product(uint32_t place, uint32_t token, uint32_t row_idx) const {
  const auto num_distinct = static_cast<uint32_t>(host_tiles_.size() / shape_.group_bytes()) * kTileRows;
  const uint32_t distinct_row = (place * shape_.num_row_groups() * kTileRows + row_idx) % num_distinct;
  const std::vector<double> row =
      row_values(shape_.format, unpack_cuda_dense_row(shape_, host_tiles_.data(), distinct_row), shape_.k);
  const Product p = dot(row, std::span(a_).subspan(uint64_t{token} * shape_.k, shape_.k));
  const double input_error = is_normed_ ? norm_error(shape_.k) : 0.0;
  const double n = shape_.k + shape_.tiles_per_group() + 2.0 * 8;
  const double sum_error = rounding_of(n, kProductSumUnit) * (1 + input_error);
  return {p.value, (sum_error + input_error) * p.magnitude + 0x1p-120};
}

std::vector<float> norm_weights(uint32_t k, uint64_t seed) {
  Random random(seed);
  std::vector<float> weights(k);
  for (float& weight : weights) weight = 0.5f + static_cast<float>(random.next() % 64) / 64;
  return weights;
}

std::vector<double> normalised(std::span<const bf16_t> rows, std::span<const float> weights) {
  const size_t k = weights.size();
  std::vector<double> result;
  result.reserve(rows.size());
  for (size_t begin = 0; begin < rows.size(); begin += k) {
    double squares = 0;
    for (size_t i = 0; i < k; ++i) squares += std::pow(double{bf16_to_f32(rows[begin + i])}, 2);
    const double factor = 1 / std::sqrt(squares / static_cast<double>(k) + double{kNormEps});
    for (size_t i = 0; i < k; ++i)
      result.push_back(double{bf16_to_f32(rows[begin + i])} * factor * double{weights[i]});
  }
  return result;
}

void check_projection_case(const KernelCase& c) {
  const PackedFormat format = format_of(c.format);
  MIMO_RT_CHECK(format == PackedFormat::fp8_e4m3 || format == PackedFormat::bf16, unavailable,
                kWhere, "format: expected fp8_e4m3 or bf16 for ", c.kernel, " on cuda, got '",
                c.format, "'");
  check_positive("num_tokens", c.num_tokens);
  check_at_most("num_tokens", c.num_tokens, cuda::kMaxTokens);
  check_multiple("k", c.k, kBlockK);
}

}  // namespace mimo_rt::kbench
