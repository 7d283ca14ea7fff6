// Random experts, routes and activations for the CUDA expert kernels, and their float64 reference.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "core/numeric.h"
#include "cuda/expert_mlp_params.h"
#include "kernel_memory.h"
#include "pack_fixture.h"
#include "weights/pack_cuda.h"

namespace fixture {

struct ExpertShape {
  uint32_t hidden_size, width, num_experts;
};

/// Rows in 16-byte aligned memory, as the kernels ask for.
template <typename T>
struct AlignedRows {
  KernelVector<ptrdiff_t> storage;  // keeps the size; the data begins at `data`
  T* data = nullptr;
  uint32_t rows = 0, stride = 0;

  AlignedRows(uint32_t num_rows, uint32_t row_stride, T fill)
      : storage((uint64_t{num_rows} * row_stride * sizeof(T) + 15) / 8 + 2),
        rows(num_rows),
        stride(row_stride) {
    const auto address = reinterpret_cast<uintptr_t>(storage.data());
    data = reinterpret_cast<T*>((address + 15) / 16 * 16);
    std::fill(data, data + uint64_t{rows} * stride, fill);
  }
  AlignedRows(AlignedRows&&) = default;
  AlignedRows(const AlignedRows&) = delete;
  AlignedRows& operator=(const AlignedRows&) = delete;
  T& at(uint32_t row, uint32_t column) const { return data[uint64_t{row} * stride + column]; }
};

/// How codes and scales are drawn.
enum class Weights : uint8_t {
  random,
  exact,           ///< any code, scales 2^-2 .. 2^2
  exact_positive,  ///< gate positive and large enough that silu(gate) == gate
};

/// The experts of one layer, stored and packed.
struct Experts {
  ExpertShape shape;
  std::vector<std::unique_ptr<StoredMatrix>> gate, up, down;
  KernelVector<uint8_t> gate_up_tiles, down_tiles;  // with 16 bytes to spare for alignment

  Experts(const ExpertShape& expert_shape, Weights kind, uint32_t seed) : shape(expert_shape) {
    std::mt19937 random(seed);
    for (uint32_t e = 0; e < shape.num_experts; ++e) {
      gate.push_back(make(shape.width, shape.hidden_size, kind, true, random));
      up.push_back(make(shape.width, shape.hidden_size, kind, false, random));
      down.push_back(make(shape.hidden_size, shape.width, kind, false, random));
    }
    pack();
  }

  void pack() {
    const CudaMatrixShape gate_up_shape = cuda_gate_up_shape(gate[0]->source, up[0]->source);
    const CudaMatrixShape down_shape = cuda_down_shape(down[0]->source);
    gate_up_tiles.resize(gate_up_shape.bytes() * shape.num_experts + 16);
    down_tiles.resize(down_shape.bytes() * shape.num_experts + 16);
    for (uint32_t e = 0; e < shape.num_experts; ++e) {
      pack_cuda_gate_up(gate[e]->source, up[e]->source,
                        aligned(gate_up_tiles) + e * gate_up_shape.bytes());
      pack_cuda_down(down[e]->source, aligned(down_tiles) + e * down_shape.bytes());
    }
  }

  /// The down matrices of one rank: its share of the columns. gate and up are not sliced.
  Experts down_slice(uint32_t rank, uint32_t num_ranks) const {
    const uint32_t width = shape.width / num_ranks;
    Experts slice({shape.hidden_size, width, shape.num_experts}, Weights::random, 1);
    for (uint32_t e = 0; e < shape.num_experts; ++e)
      for (uint32_t row = 0; row < shape.hidden_size; ++row) {
        const auto codes = down[e]->source.row_data(row).subspan(rank * width / 2, width / 2);
        const auto scales = down[e]->source.row_scales(row).subspan(rank * width / 32, width / 32);
        std::copy(codes.begin(), codes.end(), slice.down[e]->weight_data() + row * width / 2);
        std::copy(scales.begin(), scales.end(), slice.down[e]->scale_data() + row * width / 32);
      }
    slice.pack();
    return slice;
  }

