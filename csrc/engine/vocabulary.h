// The bytes of every token, read from a byte-level BPE tokenizer.json. Decoding only: turning text
// into tokens needs the merges and is the tokenizer's work.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace mimo_rt {

/// Immutable. The file is treated as hostile.
class Vocabulary {
 public:
  static constexpr uint64_t kMaxFileBytes = 64u << 20;
  static constexpr int32_t kMaxTokenId = (1 << 22) - 1;

  /// @throws Error{io, bad_format}; Error{unsupported_shape} naming a decoder that is not
  ///         byte-level.
  static Vocabulary from_file(const std::filesystem::path& tokenizer_json);
  static Vocabulary from_json(std::string_view json, std::string_view source_name);

  /// Empty for special tokens (they are not text) and for ids that the file does not have.
  std::string_view bytes(int32_t token_id) const;
  /// Largest id + 1.
  uint32_t size() const { return static_cast<uint32_t>(entries_.size()); }

 private:
  friend class VocabularyBuilder;

  struct Entry {
    uint32_t begin = 0, size = 0;  ///< in blob_
    bool known = false, special = false;
  };

  std::vector<Entry> entries_;
  std::string blob_;
};

}  // namespace mimo_rt
