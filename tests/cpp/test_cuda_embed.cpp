// The embed task of the CUDA engine, its own source under the emulated GPU, at sizes that take every loop of a warp more
// than once: rows of the table, places of keys and values in all layers, angles.
#define MIMO_RT_HOST_EMULATION
#include "cuda/device/tasks/embed.cuh"

#include <cmath>

#include "expert_fixture.h"
#include "kernel_launch.h"

using namespace mimo_rt;
using namespace fixture;

namespace {

constexpr bf16_t kUntouched = 0x7fc1;  // a NaN
constexpr uint32_t kWidth = 800, kVocab = 7, kTokens = 9, kLayers = 40, kMaxRows = 12, kRotaryDim = 96;
constexpr uint32_t kPagesPerSeq = 20, kPageRows = 64, kPositions = 2 * cuda::kFinePositions;

void embed_kernel(cuda::EmbedParams params) { cuda::compute_embed(params, {blockIdx.x, gridDim.x}); }

/// A step of rows of three sequences, each in memory of its own. Layers: every third has a ring, the others pages; no two
/// have the same sizes.
struct Embedding {
  AlignedRows<float> f32{kVocab, kWidth, 0.0f};
  AlignedRows<bf16_t> bf16{kVocab, kWidth, 0}, out{kTokens + 1, kWidth + 8, kUntouched};
  std::vector<int32_t> ids;
  std::vector<uint32_t> seqs, positions, pages;
  std::vector<std::vector<cuda::KvView>> kv{3, std::vector<cuda::KvView>(kLayers)};  // of each sequence
  std::vector<uint16_t*> k_rows{std::vector<uint16_t*>(kLayers * kMaxRows)}, v_rows{k_rows};
  std::vector<double> coarse, fine;
  std::vector<float> cos_sin{std::vector<float>(kMaxRows * kRotaryDim, -7.0f)};
  cuda::RotaryTable rotary;
  cuda::StepTables step;

  Embedding() {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (uint32_t row = 0; row < kVocab; ++row)
      for (uint32_t i = 0; i < kWidth; ++i) bf16.at(row, i) = f32_to_bf16(f32.at(row, i) = normal(random));
    for (uint32_t t = 0; t < kTokens; ++t) {
      ids.push_back(static_cast<int32_t>(random() % kVocab));
      seqs.push_back(random() % 3);
      positions.push_back(random() % (kPagesPerSeq * kPageRows));
    }
    for (uint32_t i = 0; i < 3 * kPagesPerSeq; ++i) pages.push_back(1 + i * 7 % (3 * kPagesPerSeq));
    for (uint32_t i = 0; i < 3 * kLayers; ++i) {
      const uint32_t seq = i / kLayers, layer = i % kLayers;
      cuda::KvView& view = kv[seq][layer];
      view.blocks = reinterpret_cast<const uint8_t*>(uintptr_t{1} << 40) + (uint64_t{i} << 32);  // nobody reads them
      view.pages = layer % 3 == 0 ? nullptr : pages.data() + seq * kPagesPerSeq;
      view.block_rows = layer % 3 == 0 ? 144 : kPageRows;
      view.k_stride = 24 + 8 * layer;
      view.v_stride = 16 + 8 * layer;
      view.v_begin = uint64_t{2} * view.block_rows * view.k_stride;
      view.block_bytes = view.v_begin + uint64_t{2} * view.block_rows * view.v_stride;
    }
    std::uniform_real_distribution<double> any(-1.0, 1.0);
    for (uint32_t i = 0; i < kPositions / cuda::kFinePositions * kRotaryDim; ++i) coarse.push_back(any(random));
    for (uint32_t i = 0; i < cuda::kFinePositions * kRotaryDim; ++i) fine.push_back(any(random));
    rotary = {coarse.data(), fine.data(), cos_sin.data(), kRotaryDim};
    step.token_ids = ids.data();
    step.positions = positions.data();
    for (uint32_t t = 0; t < kTokens; ++t) step.kv[t].layers = kv[seqs[t]].data();
    step.places = {0, kLayers, kMaxRows, k_rows.data(), v_rows.data()};
    step.rotary = &rotary;
    step.num_rotary = 1;
  }

