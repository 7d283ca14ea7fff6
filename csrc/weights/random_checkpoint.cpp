#include "weights/random_checkpoint.h"

#include "checkpoint/checkpoint_impl.h"
#include "checkpoint/draft_tensors.h"
#include "checkpoint/mask_embedding.h"
#include "checkpoint/tensor_table.h"
#include "core/available_memory.h"
#include "core/checks.h"
#include "core/numeric.h"
#include "weights/random_values.h"

#include <algorithm>
#include <cmath>
#include <compare>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string_view>
#include <utility>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Engine.synthetic";
constexpr const char* kDirectory = "(random values)";  // names no file
constexpr uint64_t kWindowStep = 8, kNumWindows = uint64_t{1} << 17;  // of one pool: 1 MiB beyond its largest tensor

enum class Fill : uint8_t { fp8_codes, fp8_scales, mxfp4_codes, mxfp4_scales, bf16, f32, around };

/// How a tensor is filled. `size`: its root mean square; `around`: the middle, with `spread` to both sides.
struct Values {
  DType dtype;
  Fill fill;
  float size = 1.0f, spread = 0.0f;

  auto operator<=>(const Values&) const = default;
};
using ValuesOf = std::function<Values(const ExpectedTensor&)>;

Values around(float middle, float spread) { return {DType::bf16, Fill::around, middle, spread}; }

/// Inputs of order one give outputs of order `gain`.
float size_for(float gain, uint64_t k) { return gain / std::sqrt(static_cast<float>(k)); }

/// A matrix, or its scales, by the types that a config allows for it.
Values matrix_values(const ExpectedTensor& tensor, float gain) {
  const TensorForm& form = tensor.forms[0];
  const uint64_t cols = form.shape.back();
  const std::string_view name = tensor.name;
  if (name.ends_with(".weight_scale_inv")) return {DType::f32, Fill::fp8_scales, size_for(gain, cols * 128)};
  if (name.ends_with(".weight_scale")) return {form.dtypes[0], Fill::mxfp4_scales, size_for(gain, cols * 32)};
  if (form.dtypes[0] == DType::fp8_e4m3) return {DType::fp8_e4m3, Fill::fp8_codes};
  if (form.dtypes[0] == DType::u8) return {DType::u8, Fill::mxfp4_codes};
  if (name.ends_with(".mlp.gate.weight")) return {DType::f32, Fill::f32, size_for(gain, cols)};
  return {DType::bf16, Fill::bf16, size_for(gain, cols)};
}

Values model_values(const ExpectedTensor& tensor, bool is_tied) {
  const std::string_view name = tensor.name;
  const auto has = [&](std::string_view part) { return name.find(part) != name.npos; };
  if (has("norm.weight")) return around(1.0f, 0.1f);
  if (has("e_score_correction_bias")) return around(0.0f, 0.01f);  // favours no expert for good
  if (tensor.forms[0].shape.size() == 1) return around(0.0f, 1.0f);  // sinks
  if (has("embed_tokens") && !is_tied) return {DType::bf16, Fill::bf16, 1.0f};
  if (has("embed_tokens") || has("lm_head")) return matrix_values(tensor, 2.0f);
  return matrix_values(tensor, has("o_proj") || has("down_proj") ? 0.5f : 1.0f);
}

Values draft_values(const ExpectedTensor& tensor) {
  const std::string_view name = tensor.name;
  const auto has = [&](std::string_view part) { return name.find(part) != name.npos; };
  if (has("q_norm") || has("k_norm")) return around(4.0f, 0.4f);
  if (has("norm.weight")) return around(1.0f, 0.1f);
  if (has(kMaskEmbeddingName)) return around(0.0f, 0.2f);
  if (tensor.forms[0].shape.size() == 1) return around(0.0f, 1.0f);  // sinks
  return matrix_values(tensor, has("down_proj") ? 0.5f : 1.0f);
}

uint64_t byte_count(const ExpectedTensor& tensor, DType dtype) {
  uint64_t count = 1;
  for (const uint64_t size : tensor.forms[0].shape) count *= size;
  return count * dtype_bits(dtype) / 8;
}

