// A Hugging Face checkpoint directory, memory-mapped. Files are treated as hostile.
#pragma once

#include <mimo_rt/config.h>
#include <mimo_rt/dtype.h>

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mimo_rt {

/// One tensor of a checkpoint. A view: valid while its `Checkpoint` lives.
struct TensorInfo {
  std::string name;
  DType dtype = DType::u8;
  std::vector<uint64_t> shape;      ///< outermost first
  std::span<const std::byte> data;  ///< row-major little-endian bytes; may be unaligned
  std::string file_name;            ///< shard that holds it
};

/// Reads safetensors headers and maps the files; tensor bytes are only touched through `data`.
///
/// Accepts `model.safetensors.index.json` with its shards, or a single `model.safetensors`.
/// Thread-safe to read after construction.
class MIMO_RT_API Checkpoint {
 public:
  struct Options {
    uint64_t max_header_bytes = 100'000'000;  ///< per shard
    bool use_mmap = true;                     ///< false: read files into memory (they may change under us)
    std::string single_file = {};             ///< not empty: read this file alone, and no index
  };

  /// @throws Error{io, bad_format, missing_tensor, out_of_memory}; the message names file and tensor.
  static Checkpoint open(const std::filesystem::path& directory);
  static Checkpoint open(const std::filesystem::path& directory, const Options& options);
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::filesystem::path& directory() const noexcept;
  const std::vector<TensorInfo>& tensors() const noexcept;  ///< sorted by name
  const TensorInfo* find(std::string_view name) const noexcept;  ///< nullptr when absent
  /// @throws Error{missing_tensor} with the closest name in the message.
  const TensorInfo& at(std::string_view name) const;

  /// Checks every tensor that `config` implies: name, shape, dtype; refuses unknown ones (those of MTP,
  /// vision and audio, "model.mtp.*", "visual.*", "audio_encoder.*" and "speech_embeddings.*", are allowed and
  /// ignored). Lists up to ten differences in one message.
  /// @throws Error{missing_tensor, shape_mismatch, bad_format}; Error{unsupported_shape} for a changed config whose
  ///         fields do not fit together
  void validate(const ModelConfig& config) const;

  /// Tells the kernel that the pages of `tensor` are no longer needed (they can be read again).
  void release_pages(const TensorInfo& tensor) const noexcept;

  struct Impl;
  const Impl& impl() const { return *impl_; }  ///< for Weights

 private:
  explicit Checkpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace mimo_rt
