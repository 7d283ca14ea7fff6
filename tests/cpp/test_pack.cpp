// The packer against an element-wise reading of the layout's definition (`unpack_row`), and that
// reading against values worked out by hand. All comparisons are of bytes.
#include "check.h"
#include "pack_fixture.h"

#include "core/numeric.h"
#include "weights/pack.h"

#include <algorithm>
#include <limits>

using namespace mimo_rt;
using namespace fixture;

namespace {

/// A packed matrix that owns its bytes.
struct Packed {
  std::vector<uint8_t> storage;
  PackedMatrix matrix;
};

PackJob plain_job(const StoredMatrix& stored) {
  PackJob job;
  job.sources = {stored.source};
  return job;
}

/// Packs over garbage: every byte of the result must be written.
Packed pack(const PackJob& job, PackedFormat format) {
  Packed packed;
  PackedMatrix& matrix = packed.matrix;
  matrix.format = format;
  matrix.rows = job.packed_rows();
  matrix.k = round_up(job.sources[0].k, kBlockK);
  packed.storage.assign(matrix.bytes() + kTileAlignment, 0xa5);
  const auto address = reinterpret_cast<uintptr_t>(packed.storage.data());
  uint8_t* data = packed.storage.data() + (kTileAlignment - address % kTileAlignment);
  matrix.data = data;
  PackScratch scratch;
  for (uint32_t group = 0; group < matrix.num_row_groups(); ++group)
    pack_row_group(job, matrix, group, data + group * row_group_bytes(format, matrix.k), scratch);
  return packed;
}

Packed pack(const PackJob& job) { return pack(job, packed_format(job)); }

/// Whether packed row `row` holds exactly the stored row and, beyond its k, only padding.
bool equals_source(const Packed& packed, uint32_t row, const MatrixSource& source,
                   uint32_t stored) {
  const UnpackedRow unpacked = unpack_row(packed.matrix, row);
  const std::string codes = text(source.row_data(stored));
  bool is_equal = text(unpacked.codes).substr(0, codes.size()) == codes;
  for (size_t i = codes.size(); i < unpacked.codes.size(); ++i)
    is_equal &= unpacked.codes[i] == std::byte{0};
  if (source.scale) is_equal &= text(unpacked.scales) == text(source.row_scales(stored));
  return is_equal;
}

bool is_padding(const Packed& packed, uint32_t row) {
  const UnpackedRow unpacked = unpack_row(packed.matrix, row);
  bool is_zero = true;
  for (const std::byte code : unpacked.codes) is_zero &= code == std::byte{0};
  for (size_t i = 0; i < unpacked.scales.size(); ++i) {
    if (packed.matrix.format == PackedFormat::mxfp4) {
      is_zero &= unpacked.scales[i] == std::byte{127};
    } else if (i % 4 == 0) {
      float scale;
      std::memcpy(&scale, &unpacked.scales[i], 4);
      is_zero &= scale == 1.0f;
    }
  }
  return is_zero;
}

constexpr PackedFormat kFormats[] = {PackedFormat::mxfp4, PackedFormat::fp8_e4m3,
                                     PackedFormat::bf16, PackedFormat::f32};

void put_f32(std::byte* at, float value) { std::memcpy(at, &value, 4); }

/// A fused FP8 qkv: `chunks` chunks of [q | k | v] heads; the three parts as sources.
PackJob fused_job(const StoredMatrix& stored, const LayerConfig& layer, uint32_t chunks,
                  const std::vector<QkvTile>& tiles) {
  const uint32_t q_rows = layer.num_q_heads / chunks * layer.qk_head_dim;
  const uint32_t k_rows = layer.num_kv_heads / chunks * layer.qk_head_dim;
  const uint32_t v_rows = layer.num_kv_heads / chunks * layer.v_head_dim;
  PackJob job;
  job.order = RowOrder::qkv;
  job.layer = &layer;
  job.tiles = &tiles;
  const uint32_t first[] = {0, q_rows, q_rows + k_rows}, rows[] = {q_rows, k_rows, v_rows};
  for (int part = 0; part < 3; ++part) {
    MatrixSource source = stored.source;
    source.first_row = first[part];
    source.piece_rows = rows[part];
    source.piece_stride = source.scale_run_rows = q_rows + k_rows + v_rows;
    source.rows = rows[part] * chunks;
    job.sources.push_back(source);
  }
  return job;
}

struct Found {
  uint64_t stored_row, scale_row;
};

/// Which stored row and scale row the packed matrix holds for one element of a head. Row r of the
/// fixture starts with the byte pair of r, scale row s holds s in its first column.
Found find_in_packed(const Packed& packed, const PackJob& job, QkvTile::Part part, uint32_t head,
                     int32_t element) {
  for (uint32_t group = 0; group < packed.matrix.num_row_groups(); ++group) {
    const QkvTile& tile = (*job.tiles)[group];
    for (uint32_t i = 0; i < kTileRows; ++i) {
      if (tile.part != part || tile.head_idx != head) continue;
      if (qkv_tile_element(tile, *job.layer, i) != element) continue;
      const UnpackedRow row = unpack_row(packed.matrix, group * kTileRows + i);
      float scale;
      std::memcpy(&scale, row.scales.data(), 4);
      uint64_t id = 0;
      for (int digit = 3; digit >= 0; --digit)
        id = id * 64 + std::to_integer<uint64_t>(row.codes[digit]);
      return {id, static_cast<uint64_t>(scale)};
    }
  }
  return {UINT64_MAX, UINT64_MAX};
}

/// Writes row numbers in base 64 (never an FP8 NaN) and scale row numbers.
void number_rows(StoredMatrix& stored) {
  const MatrixSource& source = stored.source;
  for (uint64_t row = 0; row < source.rows; ++row)
    for (uint64_t digit = 0, rest = row; digit < 4; ++digit, rest /= 64)
      stored.weight_data()[row * source.k + digit] = static_cast<std::byte>(rest % 64);
  const uint64_t cols = source.scale_cols(), num_rows = stored.scale.data.size() / 4 / cols;
  for (uint64_t row = 0; row < num_rows; ++row)
    put_f32(stored.scale_data() + row * cols * 4, static_cast<float>(row));
}

}  // namespace

