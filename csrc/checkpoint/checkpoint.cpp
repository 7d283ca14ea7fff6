// Checkpoint::open: from a directory of untrusted files to a sorted list of tensor views.
#include "checkpoint/checkpoint_impl.h"

#include "checkpoint/index.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/tensor_table.h"
#include "core/checks.h"
#include "core/text.h"

#include <algorithm>
#include <array>
#include <utility>

namespace mimo_rt {

namespace {

constexpr const char* kWhere = "Checkpoint.open";
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kSingleName = "model.safetensors";
constexpr uint64_t kMaxIndexBytes = 256'000'000;

// The header goes through a private copy: the mapping could change between two looks at a byte.
std::vector<HeaderTensor> read_header(const InputFile& file, uint64_t max_header_bytes) {
  const std::string source = printable(file.name());
  MIMO_RT_CHECK(file.size() >= kHeaderLengthBytes, bad_format, kWhere, source,
                ": expected at least ", kHeaderLengthBytes, " bytes, got ", file.size());
  std::array<std::byte, kHeaderLengthBytes> length_field;
  file.read_exact(0, length_field);
  std::vector<std::byte> json(header_bytes(length_field, file.size(), max_header_bytes, source));
  file.read_exact(kHeaderLengthBytes, json);
  return parse_header(json, file.size(), source);
}

void append_shard(const std::filesystem::path& directory, const std::string& name,
                  const Checkpoint::Options& options, std::vector<Shard>& shards,
                  std::vector<TensorInfo>& tensors) {
  const InputFile file = InputFile::open(directory, name, kWhere);
  std::vector<HeaderTensor> header = read_header(file, options.max_header_bytes);
  shards.push_back({name, file.stamp(), MappedFile::map(file, options.use_mmap)});
  const std::span<const std::byte> bytes = shards.back().file.bytes();
  for (HeaderTensor& tensor : header)
    tensors.push_back({std::move(tensor.name), tensor.dtype, std::move(tensor.shape),
                       bytes.subspan(tensor.begin, tensor.end - tensor.begin), name});
}

// Check 21: the index and the shards say the same.
void check_index(const CheckpointIndex& index, const std::vector<TensorInfo>& tensors) {
  const auto by_name = [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; };
  const auto twice = std::adjacent_find(
      tensors.begin(), tensors.end(),
      [&](const TensorInfo& a, const TensorInfo& b) { return !by_name(a, b); });
  if (twice != tensors.end())
    fail(ErrorCode::bad_format, kWhere, "tensor ", printable(twice->name),
         ": expected it in one shard, got it in ", printable(twice->file_name), " and ",
         printable((twice + 1)->file_name));
  auto tensor = tensors.begin();
  for (const IndexEntry& entry : index.entries) {
    if (tensor != tensors.end() && tensor->name < entry.tensor_name) break;  // not in the index
    const std::string& file_name = index.file_names[entry.file_idx];
    MIMO_RT_CHECK(tensor != tensors.end() && tensor->name == entry.tensor_name, missing_tensor,
                  kWhere, kIndexName, ": expected tensor ", printable(entry.tensor_name), " in ",
                  printable(file_name), ", found it in no shard");
    MIMO_RT_CHECK(tensor->file_name == file_name, bad_format, kWhere, kIndexName,
                  ": expected tensor ", printable(entry.tensor_name), " in ", printable(file_name),
                  ", found it in ", printable(tensor->file_name));
    ++tensor;
  }
  if (tensor != tensors.end())
    fail(ErrorCode::bad_format, kWhere, printable(tensor->file_name), ": tensor ",
         printable(tensor->name), ": expected an entry in ", kIndexName, ", found none");
}

// Also true for a dangling symlink: opening it then says what is wrong.
bool has_entry(const std::filesystem::path& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  return fs::symlink_status(path, error).type() != fs::file_type::not_found;
}

// How alike two names are: what they share at both ends.
size_t similarity(std::string_view a, std::string_view b) {
  const size_t prefix = static_cast<size_t>(
      std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin());
  const size_t suffix = static_cast<size_t>(
      std::mismatch(a.rbegin(), a.rend(), b.rbegin(), b.rend()).first - a.rbegin());
  return std::min(prefix + suffix, std::min(a.size(), b.size()));
}

}  // namespace

Checkpoint::Checkpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

Checkpoint Checkpoint::open(const std::filesystem::path& directory) {
  return open(directory, Options{});
}

Checkpoint Checkpoint::open(const std::filesystem::path& directory, const Options& options) {
  auto impl = std::make_unique<Impl>();
  impl->directory = canonical_directory(directory, kWhere);
  CheckpointIndex index;
  const bool has_index = options.single_file.empty() && has_entry(impl->directory / kIndexName);
  if (!options.single_file.empty()) {
    index.file_names = {options.single_file};
  } else if (has_index) {
    index = parse_index(read_text_file(impl->directory, kIndexName, kMaxIndexBytes, kWhere),
                        kIndexName);
  } else {
    MIMO_RT_CHECK(has_entry(impl->directory / kSingleName), io, kWhere,
                  printable(impl->directory.string()), ": expected ", kIndexName, " or ",
                  kSingleName, ", found neither");
    index.file_names = {kSingleName};
  }
  for (const std::string& name : index.file_names)
    append_shard(impl->directory, name, options, impl->shards, impl->tensors);
  std::sort(impl->tensors.begin(), impl->tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  if (has_index) check_index(index, impl->tensors);
  return Checkpoint(std::move(impl));
}

const std::filesystem::path& Checkpoint::directory() const noexcept { return impl_->directory; }
const std::vector<TensorInfo>& Checkpoint::tensors() const noexcept { return impl_->tensors; }

const TensorInfo* Checkpoint::find(std::string_view name) const noexcept {
  const auto found = std::lower_bound(
      impl_->tensors.begin(), impl_->tensors.end(), name,
      [](const TensorInfo& tensor, std::string_view wanted) { return tensor.name < wanted; });
  return found != impl_->tensors.end() && found->name == name ? &*found : nullptr;
}

const TensorInfo& Checkpoint::at(std::string_view name) const {
  if (const TensorInfo* tensor = find(name)) return *tensor;
  const auto closest = std::max_element(
      impl_->tensors.begin(), impl_->tensors.end(),
      [&](const TensorInfo& a, const TensorInfo& b) {
        return similarity(a.name, name) < similarity(b.name, name);
      });
  fail(ErrorCode::missing_tensor, "Checkpoint.at", "expected tensor ", printable(name),
       ", found none",
       closest != impl_->tensors.end() ? ". The closest name is " + printable(closest->name) + '.'
                                       : "");
}

void Checkpoint::release_pages(const TensorInfo& tensor) const noexcept {
  for (const Shard& shard : impl_->shards)
    if (shard.file.contains(tensor.data.data())) return shard.file.release_pages(tensor.data);
}

}  // namespace mimo_rt
