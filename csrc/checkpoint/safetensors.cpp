#include "checkpoint/safetensors.h"

#include "checkpoint/json_scanner.h"
#include "core/checks.h"
#include "core/text.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Checkpoint.open";
constexpr uint64_t kMaxInteger = (uint64_t{1} << 48) - 1;  // of the format's JSON schema
constexpr size_t kMaxRank = 8;
constexpr size_t kMaxTensors = size_t{1} << 22;
constexpr size_t kMaxEmptyTensors = 4096;
constexpr size_t kMaxNameBytes = 4096;

std::optional<DType> dtype_from_file_name(std::string_view name) {
#define MIMO_RT_X(value, bits, file_name) \
  if (name == file_name) return DType::value;
  MIMO_RT_DTYPES(MIMO_RT_X)
#undef MIMO_RT_X
  return std::nullopt;
}

class HeaderParser {
 public:
  HeaderParser(std::string_view json, uint64_t data_begin, uint64_t file_bytes,
               std::string_view source)
      : scanner_(json, kWhere, source),
        data_begin_(data_begin),
        file_bytes_(file_bytes),
        source_(source) {}

  std::vector<HeaderTensor> parse();

 private:
  template <typename... Args>
  [[noreturn]] void bad(const Args&... args) const {
    fail(ErrorCode::bad_format, kWhere, source_, ": ", args...);
  }
  void parse_metadata();
  void parse_tensor(HeaderTensor& tensor);
  void parse_shape(HeaderTensor& tensor);
  void parse_offsets(HeaderTensor& tensor);
  uint64_t data_bytes(const HeaderTensor& tensor) const;
  void check_name(const std::string& name) const;
  void check_unique_names() const;
  void check_layout();

  JsonScanner scanner_;
  uint64_t data_begin_, file_bytes_;
  std::string_view source_;
  std::vector<HeaderTensor> tensors_;
  bool has_metadata_ = false;
};

// Check 17: string to string; bounded by the header's size. 6: no key twice.
void HeaderParser::parse_metadata() {
  if (has_metadata_) bad("__metadata__: expected once, got it twice");
  has_metadata_ = true;
  std::vector<std::string> keys;
  scanner_.expect('{');
  if (scanner_.accept('}')) return;
  do {
    keys.push_back(scanner_.string());
    scanner_.expect(':');
    scanner_.string();
  } while (scanner_.accept(','));
  scanner_.expect('}');
  std::sort(keys.begin(), keys.end());
  const auto twice = std::adjacent_find(keys.begin(), keys.end());
  if (twice != keys.end()) bad("__metadata__: expected each key once, got ", printable(*twice));
}

// Check 16. A name is only ever compared, never used as a path.
void HeaderParser::check_name(const std::string& name) const {
  if (name.empty() || name.size() > kMaxNameBytes)
    bad("tensor name: expected 1 to ", kMaxNameBytes, " bytes, got ", name.size());
  const bool has_control = std::any_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
  });
  if (has_control) bad("tensor name: expected no control characters, got ", printable(name));
}

// Checks 9 and 10.
void HeaderParser::parse_shape(HeaderTensor& tensor) {
  scanner_.expect('[');
  if (scanner_.accept(']')) return;
  do {
    if (tensor.shape.size() == kMaxRank)
      bad("tensor ", printable(tensor.name), ": expected at most ", kMaxRank, " dimensions");
    tensor.shape.push_back(scanner_.integer(kMaxInteger));
  } while (scanner_.accept(','));
  scanner_.expect(']');
}

void HeaderParser::parse_offsets(HeaderTensor& tensor) {
  scanner_.expect('[');
  tensor.begin = scanner_.integer(kMaxInteger);
  scanner_.expect(',');
  tensor.end = scanner_.integer(kMaxInteger);
  scanner_.expect(']');
}

// Checks 11 and 12: overflow is found before a zero dimension can hide it.
uint64_t HeaderParser::data_bytes(const HeaderTensor& tensor) const {
  uint64_t nonzero_product = 1;
  bool has_zero = false;
  for (const uint64_t dim : tensor.shape) {
    has_zero |= dim == 0;
    if (__builtin_mul_overflow(nonzero_product, std::max<uint64_t>(dim, 1), &nonzero_product))
      bad("tensor ", printable(tensor.name), ": expected a shape of less than 2^64 elements");
  }
  uint64_t bits = 0;
  if (__builtin_mul_overflow(nonzero_product, uint64_t{dtype_bits(tensor.dtype)}, &bits))
    bad("tensor ", printable(tensor.name), ": expected a shape of less than 2^64 bits");
  if (has_zero) return 0;
  if (bits % 8 != 0)
    bad("tensor ", printable(tensor.name), ": expected whole bytes, got ", bits, " bits");
  return bits / 8;
}