  static uint8_t* aligned(KernelVector<uint8_t>& bytes) {
    return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(bytes.data()) + 15) / 16 * 16);
  }

  static double value(const StoredMatrix& matrix, uint32_t row, uint32_t col) {
    const MatrixSource& source = matrix.source;
    const auto byte = std::to_integer<uint32_t>(source.row_data(row)[col / 2]);
    const auto scale = std::to_integer<uint8_t>(source.row_scales(row)[col / 32]);
    return double{fp4_e2m1_to_f32(static_cast<uint8_t>(byte >> col % 2 * 4 & 15))} *
           double{e8m0_to_f32(scale)};
  }

 private:
  static std::unique_ptr<StoredMatrix> make(uint32_t rows, uint32_t k, Weights kind, bool is_gate,
                                            std::mt19937& random) {
    auto matrix = make_matrix(PackedFormat::mxfp4, rows, k, random());
    const bool is_positive = kind == Weights::exact_positive && is_gate;
    for (uint32_t i = 0; is_positive && i < rows * k / 2; ++i)
      matrix->weight_data()[i] = (matrix->weight_data()[i] & std::byte{0x77}) | std::byte{0x22};
    for (uint32_t i = 0; i < rows * (k / 32); ++i)
      matrix->scale_data()[i] = static_cast<std::byte>(
          kind == Weights::random ? 117 + random() % 8 : 127 + random() % 3 - !is_positive);
    return matrix;
  }
};

/// Which experts each token has chosen, and what the router writes for that.
struct Route {
  struct Choice {
    uint32_t expert, token;
    float weight;
  };
  uint32_t num_tokens = 0;
  std::vector<Choice> slots;  // by expert, then by token
  uint32_t num_active = 0;
  KernelVector<uint32_t> active_experts, slot_begin, slot_token, num_active_word;
  KernelVector<float> slot_weight;

  Route(uint32_t tokens, std::vector<Choice> choices)
      : num_tokens(tokens), slots(std::move(choices)) {
    std::stable_sort(slots.begin(), slots.end(), [](const Choice& a, const Choice& b) {
      return a.expert != b.expert ? a.expert < b.expert : a.token < b.token;
    });
    for (uint32_t s = 0; s < slots.size(); ++s) {
      if (s == 0 || slots[s].expert != slots[s - 1].expert) {
        active_experts.push_back(slots[s].expert);
        slot_begin.push_back(s);
      }
      slot_token.push_back(slots[s].token);
      slot_weight.push_back(slots[s].weight);
    }
    num_active = static_cast<uint32_t>(active_experts.size());
    slot_begin.push_back(static_cast<uint32_t>(slots.size()));
  }

  /// Every token chooses `num_chosen` experts among [first, first + num_choices).
  static Route random(uint32_t num_tokens, uint32_t num_chosen, uint32_t num_choices, uint32_t seed,
                      uint32_t first = 0) {
    std::mt19937 rng(seed);
    std::vector<Choice> choices;
    std::vector<uint32_t> experts(num_choices);
    for (uint32_t t = 0; t < num_tokens; ++t) {
      for (uint32_t e = 0; e < num_choices; ++e) experts[e] = first + e;
      std::shuffle(experts.begin(), experts.end(), rng);
      for (uint32_t i = 0; i < num_chosen; ++i)
        choices.push_back({experts[i], t, 0.25f * static_cast<float>(1 + rng() % 7)});
    }
    return {num_tokens, choices};
  }

  /// The route of one token alone, as token 0.
  Route of_token(uint32_t token) const {
    std::vector<Choice> choices;
    for (const Choice& slot : slots)
      if (slot.token == token) choices.push_back({slot.expert, 0, slot.weight});
    return {1, choices};
  }

  uint32_t num_slots() const { return static_cast<uint32_t>(slots.size()); }

  RouteTable table() {
    active_experts.reserve(1);  // not null, as in the engine
    slot_token.reserve(1);
    slot_weight.reserve(1);
    num_active_word.assign(1, num_active);
    return {num_active_word.data(), active_experts.data(), slot_begin.data(), slot_token.data(),
            slot_weight.data()};
  }
};

/// Values and, for each, the sum of |products| that bounds their rounding.
struct Product {
  double value = 0, magnitude = 0;
};

inline Product dot(const StoredMatrix& matrix, uint32_t row, const bf16_t* x) {
  Product product;
  for (uint32_t k = 0; k < matrix.source.k; ++k) {
    const double p = Experts::value(matrix, row, k) * double{bf16_to_f32(x[k])};
    product.value += p;
    product.magnitude += std::abs(p);
  }
  return product;
}

inline double silu_f64(double x) { return x / (1.0 + std::exp(-x)); }

}  // namespace fixture