TEST_CASE("the nibbles of a stored MXFP4 byte are where the layout says") {
  // One row of 32 codes 0..15, 15..0; two per byte, low nibble first.
  auto stored = make_matrix(PackedFormat::mxfp4, 1, 32, 1);
  for (int i = 0; i < 16; ++i) {
    const int low = i < 8 ? 2 * i : 31 - 2 * i, high = i < 8 ? 2 * i + 1 : 30 - 2 * i;
    stored->weight_data()[i] = static_cast<std::byte>(low | high << 4);
  }
  stored->scale_data()[0] = std::byte{120};
  const Packed packed = pack(plain_job(*stored));
  const uint8_t* tile = packed.matrix.data;
  // Vector 0, row 0, byte b: low nibble k = b, high nibble k = 4 + b; vector 1 is 64 bytes on.
  for (int b = 0; b < 4; ++b) {
    CHECK_EQ(int{tile[b]}, b | (4 + b) << 4);
    CHECK_EQ(int{tile[64 + b]}, (8 + b) | (12 + b) << 4);
    CHECK_EQ(int{tile[128 + b]}, (15 - b) | (11 - b) << 4);
  }
  CHECK_EQ(int{tile[256]}, 120);
  CHECK_EQ(int{tile[257]}, 127);
  for (int i = 272; i < 320; ++i) CHECK_EQ(int{tile[i]}, 0);
}

TEST_CASE("the words of the other formats are where the layout says") {
  auto fp8 = make_matrix(PackedFormat::fp8_e4m3, 3, 160, 2);
  const Packed packed8 = pack(plain_job(*fp8));
  // Row 2, k = 133: tile 1 begins after 2112 bytes, vector 1 of it, byte 1 of lane 2.
  CHECK(std::byte{packed8.matrix.data[2112 + 64 + 2 * 4 + 1]} == fp8->weight_data()[2 * 160 + 133]);
  float scale, expected;
  std::memcpy(&scale, packed8.matrix.data + 2112 + 512 + 2 * 4, 4);
  std::memcpy(&expected, fp8->scale_data() + 4, 4);
  CHECK_EQ(scale, expected);
  auto bf16 = make_matrix(PackedFormat::bf16, 2, 32, 3);
  const Packed packed16 = pack(plain_job(*bf16));
  // Row 1, k = 7: vector 3, upper half of lane 1.
  CHECK(!std::memcmp(packed16.matrix.data + 3 * 64 + 4 + 2, bf16->weight_data() + (32 + 7) * 2, 2));
  auto f32 = make_matrix(PackedFormat::f32, 2, 32, 4);
  const Packed packed32 = pack(plain_job(*f32));
  CHECK(!std::memcmp(packed32.matrix.data + 9 * 64 + 4, f32->weight_data() + (32 + 9) * 4, 4));
}

