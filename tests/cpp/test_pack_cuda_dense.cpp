// The CUDA packing of FP8 and BF16 matrices against the checkpoint's bytes, and its layout against
// the formulas of csrc/weights/cuda_dense_tiles.h worked out by hand. All comparisons are of bytes.
#include "check.h"
#include "pack_fixture.h"
#include "weights/pack_cuda_dense.h"

using namespace mimo_rt;
using namespace fixture;

namespace {

/// Packs over garbage, with a guard behind: every byte of the result must be written, none more.
std::vector<uint8_t> pack_guarded(const PackJob& job, const CudaDenseShape& shape) {
  std::vector<uint8_t> packed(shape.bytes() + 16, 0xa5), other(shape.bytes() + 16, 0x5a);
  for (uint32_t group = 0; group < shape.num_row_groups(); ++group) {
    pack_cuda_dense_group(job, shape, group, packed.data() + group * shape.group_bytes());
    pack_cuda_dense_group(job, shape, group, other.data() + group * shape.group_bytes());
  }
  CHECK(std::equal(packed.begin(), packed.end() - 16, other.begin()));
  for (uint32_t i = 0; i < 16; ++i) CHECK_EQ(packed[shape.bytes() + i], 0xa5);
  packed.resize(shape.bytes());
  return packed;
}

/// Whether packed row `packed_row` is what the job says: a stored row and zeros, or all padding.
bool holds(const PackJob& job, const CudaDenseShape& shape, const std::vector<uint8_t>& packed,
           uint32_t packed_row) {
  const UnpackedRow unpacked = unpack_cuda_dense_row(shape, packed.data(), packed_row);
  const RowRef ref = cuda_dense_group_rows(job, packed_row / 16)[packed_row % 16];
  std::string codes, scales;
  if (ref.row != RowRef::kPadding) {
    const MatrixSource& source = job.sources[ref.source_idx];
    codes = text(source.row_data(ref.row));
    if (shape.is_fp8()) scales = text(source.row_scales(ref.row));
  } else if (shape.is_fp8()) {
    const float one = 1.0f;
    for (uint32_t t = 0; t < shape.tiles_per_group(); ++t)
      scales += std::string(reinterpret_cast<const char*>(&one), 4);
  }
  codes.resize(shape.tiles_per_group() * shape.tile_k() * (shape.is_fp8() ? 1 : 2), '\0');
  return text(unpacked.codes) == codes && text(unpacked.scales) == scales;
}

uint32_t count_wrong(const PackJob& job, const CudaDenseShape& shape,
                     const std::vector<uint8_t>& packed) {
  uint32_t num_wrong = 0;
  for (uint32_t row = 0; row < shape.rows; ++row) num_wrong += !holds(job, shape, packed, row);
  return num_wrong;
}

LayerConfig small_layer() {
  LayerConfig layer{};
  layer.num_q_heads = 4;
  layer.num_kv_heads = 2;
  layer.qk_head_dim = 48;
  layer.v_head_dim = 24;
  layer.rotary_dim = 20;
  return layer;
}

}  // namespace

TEST_CASE("a dense matrix survives packing and unpacking") {
  for (const PackedFormat format : {PackedFormat::fp8_e4m3, PackedFormat::bf16})
    for (const uint32_t k : {32u, 64u, 96u, 128u, 160u, 384u, 2880u})
      for (const uint32_t rows : {16u, 40u}) {
        const auto matrix = make_matrix(format, rows, k, k + rows);
        const PackJob job{{matrix->source}};
        const CudaDenseShape shape = cuda_dense_shape(job);
        CHECK_EQ(shape.rows, (rows + 15) / 16 * 16);
        const uint64_t tiles = format == PackedFormat::bf16 ? (k + 63) / 64 : (k + 127) / 128;
        const uint64_t tile_bytes = format == PackedFormat::bf16 ? 2048 : 2112;
        CHECK_EQ(shape.bytes(), shape.rows / 16 * tiles * tile_bytes);
        auto packed = pack_guarded(job, shape);
        CHECK_EQ(count_wrong(job, shape, packed), 0u);
        packed[17 * 4] ^= 1;  // one bit of one code: seen in one row
        CHECK_EQ(count_wrong(job, shape, packed), 1u);
      }
}

