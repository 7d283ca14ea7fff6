#include <cmath>

#include "kbench/cuda_subjects.h"
#include "kbench/dense_operands.h"
#include "weights/qkv_tiles.h"
#include "weights/random_fill.h"

namespace mimo_rt::kbench {
namespace {

constexpr float kValueScale = 0.612f;

LayerConfig layer_of(const KernelCase& c) {
  LayerConfig layer;
  layer.num_kv_heads = c.num_kv_heads;
  layer.num_q_heads = c.num_kv_heads * c.num_q_per_kv;
  layer.qk_head_dim = c.qk_head_dim;
  layer.v_head_dim = c.v_head_dim;
  layer.rotary_dim = c.qk_head_dim / 3 / 2 * 2;  // 64 of 192, as in the published models
  return layer;
}

/// "gemm_qkv": RoPE, value scale, and k and v to the rows of a cache. A row of the result is that of
/// q, then of k, then of v.
class CudaQkv final : public RowsSubject<cuda::ProjectionParams, uint16_t> {
 public:
  CudaQkv(const KernelCase& c, const KernelBenchOptions& options,
          std::unique_ptr<cuda::BenchDevice> device)
      : RowsSubject(c, std::move(device)),
        layer_(layer_of(c)),
        tiles_(qkv_tiles(layer_)),
        operands_(c, static_cast<uint32_t>(tiles_.size()) * kTileRows, false,
                  cuda_rotation_bytes(options), options.seed, *device_) {
    num_places_ = operands_.num_places();
    params_ = operands_.params();
    params_.store = cuda::ProjectionStore::qkv;
    list_columns();
    make_angles(options.seed);
    set_output();
    operands_.add_work(work_);
  }

 private:
  /// A column of the result: its packed row and, where it rotates, that of its partner.
  struct Column {
    uint32_t row = 0, pair = 0;
    bool is_rotary = false, is_first = false, is_value = false;
  };

  uint32_t q_dims() const { return layer_.num_q_heads * layer_.qk_head_dim; }
  uint32_t k_dims() const { return layer_.num_kv_heads * layer_.qk_head_dim; }
  uint32_t v_dims() const { return layer_.num_kv_heads * layer_.v_head_dim; }

  void list_columns() {
    columns_.resize(q_dims() + k_dims() + v_dims());
    for (uint32_t i = 0; i < tiles_.size(); ++i)
      for (uint32_t row = 0; row < kTileRows; ++row) {
        const QkvTile& tile = tiles_[i];
        const int32_t element = qkv_tile_element(tile, layer_, row);
        if (element < 0) continue;
        const bool is_value = tile.part == QkvTile::Part::v;
        const uint32_t begin = tile.part == QkvTile::Part::q ? 0 : q_dims() + (is_value ? k_dims() : 0);
        const uint32_t dim = is_value ? layer_.v_head_dim : layer_.qk_head_dim;
        columns_[begin + tile.head_idx * dim + static_cast<uint32_t>(element)] = {
            i * kTileRows + row, tile.dim_begin + row % 8, tile.rotary, row < 8, is_value};
      }
  }

  void make_angles(uint64_t seed) {
    Random random(seed ^ 4);
    for (uint32_t i = 0; i < measured_.num_tokens * layer_.rotary_dim / 2; ++i) {
      const double angle = static_cast<double>(random.next() % 1000) * 0.0063;
      cos_sin_.push_back(static_cast<float>(std::cos(angle)));
      cos_sin_.push_back(static_cast<float>(std::sin(angle)));
    }
  }

  void set_output() {
    const auto out = make_out(measured_.num_tokens, q_dims() + k_dims() + v_dims());
    std::vector<uint16_t*> k_rows, v_rows;
    for (uint32_t token = 0; token < measured_.num_tokens; ++token) {
      k_rows.push_back(out.data + uint64_t{token} * out.stride + q_dims());
      v_rows.push_back(k_rows.back() + k_dims());
    }
    cuda::QkvOutput& qkv = params_.qkv;
    qkv.tiles = upload(tiles_);
    qkv.q = out;
    qkv.k_rows = upload(k_rows);
    qkv.v_rows = upload(v_rows);
    qkv.k_head_stride = layer_.qk_head_dim;
    qkv.v_head_stride = layer_.v_head_dim;
    qkv.cos_sin = upload(cos_sin_);
    qkv.qk_head_dim = layer_.qk_head_dim;
    qkv.rotary_dim = layer_.rotary_dim;
    qkv.value_scale = kValueScale;
    qkv.num_q_heads = layer_.num_q_heads;
  }

  void aim(uint32_t place) override { params_.tiles = operands_.tiles(place); }

  /// A product and an FMA, or the product with the scale.
  Bounded expected(uint32_t place, uint32_t token, uint32_t column_idx) override {
    const Column& column = columns_[column_idx];
    const Bounded y = operands_.product(place, token, column.row);
    if (!column.is_rotary) {
      const double scale = column.is_value ? double{kValueScale} : 1.0;
      return rounded({scale * y.value,
                      scale * (y.bound + kF32Unit * (std::abs(y.value) + y.bound))});
    }
    const Bounded partner = operands_.product(place, token, column.row ^ 8);
    const float* angle = cos_sin_.data() + uint64_t{token} * layer_.rotary_dim + 2 * column.pair;
    const double cos = double{angle[0]}, sin = column.is_first ? -double{angle[1]} : double{angle[1]};
    const double magnitude = std::abs(cos) * (std::abs(y.value) + y.bound) +
                             std::abs(sin) * (std::abs(partner.value) + partner.bound);
    return rounded({cos * y.value + sin * partner.value,
                    std::abs(cos) * y.bound + std::abs(sin) * partner.bound +
                        rounding_of(2, kF32Unit) * magnitude});
  }

  const LayerConfig layer_;
  const std::vector<QkvTile> tiles_;
  const DenseOperands operands_;
  std::vector<Column> columns_;
  std::vector<float> cos_sin_;  // [num_tokens, rotary_dim]
};

}  // namespace

std::unique_ptr<Subject> make_cuda_qkv(const KernelCase& c, const KernelBenchOptions& options,
                                       std::unique_ptr<cuda::BenchDevice> device) {
  check_projection_case(c);
  check_dim("num_kv_heads", c.num_kv_heads);
  check_dim("num_q_per_kv", c.num_q_per_kv);
  check_multiple("qk_head_dim", c.qk_head_dim, 8);
  check_multiple("v_head_dim", c.v_head_dim, 8);
  return std::make_unique<CudaQkv>(c, options, std::move(device));
}

}  // namespace mimo_rt::kbench