TEST_CASE("every format and odd shape comes back byte for byte") {
  for (const PackedFormat format : kFormats)
    for (const uint32_t rows : {1u, 16u, 17u, 40u})
      for (const uint32_t k : {32u, 72u, 96u, 128u, 160u, 576u}) {
        if (format == PackedFormat::mxfp4 && k % 32) continue;
        auto stored = make_matrix(format, rows, k, rows * 1000 + k);
        const Packed packed = pack(plain_job(*stored));
        CHECK(packed.matrix.format == format);
        CHECK_EQ(packed.matrix.rows, round_up(rows, 16));
        for (uint32_t row = 0; row < rows; ++row)
          CHECK(equals_source(packed, row, stored->source, row));
        for (uint32_t row = rows; row < packed.matrix.rows; ++row) CHECK(is_padding(packed, row));
        // Controls: another row, a changed code, a changed scale.
        if (rows > 1) CHECK(!equals_source(packed, 0, stored->source, 1));
        stored->weight_data()[0] ^= std::byte{2};
        CHECK(!equals_source(packed, 0, stored->source, 0));
        stored->weight_data()[0] ^= std::byte{2};
        if (!stored->source.scale) continue;
        stored->scale_data()[0] ^= std::byte{1};
        CHECK(!equals_source(packed, 0, stored->source, 0));
      }
}

TEST_CASE("gate and up rows alternate in groups of 16, ragged widths are padded") {
  for (const PackedFormat format : {PackedFormat::mxfp4, PackedFormat::fp8_e4m3}) {
    auto gate = make_matrix(format, 40, 96, 5), up = make_matrix(format, 40, 96, 6);
    PackJob job = plain_job(*gate);
    job.sources.push_back(up->source);
    job.order = RowOrder::alternate;
    const Packed packed = pack(job);
    CHECK_EQ(packed.matrix.rows, 96u);
    for (uint32_t row = 0; row < 48; ++row) {
      const uint32_t gate_row = row / 16 * 32 + row % 16;
      if (row >= 40) {
        CHECK(is_padding(packed, gate_row) && is_padding(packed, gate_row + 16));
        continue;
      }
      CHECK(equals_source(packed, gate_row, gate->source, row));
      CHECK(equals_source(packed, gate_row + 16, up->source, row));
      CHECK(!equals_source(packed, gate_row, up->source, row));
    }
  }
}

TEST_CASE("fused qkv: rows and scale rows of MiMo-V2.5-Pro as in its test vectors") {
  // 128 query heads of 192, 8 key heads of 192, 8 value heads of 128 in 8 chunks of 3392 rows.
  LayerConfig layer;
  layer.num_q_heads = 128;
  layer.num_kv_heads = 8;
  layer.qk_head_dim = 192;
  layer.v_head_dim = 128;
  layer.rotary_dim = 64;
  const std::vector<QkvTile> tiles = qkv_tiles(layer);
  auto stored = make_matrix(PackedFormat::fp8_e4m3, 27136, 32, 7, 3392);
  CHECK_EQ(stored->scale.data.size() / 4, 216u);
  number_rows(*stored);
  const PackJob job = fused_job(*stored, layer, 8, tiles);
  const Packed packed = pack(job);
  struct Vector {
    QkvTile::Part part;
    uint32_t head;
    int32_t element;
    uint64_t stored_row, scale_row;
  };
  using enum QkvTile::Part;
  const Vector vectors[] = {{q, 0, 0, 0, 0},         {q, 17, 0, 3584, 28},
                            {q, 127, 191, 26815, 212}, {k, 3, 191, 13439, 106},
                            {v, 3, 0, 13440, 106},   {v, 7, 127, 27135, 215}};
  for (const Vector& vector : vectors) {
    const Found found = find_in_packed(packed, job, vector.part, vector.head, vector.element);
    CHECK_EQ(found.stored_row, vector.stored_row);
    CHECK_EQ(found.scale_row, vector.scale_row);
  }
  // Control: a reader that takes the tensor for one chunk, with scale rows = row / 128.
  PackJob wrong = fused_job(*stored, layer, 1, tiles);
  const Packed mistaken = pack(wrong);
  CHECK(find_in_packed(mistaken, wrong, q, 17, 0).stored_row != 3584u);
  wrong = job;
  for (MatrixSource& source : wrong.sources) source.scale_run_rows = 27136;
  const Packed unpadded = pack(wrong);
  CHECK_EQ(find_in_packed(unpadded, wrong, q, 17, 0).stored_row, 3584u);
  CHECK(find_in_packed(unpadded, wrong, v, 7, 127).scale_row != 215u);
}

