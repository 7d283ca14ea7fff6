#include "checkpoint/stored_zip.h"

#include "core/checks.h"
#include "core/text.h"

#include <algorithm>
#include <cstdint>

namespace mimo_rt {
namespace {

// APPNOTE.TXT, "Overall .ZIP file format": signatures, and the bytes of each record before its name.
constexpr uint32_t kLocalSignature = 0x04034b50, kEntrySignature = 0x02014b50;
constexpr uint32_t kEndSignature = 0x06054b50;
constexpr size_t kLocalBytes = 30, kEntryBytes = 46, kEndBytes = 22;
constexpr uint32_t kMaxEntries = 256;
// Sizes that follow the data, and UTF-8 names; bit 0 would mean encryption.
constexpr uint32_t kAllowedFlags = 0x0808;

class Archive {
 public:
  Archive(std::span<const std::byte> file, const FailFile& fail_file)
      : file_(file), fail_file_(fail_file) {}

  std::vector<ZipEntry> read() const {
    check(file_.size() >= kEndBytes, "expected a zip archive, got ", file_.size(), " bytes");
    const size_t end = file_.size() - kEndBytes;
    check(u32(end) == kEndSignature && u16(end + 20) == 0,
          "expected a zip archive that ends with its directory and no comment, got something else");
    const uint32_t num_entries = u16(end + 10);
    check(u16(end + 4) == 0 && u16(end + 6) == 0 && u16(end + 8) == num_entries,
          "expected a zip archive in one part, got several");
    check(num_entries <= kMaxEntries, "expected at most ", kMaxEntries, " zip entries, got ",
          num_entries);
    const uint64_t directory_bytes = u32(end + 12), directory = u32(end + 16);
    check(directory <= end && directory_bytes <= end - directory,
          "expected the zip directory inside the file");
    return read_directory(directory, directory + directory_bytes, num_entries);
  }

 private:
  template <typename... Args>
  void check(bool ok, const Args&... args) const {
    if (!ok) fail_file_(concat(args...));
  }
  uint32_t byte(size_t at) const { return std::to_integer<uint32_t>(file_[at]); }
  uint32_t u16(size_t at) const { return byte(at) | byte(at + 1) << 8; }
  uint32_t u32(size_t at) const { return u16(at) | u16(at + 2) << 16; }
  std::string_view text(size_t at, size_t size) const {
    return {reinterpret_cast<const char*>(file_.data()) + at, size};
  }

  std::vector<ZipEntry> read_directory(size_t at, size_t end, uint32_t num_entries) const {
    std::vector<ZipEntry> entries;
    for (uint32_t i = 0; i < num_entries; ++i) {
      check(end - at >= kEntryBytes && u32(at) == kEntrySignature,
            "expected ", num_entries, " entries in the zip directory, got ", i);
      const size_t name_bytes = u16(at + 28);
      const size_t entry_bytes = kEntryBytes + name_bytes + u16(at + 30) + u16(at + 32);
      check(entry_bytes <= end - at, "expected whole entries in the zip directory");
      entries.push_back({std::string(text(at + kEntryBytes, name_bytes)), {}});
      ZipEntry& entry = entries.back();
      const auto is_same = [&](const ZipEntry& other) { return other.name == entry.name; };
      check(std::none_of(entries.begin(), entries.end() - 1, is_same), "expected each zip entry once, got ",
            printable(entry.name), " twice");
      entry.data = entry_data(at, entry.name);
      at += entry_bytes;
    }
    check(at == end, "expected nothing behind the last entry of the zip directory");
    return entries;
  }

  /// The bytes of the entry at `at` of the directory. Sizes in front of the data may be zero: those
  /// of the directory count.
  std::span<const std::byte> entry_data(size_t at, const std::string& name) const {
    const bool is_text = std::all_of(name.begin(), name.end(),
                                     [](char c) { return c > 0x20 && c < 0x7f; });
    check(is_text && !name.empty(), "expected zip entries with ASCII names, got ", printable(name));
    check((u16(at + 8) & ~kAllowedFlags) == 0 && u16(at + 10) == 0 && u32(at + 20) == u32(at + 24),
          "zip entry ", printable(name), ": expected stored bytes, got compressed or encrypted ones");
    const uint64_t size = u32(at + 24), local = u32(at + 42), file_bytes = file_.size();
    check(local <= file_bytes && file_bytes - local >= kLocalBytes + name.size(), "zip entry ",
          printable(name), ": expected it inside the file");
    check(u32(local) == kLocalSignature && u16(local + 8) == 0 && u16(local + 26) == name.size() &&
              text(local + kLocalBytes, name.size()) == name,
          "zip entry ", printable(name), ": expected the same entry in front of its data");
    const uint64_t begin = local + kLocalBytes + name.size() + u16(local + 28);
    check(begin <= file_bytes && size <= file_bytes - begin, "zip entry ", printable(name),
          ": expected its ", size, " bytes inside the file");
    return file_.subspan(begin, size);
  }

  std::span<const std::byte> file_;
  const FailFile& fail_file_;
};

}  // namespace

std::vector<ZipEntry> read_stored_zip(std::span<const std::byte> file, const FailFile& fail_file) {
  return Archive(file, fail_file).read();
}

}  // namespace mimo_rt