template <typename T>
void fill_each(std::byte* out, uint64_t num_bytes, const std::function<T()>& make) {
  for (uint64_t i = 0; i + sizeof(T) <= num_bytes; i += sizeof(T)) {
    const T value = make();
    std::memcpy(out + i, &value, sizeof value);
  }
}

void fill(const Values& values, std::byte* out, uint64_t num_bytes, Random random) {
  const auto scale = [&](PackedFormat format) { return values.size / code_rms(format); };
  switch (values.fill) {
    case Fill::fp8_codes: return fill_fp8_codes(out, num_bytes, random);
    case Fill::fp8_scales:
      return fill_each<float>(out, num_bytes, [&] { return scale(PackedFormat::fp8_e4m3); });
    case Fill::mxfp4_codes: return fill_mxfp4_codes(out, num_bytes * 2, random);
    case Fill::mxfp4_scales:
      return fill_mxfp4_scales(out, num_bytes, scale(PackedFormat::mxfp4), random);
    case Fill::bf16: return fill_bf16(out, num_bytes / 2, scale(PackedFormat::bf16), random);
    case Fill::f32: return fill_f32(out, num_bytes / 4, scale(PackedFormat::f32), random);
    case Fill::around:
      return fill_each<bf16_t>(
          out, num_bytes, [&] { return f32_to_bf16(random.near(values.size, values.spread)); });
  }
}

/// The tensors of one kind.
struct Pool {
  uint64_t largest = 0;  ///< bytes of a tensor
  const std::byte* bytes = nullptr;
};

/// All of them, in the order of `expected`.
std::unique_ptr<Checkpoint::Impl> make_tensors(const std::vector<ExpectedTensor>& expected, const ValuesOf& values_of,
                                               uint64_t seed) {
  auto impl = std::make_unique<Checkpoint::Impl>();
  impl->directory = kDirectory;
  std::map<Values, Pool> pools;
  for (const ExpectedTensor& tensor : expected) {
    const Values values = values_of(tensor);
    uint64_t& largest = pools[values].largest;
    largest = std::max(largest, byte_count(tensor, values.dtype));
  }
  uint64_t total = 0;
  const auto pool_bytes = [](const Pool& pool) {
    return pool.largest + kWindowStep * kNumWindows;
  };
  for (const auto& [values, pool] : pools) total += pool_bytes(pool);
  check_memory(total, available_memory_bytes(), kWhere);
  for (auto& [values, pool] : pools) {
    impl->memory.push_back(std::make_unique_for_overwrite<std::byte[]>(pool_bytes(pool) + kWindowStep));
    fill(values, impl->memory.back().get(), pool_bytes(pool), Random(seed ^ Random::mix(impl->memory.size())));
    pool.bytes = impl->memory.back().get();
  }
  Random random(Random::mix(seed + 1));
  for (const ExpectedTensor& tensor : expected) {
    const Values values = values_of(tensor);
    const std::byte* window = pools[values].bytes + random.next() % kNumWindows * kWindowStep;
    impl->tensors.push_back({tensor.name, values.dtype, tensor.forms[0].shape,
                             {window, byte_count(tensor, values.dtype)}, kDirectory});
  }
  return impl;
}

Checkpoint finish(std::unique_ptr<Checkpoint::Impl> impl) {
  std::sort(impl->tensors.begin(), impl->tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  return Checkpoint::Impl::finish(std::move(impl));
}

}  // namespace

Checkpoint random_checkpoint(const ModelConfig& config, uint64_t seed) {
  return finish(make_tensors(
      expected_tensors(config),
      [&](const ExpectedTensor& tensor) { return model_values(tensor, config.tie_word_embeddings); }, seed));
}

Checkpoint random_checkpoint(const DraftConfig& config, uint64_t seed) {
  MIMO_RT_CHECK(config.draft_vocab_size == 0, invalid_argument, kWhere,
                "draft_vocab_size: expected 0 (all tokens) for random weights, got ", config.draft_vocab_size);
  std::vector<ExpectedTensor> expected = expected_draft_tensors(config);
  expected.push_back({kMaskEmbeddingName, {{{DType::bf16}, {config.hidden_size}}}});
  return finish(make_tensors(expected, draft_values, seed));
}

}  // namespace mimo_rt