TEST_CASE("split qkv: k scales may restart at each head") {
  LayerConfig layer;
  layer.num_q_heads = 6;
  layer.num_kv_heads = 3;
  layer.qk_head_dim = 192;
  layer.v_head_dim = 128;
  layer.rotary_dim = 64;
  const std::vector<QkvTile> tiles = qkv_tiles(layer);
  auto q = make_matrix(PackedFormat::fp8_e4m3, 6 * 192, 64, 8);
  auto k = make_matrix(PackedFormat::fp8_e4m3, 3 * 192, 64, 9, 192);
  auto v = make_matrix(PackedFormat::fp8_e4m3, 3 * 128, 64, 10);
  for (StoredMatrix* part : {q.get(), k.get(), v.get()}) number_rows(*part);
  PackJob job;
  job.sources = {q->source, k->source, v->source};
  job.order = RowOrder::qkv;
  job.layer = &layer;
  job.tiles = &tiles;
  const Packed packed = pack(job);
  const Found k_row = find_in_packed(packed, job, QkvTile::Part::k, 1, 130);
  CHECK_EQ(k_row.stored_row, 192u + 130u);
  CHECK_EQ(k_row.scale_row, 3u);
  CHECK_EQ(find_in_packed(packed, job, QkvTile::Part::q, 5, 191).scale_row, 8u);
  CHECK_EQ(find_in_packed(packed, job, QkvTile::Part::v, 2, 0).stored_row, 256u);
  job.sources[1].scale_run_rows = 3 * 192;  // control
  CHECK(find_in_packed(pack(job), job, QkvTile::Part::k, 1, 130).scale_row != 3u);
}

TEST_CASE("codes and scales that are not finite are refused with tensor and element") {
  const auto rejects = [](PackedFormat format, bool in_scale, uint64_t byte, uint32_t value,
                          size_t num_bytes, const std::string& needle) {
    auto stored = make_matrix(format, 33, 160, 11);
    std::byte* at = in_scale ? stored->scale_data() : stored->weight_data();
    pack(plain_job(*stored));  // the matrix is good before
    std::memcpy(at + byte, &value, num_bytes);
    CHECK_THROWS(bad_format, needle, pack(plain_job(*stored)));
  };
  rejects(PackedFormat::mxfp4, true, 32 * 5 + 4, 0xff, 1, "tensor 's' of 'f', element 164:");
  for (const uint32_t nan : {0x7fu, 0xffu})
    for (const uint64_t i : {uint64_t{0}, uint64_t{17 * 160 + 127}, uint64_t{33 * 160 - 1}})
      rejects(PackedFormat::fp8_e4m3, false, i, nan, 1,
              "tensor 'w' of 'f', element " + std::to_string(i) + ":");
  for (const float bad : {std::numeric_limits<float>::infinity(), -1.0f,
                          std::numeric_limits<float>::quiet_NaN()})
    rejects(PackedFormat::fp8_e4m3, true, 4, std::bit_cast<uint32_t>(bad), 4,
            "tensor 's' of 'f', element 1:");
  rejects(PackedFormat::bf16, false, (32 * 160 + 159) * 2, 0xff80, 2, "element 5279:");
  rejects(PackedFormat::f32, false, 77 * 4, 0x7fc00001, 4, "element 77:");
}