  void run(bool is_f32, const Launch& launch) {
    const auto* table = is_f32 ? reinterpret_cast<const uint8_t*>(f32.data) : reinterpret_cast<const uint8_t*>(bf16.data);
    run_emulated(embed_kernel, cuda::EmbedParams{table, {out.data, out.stride}, &step, kTokens, kWidth, is_f32},
                 options_of(launch, cuda::kComputeWarps * 32, 0));
  }
  /// Where row 0 of head 0 of a token's keys (values) is, in bytes.
  uintptr_t place(uint32_t layer, uint32_t token, bool is_value) const {
    const cuda::KvView& view = kv[seqs[token]][layer];
    const uint32_t position = positions[token];
    const uint64_t block = layer % 3 == 0 ? 0 : pages[seqs[token] * kPagesPerSeq + position / kPageRows];
    const uint64_t row = position % view.block_rows, stride = is_value ? view.v_stride : view.k_stride;
    return reinterpret_cast<uintptr_t>(view.blocks) + block * view.block_bytes + (is_value ? view.v_begin : 0) +
           2 * row * stride;
  }
};

}  // namespace

TEST_CASE("rows of the table are copied whole, those of F32 rounded once") {
  for (const bool is_f32 : {false, true}) {
    Embedding call;
    call.run(is_f32, {.num_blocks = 2, .seed = 1});
    uint32_t num_different = 0;
    for (uint32_t t = 0; t <= kTokens; ++t)
      for (uint32_t i = 0; i < call.out.stride; ++i) {
        const bool is_written = t < kTokens && i < kWidth;
        num_different += call.out.at(t, i) != (is_written ? call.bf16.at(static_cast<uint32_t>(call.ids[t]), i) : kUntouched);
      }
    CHECK_EQ(num_different, 0u);
  }
}

TEST_CASE("keys and values of every layer have their place, in rings and in pages") {
  Embedding call;
  call.run(false, {.num_blocks = 1, .seed = 2});
  uint32_t num_different = 0;
  for (uint32_t layer = 0; layer < kLayers; ++layer)
    for (uint32_t t = 0; t < kMaxRows; ++t)
      for (const bool is_value : {false, true}) {
        const auto place = reinterpret_cast<uintptr_t>((is_value ? call.v_rows : call.k_rows)[layer * kMaxRows + t]);
        num_different += place != (t < kTokens ? call.place(layer, t, is_value) : 0);
      }
  CHECK_EQ(num_different, 0u);
}

TEST_CASE("angles are sums of a coarse and a fine one, in every pair of a row") {
  Embedding call;
  call.run(false, {.num_blocks = 3, .seed = 3});
  uint32_t num_different = 0, num_coarse = 0;
  for (uint32_t t = 0; t < kMaxRows; ++t)
    for (uint32_t d = 0; d < kRotaryDim; d += 2) {
      const float* own = &call.cos_sin[t * kRotaryDim + d];
      if (t >= kTokens) {
        num_different += own[0] != -7.0f || own[1] != -7.0f;
        continue;
      }
      const uint32_t position = call.positions[t];
      const double* a = &call.coarse[position / cuda::kFinePositions * kRotaryDim + d];
      const double* b = &call.fine[position % cuda::kFinePositions * kRotaryDim + d];
      num_coarse += position >= cuda::kFinePositions;
      const double cos = a[0] * b[0] - a[1] * b[1], sin = a[1] * b[0] + a[0] * b[1];
      num_different += !(std::abs(own[0] - cos) <= 0x1p-23) || !(std::abs(own[1] - sin) <= 0x1p-23);
    }
  CHECK_EQ(num_different, 0u);
  CHECK(num_coarse > 0);
}

CHECK_MAIN()
