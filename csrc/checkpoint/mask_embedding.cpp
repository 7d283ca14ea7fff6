#include "checkpoint/mask_embedding.h"

#include "checkpoint/draft_tensors.h"
#include "checkpoint/stored_zip.h"
#include "checkpoint/torch_pickle.h"
#include "core/checks.h"
#include "core/file.h"
#include "core/text.h"

#include <algorithm>
#include <filesystem>
#include <utility>

namespace mimo_rt {
namespace {

using Kind = PickleValue::Kind;

constexpr const char* kWhere = "DraftWeights.load";
constexpr const char* kTorchFile = "mask_embedding.pt";
constexpr const char* kFileTensor = "embedding";
constexpr uint64_t kMaxFileBytes = 64 << 20;

/// One parse of a .pt file: what is in its dict, and the bytes of the tensor.
class TorchReader {
 public:
  TorchReader(std::span<const std::byte> file, std::string_view source) : source_(source) {
    fail_file_ = [this](const std::string& text) { fail_here(text); };
    entries_ = read_stored_zip(file, fail_file_);
  }

  MaskEmbedding read() {
    find_root();
    const ZipEntry* order = find("byteorder");
    check(!order || text_of(*order) == "little", "expected little-endian numbers, got other ones");
    pickle_ = read_torch_pickle(entry("data.pkl").data, fail_file_);
    MaskEmbedding result;
    const PickleValue& dict = at(pickle_.root);
    check(dict.kind == Kind::dict, "expected a dict, got another value");
    std::vector<std::string> keys;
    for (size_t i = 0; i < dict.items.size(); i += 2) {
      const PickleValue& key = at(dict.items[i]);
      check(key.kind == Kind::text, "expected texts as the keys of the dict");
      check(std::find(keys.begin(), keys.end(), key.text) == keys.end(),
            "expected each key once, got ", printable(key.text), " twice");
      keys.push_back(key.text);
      read_item(key.text, at(dict.items[i + 1]), result);
    }
    check(result.mask_token_id.has_value(), "expected the key 'mask_token_id', found none");
    check(!result.tensor.name.empty(), "expected the key 'embedding', found none");
    return result;
  }

 private:
  [[noreturn]] void fail_here(const std::string& text) const {
    fail(ErrorCode::bad_format, kWhere, source_, ": ", text,
         ". Save it as mask_embedding.safetensors (tensor 'embedding') instead.");
  }
  template <typename... Args>
  void check(bool ok, const Args&... args) const {
    if (!ok) fail_here(concat(args...));
  }
  const PickleValue& at(uint32_t idx) const { return pickle_.values[idx]; }
  static std::string_view text_of(const ZipEntry& entry) {
    return {reinterpret_cast<const char*>(entry.data.data()), entry.data.size()};
  }

  /// All entries lie in one folder, whose name is free.
  void find_root() {
    for (const ZipEntry& entry : entries_)
      if (entry.name.ends_with("/data.pkl") && entry.name.find('/') == entry.name.size() - 9)
        root_ = entry.name.substr(0, entry.name.size() - 8);
    check(!root_.empty(), "expected an archive of torch.save with data.pkl, found none");
    for (const ZipEntry& entry : entries_)
      check(entry.name.starts_with(root_), "expected all entries in ", printable(root_), ", got ",
            printable(entry.name));
  }
  const ZipEntry* find(const std::string& name) const {
    const auto found =
        std::find_if(entries_.begin(), entries_.end(),
                     [&](const ZipEntry& entry) { return entry.name == root_ + name; });
    return found == entries_.end() ? nullptr : &*found;
  }
  const ZipEntry& entry(const std::string& name) const {
    const ZipEntry* found = find(name);
    check(found != nullptr, "expected an entry ", printable(root_ + name), ", found none");
    return *found;
  }

  void read_item(const std::string& key, const PickleValue& value, MaskEmbedding& result) const {
    if (key == "mask_token_id") {
      check(value.kind == Kind::integer, "mask_token_id: expected an integer, got another value");
      result.mask_token_id = value.number;
    } else if (key == "embedding") {
      check(value.kind == Kind::tensor, "embedding: expected a tensor, got another value");
      read_tensor(value, result);
    } else {
      check(key == "per_position", "expected the keys 'mask_token_id', 'embedding' and ",
            "'per_position', got ", printable(key));
      check(value.kind == Kind::boolean && value.number == 0,
            "per_position: expected False (one vector for all positions), got another value");
    }
  }

  void read_tensor(const PickleValue& value, MaskEmbedding& result) const {
    check(value.numbers.size() == 3, "embedding: expected one dimension, got ",
          (value.numbers.size() - 1) / 2);
    const auto offset = static_cast<uint64_t>(value.numbers[0]);
    const auto size = static_cast<uint64_t>(value.numbers[1]);
    const auto stride = static_cast<uint64_t>(value.numbers[2]);
    const PickleValue& storage = at(value.items[0]);
    const std::span<const std::byte> data = entry("data/" + storage.text).data;
    const uint64_t element_bytes = dtype_bits(storage.dtype) / 8;
    const uint64_t num_stored = data.size() / element_bytes;
    check(storage.number >= 0 && static_cast<uint64_t>(storage.number) == num_stored &&
              data.size() % element_bytes == 0,
          "embedding: expected a storage of ", storage.number, " elements, got ", data.size(),
          " bytes");
    // All three are below 2^31.
    check(size > 0 && stride > 0 && offset < num_stored &&
              (size - 1) * stride < num_stored - offset,
          "embedding: expected elements inside its storage of ", num_stored, ", got ", size,
          " from ", offset, " by ", stride);
    for (uint64_t i = 0; i < size; ++i) {
      const auto element = data.subspan((offset + i * stride) * element_bytes, element_bytes);
      result.bytes.insert(result.bytes.end(), element.begin(), element.end());
    }
    result.tensor = {kFileTensor, storage.dtype, {size}, result.bytes, std::string(source_)};
  }