TEST_CASE("plain types are converted only when no value changes") {
  // BF16 to F32 widens (router); every bit of the source is the upper half of the result.
  auto bf16 = make_matrix(PackedFormat::bf16, 18, 72, 12);
  const Packed wide = pack(plain_job(*bf16), PackedFormat::f32);
  for (uint32_t k = 0; k < 72; ++k) {
    const UnpackedRow row = unpack_row(wide.matrix, 17);
    uint32_t bits;
    std::memcpy(&bits, &row.codes[k * 4], 4);
    uint16_t stored;
    std::memcpy(&stored, bf16->weight_data() + (17 * 72 + k) * 2, 2);
    CHECK_EQ(bits, uint32_t{stored} << 16);
  }
  // F16: 1.5, the smallest subnormal and -0 are BF16 values; 1 + 2^-10 is not.
  auto f16 = make_matrix(PackedFormat::bf16, 1, 32, 13);
  f16->weight.dtype = DType::f16;
  std::memset(f16->weight_data(), 0, 64);
  const uint16_t exact[] = {0x3e00, 0x0001, 0x8000, 0xfbf8};
  const float values[] = {1.5f, 0x1p-24f, -0.0f, -65280.0f};
  std::memcpy(f16->weight_data(), exact, sizeof exact);
  const UnpackedRow row = unpack_row(pack(plain_job(*f16), PackedFormat::bf16).matrix, 0);
  for (int k = 0; k < 4; ++k) {
    uint16_t bits;
    std::memcpy(&bits, &row.codes[static_cast<size_t>(k) * 2], 2);
    CHECK_EQ(bits, f32_to_bf16(values[k]));
  }
  CHECK(fits_bf16(f16->source, 0));
  const uint16_t inexact = 0x3c01, infinity = 0x7c00;
  std::memcpy(f16->weight_data() + 20, &inexact, 2);
  CHECK(!fits_bf16(f16->source, 0));
  for (const char* needle : {"tensor 'w' of 'f', element 10:", "changed while it was loaded"})
    CHECK_THROWS(io, needle, pack(plain_job(*f16), PackedFormat::bf16));
  // F32 holds it: what linear layers of F16 become.
  const UnpackedRow wide_row = unpack_row(pack(plain_job(*f16)).matrix, 0);
  float value;
  std::memcpy(&value, &wide_row.codes[10 * 4], 4);
  CHECK_EQ(value, 1.0f + 0x1p-10f);
  std::memcpy(f16->weight_data() + 20, &infinity, 2);
  for (const PackedFormat format : {PackedFormat::bf16, PackedFormat::f32})
    CHECK_THROWS(bad_format, "element 10:", pack(plain_job(*f16), format));
}

TEST_CASE("the packed format follows the sources") {
  auto bf16 = make_matrix(PackedFormat::bf16, 16, 32, 14);
  auto f32 = make_matrix(PackedFormat::f32, 16, 32, 15);
  auto fp8 = make_matrix(PackedFormat::fp8_e4m3, 16, 32, 16);
  PackJob job = plain_job(*bf16);
  CHECK(packed_format(job) == PackedFormat::bf16);
  auto f16 = make_matrix(PackedFormat::bf16, 16, 32, 17);
  f16->weight.dtype = DType::f16;
  CHECK(packed_format(plain_job(*f16)) == PackedFormat::f32);
  job.sources.push_back(f16->source);
  CHECK(packed_format(job) == PackedFormat::f32);
  job.sources.pop_back();
  job.sources.push_back(f32->source);
  CHECK(packed_format(job) == PackedFormat::f32);
  job.order = RowOrder::alternate;
  const Packed packed = pack(job);
  CHECK(equals_source(packed, 16 + 5, f32->source, 5));
  job.sources[1] = fp8->source;
  CHECK_THROWS(unsupported_shape, "'w'", packed_format(job));
  job.sources = {fp8->source};
  job.sources[0].scale_block_cols = 64;
  CHECK_THROWS(unsupported_shape, "64", packed_format(job));
}

CHECK_MAIN()
