// The packing of MXFP4 experts for tcgen05 against the checkpoint's bytes, and its layout against
// the formulas of csrc/weights/cuda_mx.h worked out by hand. All comparisons are of bytes.
// tests/python/test_cutlass.py compares the layout with CUTLASS's own.
#include "check.h"
#include "pack_fixture.h"
#include "weights/pack_cuda_mx.h"

using namespace mimo_rt;
using namespace fixture;

namespace {

bool holds(const CudaMxShape& shape, const std::vector<uint8_t>& packed, uint32_t packed_row,
           const MatrixSource& source, uint32_t row, ColumnSlice columns) {
  const UnpackedRow unpacked = unpack_cuda_mx_row(shape, packed.data(), packed_row);
  const std::string codes = text(source.row_data(row)).substr(columns.first / 2, columns.count / 2);
  const std::string scales =
      text(source.row_scales(row)).substr(columns.first / 32, columns.count / 32);
  const std::string padded_codes = codes + std::string(unpacked.codes.size() - codes.size(), '\0');
  return text(unpacked.codes) == padded_codes &&
         text(unpacked.scales) ==
             scales + std::string(unpacked.scales.size() - scales.size(), '\x7f');
}

constexpr uint32_t kLengths[] = {32, 96, 128, 160, 2880};

}  // namespace

TEST_CASE("a matrix survives packing and unpacking") {
  for (const uint32_t k : kLengths)
    for (const uint32_t rows : {16u, 128u, 176u}) {
      const auto down = make_matrix(PackedFormat::mxfp4, rows, k, k);
      const ColumnSlice all = ColumnSlice::all(down->source);
      const CudaMxShape shape = cuda_mx_down_shape(down->source, all);
      const uint64_t padded_k = (k + 127) / 128 * 128;
      CHECK_EQ(shape.bytes(), rows * padded_k / 2 + (rows + 127) / 128 * padded_k / 128 * 512);
      CHECK_EQ(shape.bytes() % 512, 0u);
      auto packed =
          pack_guarded(shape, [&](uint8_t* out) { pack_cuda_mx_down(down->source, all, out); });
      const auto count_wrong = [&] {
        uint32_t num_wrong = 0;
        for (uint32_t row = 0; row < rows; ++row)
          num_wrong += !holds(shape, packed, row, down->source, row, all);
        return num_wrong;
      };
      CHECK_EQ(count_wrong(), 0u);
      packed[rows * padded_k / 2 + 5] ^= 1;  // one bit of one scale, row 32, block 1: seen in one row
      CHECK_EQ(count_wrong(), rows > 32 ? 1u : 0u);
      packed[3 * padded_k / 2] ^= 16;  // one bit of one code
      CHECK_EQ(count_wrong(), rows > 32 ? 2u : 1u);
    }
}

TEST_CASE("a rank's columns of down, and gate before up") {
  const auto down = make_matrix(PackedFormat::mxfp4, 48, 512, 3);
  const ColumnSlice slice{192, 160};
  const CudaMxShape shape = cuda_mx_down_shape(down->source, slice);
  const auto packed =
      pack_guarded(shape, [&](uint8_t* out) { pack_cuda_mx_down(down->source, slice, out); });
  for (uint32_t row = 0; row < 48; ++row) {
    CHECK(holds(shape, packed, row, down->source, row, slice));
    CHECK(!holds(shape, packed, row, down->source, row, {160, 160}));
  }
  const auto gate = make_matrix(PackedFormat::mxfp4, 96, 160, 1);
  const auto up = make_matrix(PackedFormat::mxfp4, 96, 160, 2);
  const ColumnSlice all{0, 160};
  const CudaMxShape both = cuda_mx_gate_up_shape(gate->source, up->source);
  const auto gates = pack_guarded(
      both, [&](uint8_t* out) { pack_cuda_mx_gate_up(gate->source, up->source, out); });
  for (uint32_t row = 0; row < 96; ++row) {
    CHECK(holds(both, gates, row, gate->source, row, all));
    CHECK(holds(both, gates, 96 + row, up->source, row, all));
    CHECK(!holds(both, gates, row, up->source, row, all));
  }
}