  std::string_view source_;
  FailFile fail_file_;
  std::vector<ZipEntry> entries_;
  std::string root_;
  Pickle pickle_;
};

void check_form(const TensorInfo& tensor, const DraftConfig& config) {
  const auto& shape = tensor.shape;
  MIMO_RT_CHECK(shape == std::vector<uint64_t>{config.hidden_size}, shape_mismatch, kWhere,
                "mask embedding of ", printable(tensor.file_name), ": expected [",
                config.hidden_size, "] as the config's hidden_size, got ",
                shape.size() == 1 ? concat('[', shape[0], ']')
                                  : concat(shape.size(), " dimensions"),
                ". Use the mask embedding that belongs to this draft.");
  const DType dtype = tensor.dtype;
  MIMO_RT_CHECK(dtype == DType::bf16 || dtype == DType::f32 || dtype == DType::f16, shape_mismatch,
                kWhere, "mask embedding of ", printable(tensor.file_name),
                ": expected BF16, F32 or F16, got ", dtype_name(dtype));
}

MaskEmbedding copy_of(const TensorInfo& tensor, const DraftConfig& config) {
  check_form(tensor, config);
  MaskEmbedding result;
  result.bytes.assign(tensor.data.begin(), tensor.data.end());
  result.tensor = tensor;
  result.tensor.data = result.bytes;
  return result;
}

MaskEmbedding copy_of_row(const TensorInfo& table, const DraftConfig& config) {
  TensorInfo row = table;
  const uint64_t row_bytes = table.data.size() / table.shape[0];
  row.shape = {table.shape[1]};
  row.data = table.data.subspan(static_cast<uint64_t>(config.mask_token_id) * row_bytes, row_bytes);
  MaskEmbedding result = copy_of(row, config);
  result.is_of_target = true;
  return result;
}

bool has_file(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::symlink_status(path, error).type() !=
         std::filesystem::file_type::not_found;
}

MaskEmbedding read_file_of_its_own(const std::filesystem::path& directory,
                                   const DraftConfig& config) {
  Checkpoint::Options options;
  options.single_file = kMaskEmbeddingFile;
  const Checkpoint file = Checkpoint::open(directory, options);
  const TensorInfo* tensor = file.find(kFileTensor);
  MIMO_RT_CHECK(tensor && file.tensors().size() == 1, bad_format, kWhere, kMaskEmbeddingFile,
                ": expected one tensor, 'embedding', got ",
                tensor ? "others too" : "another one or none");
  return copy_of(*tensor, config);
}

MaskEmbedding read_torch_file(const std::filesystem::path& directory, const DraftConfig& config) {
  const InputFile file = InputFile::open(directory, kTorchFile, kWhere);
  MIMO_RT_CHECK(file.size() <= kMaxFileBytes, bad_format, kWhere, kTorchFile,
                ": expected at most ", kMaxFileBytes, " bytes, got ", file.size(),
                ". Save the vector alone as mask_embedding.safetensors (tensor 'embedding').");
  std::vector<std::byte> bytes(file.size());
  file.read_exact(0, bytes);
  MaskEmbedding mask = parse_torch_mask_embedding(bytes, kTorchFile);
  check_form(mask.tensor, config);
  MIMO_RT_CHECK(*mask.mask_token_id == config.mask_token_id, bad_format, kWhere, kTorchFile,
                ": mask_token_id: expected the config's ", config.mask_token_id, ", got ",
                *mask.mask_token_id, ". Use the mask embedding that belongs to this draft.");
  return mask;
}

}  // namespace

MaskEmbedding parse_torch_mask_embedding(std::span<const std::byte> file,
                                         std::string_view source) {
  return TorchReader(file, source).read();
}

MaskEmbedding read_mask_embedding(const Checkpoint& draft, const DraftConfig& config,
                                  const TensorInfo* target_embedding) {
  const std::filesystem::path& directory = draft.directory();
  if (has_file(directory / kMaskEmbeddingFile)) return read_file_of_its_own(directory, config);
  if (const TensorInfo* own = find_own_mask_embedding(draft)) return copy_of(*own, config);
  if (has_file(directory / kTorchFile)) return read_torch_file(directory, config);
  if (config.uses_target_mask && target_embedding) return copy_of_row(*target_embedding, config);
  fail(ErrorCode::missing_tensor, kWhere, printable(directory.string()),
       ": expected mask_embedding.safetensors, mask_embedding.pt or a tensor 'mask_embedding', found "
       "none. Copy the file from where the draft was published: for a draft with MiMo's fields the row "
       "of the embedding table is no substitute.");
}

}  // namespace mimo_rt
