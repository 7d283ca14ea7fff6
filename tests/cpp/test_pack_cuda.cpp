// The CUDA packing of MXFP4 experts against the checkpoint's bytes, and its layout against the
// formulas of csrc/weights/cuda_tiles.h worked out by hand. All comparisons are of bytes.
#include "check.h"
#include "pack_fixture.h"
#include "weights/pack_cuda.h"

using namespace mimo_rt;
using namespace fixture;

namespace {

/// A random matrix whose scales are in the range of the layout.
std::unique_ptr<StoredMatrix> make_expert(uint32_t rows, uint32_t k, uint32_t seed) {
  auto matrix = make_matrix(PackedFormat::mxfp4, rows, k, seed);
  std::byte* scales = matrix->scale_data();
  for (uint32_t i = 0; i < rows * (k / 32); ++i)
    scales[i] = static_cast<std::byte>(std::to_integer<uint32_t>(scales[i]) % (kCudaMaxE8m0 + 1));
  return matrix;
}

bool holds(const CudaMatrixShape& shape, const std::vector<uint8_t>& packed, uint32_t packed_row,
           const MatrixSource& source, uint32_t row) {
  const UnpackedRow unpacked = unpack_cuda_row(shape, packed.data(), packed_row);
  const std::string codes = text(source.row_data(row)), scales = text(source.row_scales(row));
  bool is_equal = text(unpacked.codes).substr(0, codes.size()) == codes &&
                  text(unpacked.scales).substr(0, scales.size()) == scales;
  for (size_t i = codes.size(); i < unpacked.codes.size(); ++i)
    is_equal &= unpacked.codes[i] == std::byte{0};
  for (size_t i = scales.size(); i < unpacked.scales.size(); ++i)
    is_equal &= unpacked.scales[i] == std::byte{127};
  return is_equal;
}

constexpr uint32_t kLengths[] = {32, 64, 96, 256, 2880};

}  // namespace

TEST_CASE("a matrix survives packing and unpacking") {
  for (const uint32_t k : kLengths) {
    const auto down = make_expert(48, k, k);
    const CudaMatrixShape shape = cuda_down_shape(down->source);
    CHECK_EQ(shape.bytes(), uint64_t{3} * ((k + 63) / 64) * 544);
    auto packed = pack_guarded(shape, [&](uint8_t* out) { pack_cuda_down(down->source, out); });
    for (uint32_t row = 0; row < 48; ++row) CHECK(holds(shape, packed, row, down->source, row));
    packed[17 * 4] ^= 1;  // one bit of one code: seen in one row
    uint32_t num_wrong = 0;
    for (uint32_t row = 0; row < 48; ++row)
      num_wrong += !holds(shape, packed, row, down->source, row);
    CHECK_EQ(num_wrong, 1u);
  }
}

TEST_CASE("gate and up share row groups, eight rows each") {
  for (const uint32_t k : kLengths) {
    const auto gate = make_expert(64, k, 1), up = make_expert(64, k, 2);
    const CudaMatrixShape shape = cuda_gate_up_shape(gate->source, up->source);
    const auto packed = pack_guarded(
        shape, [&](uint8_t* out) { pack_cuda_gate_up(gate->source, up->source, out); });
    for (uint32_t row = 0; row < 64; ++row) {
      CHECK(holds(shape, packed, row / 8 * 16 + row % 8, gate->source, row));
      CHECK(holds(shape, packed, row / 8 * 16 + 8 + row % 8, up->source, row));
      CHECK(!holds(shape, packed, row / 8 * 16 + row % 8, up->source, row));
    }
  }
}

TEST_CASE("the bits of a code and the bytes of a scale are where the layout says") {
  const auto place = [](uint32_t row, uint32_t k, uint32_t code) {
    auto down = make_expert(16, 64, 1);
    std::memset(down->weight_data(), 0, 16 * 32);
    std::memset(down->scale_data(), 0, 32);
    down->weight_data()[row * 32 + k / 2] = static_cast<std::byte>(code << k % 2 * 4);
    down->scale_data()[row * 2 + k / 32] = std::byte{99};
    std::vector<uint8_t> tile(544);
    pack_cuda_down(down->source, tile.data());
    return tile;
  };
  const auto word = [](const std::vector<uint8_t>& tile, size_t offset) {
    uint32_t value;
    std::memcpy(&value, tile.data() + offset, 4);
    return value;
  };
  // Row 3, k 0: lane 12, word 0, pair 0, lower half. All four bits: 15, 8, 7, 6.
  CHECK_EQ(word(place(3, 0, 15), 12 * 16), 0x81c0u);
  CHECK_EQ(word(place(3, 1, 15), 12 * 16), 0x81c00000u);
  CHECK_EQ(word(place(3, 2, 15), 12 * 16), 0x1038u);
  CHECK_EQ(word(place(3, 5, 15), 12 * 16), 0x02070000u);
  // Pair 3: sign to 14, mantissa to 13, exponent to 11 and 10.
  CHECK_EQ(word(place(3, 6, 8), 12 * 16), 1u << 14);
  CHECK_EQ(word(place(3, 6, 1), 12 * 16), 1u << 13);
  CHECK_EQ(word(place(3, 6, 4), 12 * 16), 1u << 11);
  CHECK_EQ(word(place(3, 6, 2), 12 * 16), 1u << 10);
  // Row 13 is row g + 8 of lanes 20..23; k 56 is word 1 of lane q = 3.
  CHECK_EQ(word(place(13, 56, 15), 23 * 16 + 12), 0x81c0u);
  CHECK_EQ(place(3, 0, 1)[512 + 12], 99);
  CHECK_EQ(place(3, 40, 1)[512 + 14], 99);
  CHECK_EQ(place(13, 0, 1)[512 + 21], 99);
  CHECK_EQ(place(13, 40, 1)[512 + 23], 99);
}

TEST_CASE("shapes and scales that the kernels cannot take are refused by name") {
  const auto matrix = make_expert(48, 64, 1), wide = make_expert(64, 96, 1);
  CHECK_THROWS(unsupported_shape, "multiple of 32 rows",
               cuda_gate_up_shape(matrix->source, matrix->source));
  const auto square = make_expert(64, 64, 1);
  CHECK_THROWS(shape_mismatch, "[64, 64] and [64, 96]",
               cuda_gate_up_shape(square->source, wide->source));
  const auto short_rows = make_expert(24, 64, 1);
  CHECK_THROWS(unsupported_shape, "multiple of 16 rows", cuda_down_shape(short_rows->source));
  const auto fp8 = make_matrix(PackedFormat::fp8_e4m3, 16, 128, 1);
  CHECK_THROWS(unsupported_shape, "expected MXFP4", cuda_down_shape(fp8->source));
  std::vector<uint8_t> out(cuda_down_shape(matrix->source).bytes());
  matrix->scale_data()[5] = std::byte{kCudaMaxE8m0 + 1};
  CHECK_THROWS(unsupported_shape, "row 2, block 1: expected a scale of at most 2^25",
               pack_cuda_down(matrix->source, out.data()));
  matrix->scale_data()[5] = std::byte{255};
  CHECK_THROWS(bad_format, "NaN", pack_cuda_down(matrix->source, out.data()));
}

CHECK_MAIN()