// Checks 6, 7, 8, 13.
void HeaderParser::parse_tensor(HeaderTensor& tensor) {
  constexpr std::array<std::string_view, 3> kFields = {"dtype", "shape", "data_offsets"};
  std::array<bool, 3> seen{};
  scanner_.expect('{');
  do {
    const std::string key = scanner_.string();
    const auto field = static_cast<size_t>(
        std::find(kFields.begin(), kFields.end(), key) - kFields.begin());
    if (field == kFields.size())
      bad("tensor ", printable(tensor.name),
          ": expected only dtype, shape and data_offsets, got ", printable(key));
    if (seen[field])
      bad("tensor ", printable(tensor.name), ": expected ", key, " once, got it twice");
    seen[field] = true;
    scanner_.expect(':');
    if (field == 0) {
      const std::string dtype_text = scanner_.string();
      const std::optional<DType> dtype = dtype_from_file_name(dtype_text);
      if (!dtype)
        bad("tensor ", printable(tensor.name), ": expected a known dtype, got ",
            printable(dtype_text));
      tensor.dtype = *dtype;
    } else if (field == 1) {
      parse_shape(tensor);
    } else {
      parse_offsets(tensor);
    }
  } while (scanner_.accept(','));
  scanner_.expect('}');
  for (size_t i = 0; i < kFields.size(); ++i)
    if (!seen[i])
      bad("tensor ", printable(tensor.name), ": expected ", kFields[i], ", got nothing");
  const uint64_t bytes = data_bytes(tensor);
  if (tensor.begin > tensor.end || tensor.end - tensor.begin != bytes)
    bad("tensor ", printable(tensor.name), ": expected data_offsets of ", bytes, " bytes, got [",
        tensor.begin, ", ", tensor.end, "]");
}

// Check 6 for names: sorted copies of pointers, so a hostile header cannot make it quadratic.
void HeaderParser::check_unique_names() const {
  std::vector<std::string_view> names;
  names.reserve(tensors_.size());
  for (const HeaderTensor& tensor : tensors_) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) bad("expected each tensor once, got ", printable(*twice), " twice");
}

// Checks 14 and 15: the tensors fill the rest of the file, without holes or overlaps.
void HeaderParser::check_layout() {
  std::sort(tensors_.begin(), tensors_.end(), [](const HeaderTensor& a, const HeaderTensor& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  const uint64_t data_bytes = file_bytes_ - data_begin_;
  uint64_t position = 0;
  size_t num_empty = 0;
  for (HeaderTensor& tensor : tensors_) {
    if (tensor.begin != position)
      bad("tensor ", printable(tensor.name), ": expected its data at byte ", position,
          " (no hole, no overlap), got ", tensor.begin);
    num_empty += tensor.begin == tensor.end;
    position = tensor.end;
    if (position > data_bytes)
      bad("tensor ", printable(tensor.name), ": expected its data to end by byte ", data_bytes,
          ", got ", position, ": the file is truncated");
    tensor.begin += data_begin_;
    tensor.end += data_begin_;
  }
  if (position != data_bytes)
    bad("expected ", position, " bytes of tensor data, got ", data_bytes);
  if (num_empty > kMaxEmptyTensors)
    bad("expected at most ", kMaxEmptyTensors, " empty tensors, got ", num_empty);
}

std::vector<HeaderTensor> HeaderParser::parse() {
  scanner_.expect('{');
  if (!scanner_.accept('}')) {
    do {
      HeaderTensor tensor;
      tensor.name = scanner_.string();
      scanner_.expect(':');
      if (tensor.name == "__metadata__") {
        parse_metadata();
        continue;
      }
      check_name(tensor.name);
      if (tensors_.size() == kMaxTensors) bad("expected at most ", kMaxTensors, " tensors");
      parse_tensor(tensor);
      tensors_.push_back(std::move(tensor));
    } while (scanner_.accept(','));
    scanner_.expect('}');
  }
  scanner_.expect_end(' ');  // check 18
  check_unique_names();
  check_layout();
  return std::move(tensors_);
}

}  // namespace

uint64_t header_bytes(std::span<const std::byte, kHeaderLengthBytes> length_field,
                      uint64_t file_bytes, uint64_t max_header_bytes, std::string_view source) {
  uint64_t length = 0;
  for (size_t i = kHeaderLengthBytes; i-- > 0;)
    length = length << 8 | std::to_integer<uint64_t>(length_field[i]);
  // Checks 2 and 3; the caller made sure that the file has 8 bytes.
  const uint64_t limit = std::min(max_header_bytes, file_bytes - kHeaderLengthBytes);
  MIMO_RT_CHECK(length >= 2 && length <= limit, bad_format, kWhere, source,
                ": expected a header of 2 to ", limit, " bytes, got ", length,
                length > max_header_bytes ? ". The limit is Options.max_header_bytes." : "");
  return length;
}

std::vector<HeaderTensor> parse_header(std::span<const std::byte> json, uint64_t file_bytes,
                                       std::string_view source) {
  const std::string_view text(reinterpret_cast<const char*>(json.data()), json.size());
  MIMO_RT_CHECK(!text.empty() && text[0] == '{', bad_format, kWhere, source,
                ": expected a header that begins with '{', got ", printable(text.substr(0, 8)));
  const uint64_t data_begin = kHeaderLengthBytes + json.size();
  MIMO_RT_CHECK(file_bytes >= data_begin, bad_format, kWhere, source, ": expected at least ",
                data_begin, " bytes, got ", file_bytes);
  return HeaderParser(text, data_begin, file_bytes, source).parse();
}

}  // namespace mimo_rt