TEST_CASE("a fused qkv whose scale rows restart per chunk is packed in the order of its tiles") {
  // Two chunks, each [2 q heads | k head | v head] = 168 rows: two scale rows each, ragged.
  const LayerConfig layer = small_layer();
  const auto fused = make_matrix(PackedFormat::fp8_e4m3, 336, 160, 3, 168);
  const auto part = [&](uint32_t rows, uint32_t first_row, uint32_t piece_rows) {
    MatrixSource source = fused->source;
    source.rows = rows;
    source.first_row = first_row;
    source.piece_rows = piece_rows;
    source.piece_stride = 168;
    return source;
  };
  const std::vector<QkvTile> tiles = qkv_tiles(layer);
  const PackJob job{
      {part(192, 0, 96), part(96, 96, 48), part(48, 144, 24)}, RowOrder::qkv, &layer, &tiles};
  const CudaDenseShape shape = cuda_dense_shape(job);
  CHECK_EQ(shape.rows, tiles.size() * 16);
  const auto packed = pack_guarded(job, shape);
  CHECK_EQ(count_wrong(job, shape, packed), 0u);
  // By hand: element 3 of k head 1 is row 3 of that head's first tile, stored row 168 + 96 + 3, in
  // block 0 of the second chunk's scales: scale row 2.
  const uint32_t tiles_per_head = 2 + 2;  // 10 pairs, 28 others
  const UnpackedRow row = unpack_cuda_dense_row(shape, packed.data(), 5 * tiles_per_head * 16 + 3);
  CHECK(text(row.codes).substr(0, 160) ==
        fused->weight_bytes.substr(1 + (168 + 96 + 3) * 160, 160));
  CHECK(text(row.scales) == fused->scale_bytes.substr(1 + 2 * 2 * 4, 8));
  CHECK(text(row.scales) != fused->scale_bytes.substr(1 + 3 * 2 * 4, 8));
}

TEST_CASE("gate and up of a dense MLP share row groups, eight rows each") {
  for (const uint32_t rows : {32u, 40u}) {
    const auto gate = make_matrix(PackedFormat::fp8_e4m3, rows, 160, 1);
    const auto up = make_matrix(PackedFormat::fp8_e4m3, rows, 160, 2);
    const PackJob job{{gate->source, up->source}, RowOrder::alternate};
    const CudaDenseShape shape = cuda_dense_shape(job);
    const auto packed = pack_guarded(job, shape);
    CHECK_EQ(count_wrong(job, shape, packed), 0u);
    const auto stored_as = [&](uint32_t packed_row) {
      return text(unpack_cuda_dense_row(shape, packed.data(), packed_row).codes).substr(0, 160);
    };
    for (uint32_t row = 0; row < rows; ++row) {
      CHECK(stored_as(row / 8 * 16 + row % 8) == text(gate->source.row_data(row)));
      CHECK(stored_as(row / 8 * 16 + 8 + row % 8) == text(up->source.row_data(row)));
    }
  }
}