TEST_CASE("codes and scales are where the layout says") {
  auto down = make_matrix(PackedFormat::mxfp4, 144, 160, 1);
  std::memset(down->weight_data(), 0, 144 * 80);
  std::memset(down->scale_data(), 0, 144 * 5);
  const ColumnSlice all{0, 160};
  const uint64_t code_bytes = 144 * 128;  // k is padded to 256
  const auto place = [&](uint32_t row, uint32_t k) {
    down->weight_data()[row * 80 + k / 2] = static_cast<std::byte>(5 << k % 2 * 4);
    down->scale_data()[row * 5 + k / 32] = std::byte{99};
    std::vector<uint8_t> packed(cuda_mx_down_shape(down->source, all).bytes());
    pack_cuda_mx_down(down->source, all, packed.data());
    down->weight_data()[row * 80 + k / 2] = std::byte{0};
    down->scale_data()[row * 5 + k / 32] = std::byte{0};
    return packed;
  };
  CHECK_EQ(place(3, 6)[3 * 128 + 3], 0x05);
  CHECK_EQ(place(3, 7)[3 * 128 + 3], 0x50);
  CHECK_EQ(place(3, 6)[code_bytes + 3 * 16], 99);               // row 3, block 0
  CHECK_EQ(place(3, 100)[code_bytes + 3 * 16 + 3], 99);         // block 3
  CHECK_EQ(place(70, 40)[code_bytes + 6 * 16 + 2 * 4 + 1], 99);  // row 70 = 2 * 32 + 6, block 1
  CHECK_EQ(place(70, 130)[code_bytes + 512 + 6 * 16 + 8], 99);  // block 4: the next atom along k
  CHECK_EQ(place(130, 0)[code_bytes + 1024 + 2 * 16], 99);      // row 130: behind two atoms
  CHECK_EQ(place(0, 0)[code_bytes + 512 + 1], 127);             // padding of k
  CHECK_EQ(place(0, 0)[code_bytes + 1024 + 20 * 16], 127);      // of rows
  CHECK_EQ(cuda_mx_scale_row(0, 0), 0u);
  CHECK_EQ(cuda_mx_scale_row(1, 1), 128u);
  CHECK_EQ(cuda_mx_scale_row(300, 5), 7 * 128u);
}

TEST_CASE("atoms of experts never overlap") {
  std::mt19937 random(1);
  for (uint32_t round = 0; round < 1000; ++round) {
    uint32_t slot = 0, end = 0;
    for (uint32_t i = 0; i < 20; ++i) {
      const uint32_t row = cuda_mx_scale_row(slot, i), num_slots = 1 + random() % 300;
      CHECK(row >= end);
      end = row + (num_slots + 127) / 128 * 128;
      slot += num_slots;
    }
    CHECK(end <= cuda_mx_scale_row(slot, 20));
  }
}

TEST_CASE("shapes and scales that the kernels cannot take are refused by name") {
  const auto short_rows = make_matrix(PackedFormat::mxfp4, 24, 64, 1);
  CHECK_THROWS(unsupported_shape, "multiple of 16 rows",
               cuda_mx_down_shape(short_rows->source, ColumnSlice{0, 64}));
  const auto matrix = make_matrix(PackedFormat::mxfp4, 48, 64, 1);
  CHECK_THROWS(unsupported_shape, "multiple of 32 columns for the CUDA engine, got 32 from 16",
               cuda_mx_down_shape(matrix->source, ColumnSlice{16, 32}));
  CHECK_THROWS(unsupported_shape, "multiple of 32 rows",
               cuda_mx_gate_up_shape(matrix->source, matrix->source));
  const auto fp8 = make_matrix(PackedFormat::fp8_e4m3, 16, 128, 1);
  CHECK_THROWS(unsupported_shape, "expected MXFP4",
               cuda_mx_down_shape(fp8->source, ColumnSlice{0, 128}));
  std::vector<uint8_t> out(1 << 13);
  matrix->scale_data()[5] = std::byte{254};  // any finite scale
  pack_cuda_mx_down(matrix->source, ColumnSlice{0, 64}, out.data());
  matrix->scale_data()[5] = std::byte{255};
  CHECK_THROWS(bad_format, "row 2, block 1: expected a finite E8M0 scale, got NaN",
               pack_cuda_mx_down(matrix->source, ColumnSlice{0, 64}, out.data()));
}

CHECK_MAIN()