TEST_CASE("codes and scales are where the layout of dense tiles says") {
  const auto fp8 = make_matrix(PackedFormat::fp8_e4m3, 16, 128, 1);
  const auto place = [&](uint32_t row, uint32_t k) {
    std::memset(fp8->weight_data(), 0, 16 * 128);
    fp8->weight_data()[row * 128 + k] = std::byte{0x5a};
    std::vector<uint8_t> tile(2112);
    const PackJob job{{fp8->source}};
    pack_cuda_dense_group(job, cuda_dense_shape(job), 0, tile.data());
    return std::find(tile.begin(), tile.end(), 0x5a) - tile.begin();
  };
  const float scale = 3.0f;  // no byte of it is the code
  std::memcpy(fp8->scale_data(), &scale, 4);
  // Row 3 is lane 12 for q = 0. Codes of a word: bytes 1, 3, 0, 2.
  CHECK_EQ(place(3, 0), 12 * 16 + 1);
  CHECK_EQ(place(3, 1), 12 * 16 + 3);
  CHECK_EQ(place(3, 2), 12 * 16 + 0);
  CHECK_EQ(place(3, 3), 12 * 16 + 2);
  CHECK_EQ(place(3, 4), 12 * 16 + 5);
  CHECK_EQ(place(3, 17), 13 * 16 + 3);
  CHECK_EQ(place(13, 63), 512 + 23 * 16 + 14);
  CHECK_EQ(place(3, 64), 1024 + 12 * 16 + 1);
  CHECK_EQ(place(13, 127), 1536 + 23 * 16 + 14);

  const auto bf16 = make_matrix(PackedFormat::bf16, 16, 64, 1);
  const auto place_value = [&](uint32_t row, uint32_t k) {
    std::memset(bf16->weight_data(), 0, 16 * 128);
    bf16->weight_data()[(row * 64 + k) * 2] = std::byte{0x5a};
    std::vector<uint8_t> tile(2048);
    const PackJob job{{bf16->source}};
    pack_cuda_dense_group(job, cuda_dense_shape(job), 0, tile.data());
    return std::find(tile.begin(), tile.end(), 0x5a) - tile.begin();
  };
  CHECK_EQ(place_value(3, 0), 12 * 16);
  CHECK_EQ(place_value(3, 7), 12 * 16 + 14);
  CHECK_EQ(place_value(3, 8), 512 + 12 * 16);
  CHECK_EQ(place_value(3, 16), 13 * 16);
  CHECK_EQ(place_value(13, 63), 1536 + 23 * 16 + 14);
}

TEST_CASE("dense codes, scales and shapes that the kernels cannot take are refused by name") {
  const auto pack = [](StoredMatrix& matrix) {
    const PackJob job{{matrix.source}};
    pack_guarded(job, cuda_dense_shape(job));
  };
  const auto fp8 = make_matrix(PackedFormat::fp8_e4m3, 16, 160, 1);
  pack(*fp8);
  for (const int code : {0x7f, 0xff}) {
    fp8->weight_data()[163] = static_cast<std::byte>(code);
    CHECK_THROWS(bad_format, "element 163", pack(*fp8));
  }
  fp8->weight_data()[163] = std::byte{0x7e};
  pack(*fp8);
  const float negative = -1.0f, infinite = INFINITY;
  std::memcpy(fp8->scale_data() + 4, &negative, 4);
  CHECK_THROWS(bad_format, "element 1: expected a scale >= 0, got -1", pack(*fp8));
  std::memcpy(fp8->scale_data() + 4, &infinite, 4);
  CHECK_THROWS(bad_format, "element 1", pack(*fp8));
  const auto bf16 = make_matrix(PackedFormat::bf16, 16, 64, 1);
  bf16->weight_data()[2] = std::byte{0x80};
  bf16->weight_data()[3] = std::byte{0x7f};
  CHECK_THROWS(bad_format, "element 1", pack(*bf16));
  CHECK_THROWS(unsupported_shape, "multiple of 32 columns",
               pack(*make_matrix(PackedFormat::bf16, 16, 80, 1)));
  CHECK_THROWS(unsupported_shape, "expected FP8 or BF16",
               pack(*make_matrix(PackedFormat::f32, 16, 64, 1)));
  CHECK_THROWS(unsupported_shape, "expected FP8 or BF16",
               pack(*make_matrix(PackedFormat::mxfp4, 16, 64, 1)));
}

CHECK_MAIN()
