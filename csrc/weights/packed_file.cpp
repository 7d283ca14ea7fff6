#include "weights/packed_file.h"

#include "core/available_memory.h"
#include "core/checks.h"
#include "core/text.h"
#include "weights/packed.h"
#include "weights/work_items.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

namespace mimo_rt {
namespace {

constexpr char kMagic[8] = {'M', 'I', 'M', 'O', 'P', 'A', 'C', 'K'};
constexpr uint32_t kByteOrder = 0x01020304;
constexpr uint32_t kFormatVersion = 1;
constexpr uint64_t kSumsBegin = 4096;
// Written as one piece at a multiple of its size, a block can be one huge page of the page cache.
constexpr uint64_t kBlockBytes = uint64_t{2} << 20;
constexpr uint64_t kMaxPayloadBytes = uint64_t{1} << 46;
constexpr uint64_t kReadAheadBlocks = 8;

struct Header {
  char magic[8];
  uint32_t byte_order;
  uint32_t format_version;
  uint32_t layout_version;
  uint32_t reserved;
  uint64_t num_bytes;
  Digest key;
  char part[16];
  char library_version[32];
  char source_dir[1024];
  uint64_t sum_of_sums;  ///< of the blocks
  uint64_t sum;          ///< of all before it
};
static_assert(std::is_trivially_copyable_v<Header> && sizeof(Header) == kPackedHeaderBytes &&
              kPackedHeaderBytes <= kSumsBegin && offsetof(Header, sum) == sizeof(Header) - sizeof(uint64_t));

uint64_t num_blocks(uint64_t num_bytes) { return (num_bytes + kBlockBytes - 1) / kBlockBytes; }

uint64_t payload_begin(uint64_t num_bytes) {
  const uint64_t end = kSumsBegin + num_blocks(num_bytes) * sizeof(uint64_t);
  return (end + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
}

uint64_t header_sum(const Header& header) {
  return packed_sum(std::as_bytes(std::span(&header, 1)).first(offsetof(Header, sum)), 0);
}

std::span<const std::byte> block_of(const Arena& arena, uint64_t block_idx) {
  const uint64_t begin = block_idx * kBlockBytes;
  const uint64_t size = std::min(kBlockBytes, arena.size_bytes() - begin);
  return {reinterpret_cast<const std::byte*>(arena.data()) + begin, size};
}

/// A file with the names that its errors need.
struct NamedFile {
  int descriptor;
  const std::string& name;
  const char* where;

  template <typename... Args>
  [[noreturn]] void bad(const Args&... args) const {
    fail(ErrorCode::bad_format, where, printable(name), ": ", args...);
  }
  [[noreturn]] void refused(const char* action, int error) const {
    fail(ErrorCode::io, where, printable(name), ": ", action, ": ", std::strerror(error));
  }
  void read(uint64_t offset, std::span<std::byte> out) const {
    while (!out.empty()) {
      const ssize_t count = ::pread(descriptor, out.data(), out.size(), static_cast<off_t>(offset));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) refused("reading", errno);
      if (count == 0) bad("expected more bytes behind ", offset, ", the file ended there");
      offset += static_cast<uint64_t>(count);
      out = out.subspan(static_cast<size_t>(count));
    }
  }
  void write(uint64_t offset, std::span<const std::byte> bytes) const {
    while (!bytes.empty()) {
      const ssize_t count =
          ::pwrite(descriptor, bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) refused("writing", count < 0 ? errno : ENOSPC);
      offset += static_cast<uint64_t>(count);
      bytes = bytes.subspan(static_cast<size_t>(count));
    }
  }
};

template <size_t kSize>
std::string text_of(const char (&field)[kSize]) {
  return {field, std::find(field, field + kSize, '\0')};
}

template <size_t kSize>
void set_text(char (&field)[kSize], const std::string& text) {
  text.copy(field, kSize);
}

/// The header, checked, and the size of the file with it.
Header read_header(const NamedFile& file) {
  struct stat status {};
  if (::fstat(file.descriptor, &status) != 0) file.refused("reading its size", errno);
  const auto file_bytes = static_cast<uint64_t>(status.st_size);
  if (!S_ISREG(status.st_mode) || file_bytes < kSumsBegin)
    file.bad("expected a file of at least ", kSumsBegin, " bytes, got ", file_bytes);
  Header header;
  file.read(0, std::as_writable_bytes(std::span(&header, 1)));
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0)
    file.bad("expected packed weights, got another kind of file");
  if (header.byte_order != kByteOrder)
    file.bad("expected the byte order of this machine, got another");
  if (header.format_version != kFormatVersion)
    file.bad("expected file format ", kFormatVersion, ", got ", header.format_version);
  if (header.num_bytes > kMaxPayloadBytes || packed_file_bytes(header.num_bytes) != file_bytes)
    file.bad("expected a file for ", header.num_bytes, " packed bytes, got ", file_bytes,
             " bytes");
  if (header.sum != header_sum(header)) file.bad("the header does not match its sum");
  return header;
}

std::vector<uint64_t> read_sums(const NamedFile& file, const Header& header) {
  std::vector<uint64_t> sums(num_blocks(header.num_bytes));
  file.read(kSumsBegin, std::as_writable_bytes(std::span(sums)));
  if (header.sum_of_sums != packed_sum(std::as_bytes(std::span(sums)), 0))
    file.bad("the table of sums does not match its own sum");
  return sums;
}

PackedFileInfo info_of(const Header& header) {
  return {.key = header.key,
          .layout_version = header.layout_version,
          .num_bytes = header.num_bytes,
          .part = text_of(header.part),
          .library_version = text_of(header.library_version),
          .source_dir = text_of(header.source_dir)};
}

/// Space for the whole file, where the file system can reserve it: a full disk is known at once.
void reserve_space(const NamedFile& file, uint64_t num_bytes) {
  rlimit limit{};  // writing beyond it would end the process with a signal
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
      num_bytes > limit.rlim_cur)
    file.refused("reserving its space", EFBIG);
  int result = 0;
  do {
    result = ::fallocate(file.descriptor, 0, 0, static_cast<off_t>(num_bytes));
  } while (result != 0 && errno == EINTR);
  if (result != 0 && errno != EOPNOTSUPP && errno != ENOSYS)
    file.refused("reserving its space", errno);
}

}  // namespace

uint64_t packed_sum(std::span<const std::byte> bytes, uint64_t start) {
  using Words = uint64_t __attribute__((vector_size(32)));
  Words first[2] = {}, second[2] = {};
  size_t at = 0;
  for (; at + sizeof first <= bytes.size(); at += sizeof first)
    for (size_t i = 0; i < 2; ++i) {
      Words words;
      std::memcpy(&words, bytes.data() + at + i * sizeof words, sizeof words);
      first[i] += words;
      second[i] += first[i];
    }
  uint64_t sum = start + bytes.size(), sum_of_sums = sum;
  const auto add = [&](uint64_t word) { sum_of_sums += sum += word * 0x9e3779b97f4a7c15u; };
  for (size_t i = 0; i < 2; ++i)
    for (size_t lane = 0; lane < 4; ++lane) {
      add(first[i][lane]);
      add(second[i][lane]);
    }
  for (; at < bytes.size(); ++at) add(std::to_integer<uint64_t>(bytes[at]));
  return sum ^ std::rotl(sum_of_sums, 32);
}

uint64_t packed_file_bytes(uint64_t num_payload_bytes) {
  return payload_begin(num_payload_bytes) + num_payload_bytes;
}

PackedFileInfo read_packed_info(int descriptor, const std::string& name, const char* where) {
  return info_of(read_header({descriptor, name, where}));
}

Arena read_packed_file(int descriptor, const std::string& name, const PackedFileInfo& expected,
                       const Weights::Options& options, const char* where) {
  const NamedFile file{descriptor, name, where};
  const Header header = read_header(file);
  if (header.key != expected.key || header.layout_version != expected.layout_version)
    file.bad("expected the weights ", to_hex(expected.key), ", got ", to_hex(header.key));
  if (header.num_bytes != expected.num_bytes)
    file.bad("expected ", expected.num_bytes, " packed bytes, got ", header.num_bytes);
  if (!options.use_mmap)
    check_memory(header.num_bytes, available_memory_bytes(), where,
                 "the packed weights, copied without use_mmap,");
  const std::vector<uint64_t> sums = read_sums(file, header);
  const uint64_t begin = payload_begin(header.num_bytes);
  Arena arena = options.use_mmap ? Arena::map_file(descriptor, begin, header.num_bytes, where)
                                 : Arena(header.num_bytes, where);
  WorkItems work;
  work.num_items = sums.size();
  work.total_bytes = header.num_bytes;
  work.run = [&](uint64_t block_idx) {
    const std::span<const std::byte> block = block_of(arena, block_idx);
    if (!options.use_mmap)
      file.read(begin + block_idx * kBlockBytes,
                {const_cast<std::byte*>(block.data()), block.size()});  // the arena is ours
    else if (block_idx + kReadAheadBlocks < sums.size())
      arena.read_ahead((block_idx + kReadAheadBlocks) * kBlockBytes, kBlockBytes);
    if (packed_sum(block, block_idx) != sums[block_idx])
      file.bad("the block at byte ", begin + block_idx * kBlockBytes, " does not match its sum");
    return uint64_t{block.size()};
  };
  work.progress = options.progress;
  work.num_threads = options.num_threads;
  work.where = where;
  run_work_items(work);
  return arena;
}

void write_packed_file(int descriptor, const std::string& name, const PackedFileInfo& info,
                       const Arena& arena, const Weights::Options& options, const char* where) {
  const NamedFile file{descriptor, name, where};
  reserve_space(file, packed_file_bytes(info.num_bytes));
  std::vector<uint64_t> sums(num_blocks(info.num_bytes));
  const uint64_t begin = payload_begin(info.num_bytes);
  WorkItems work;
  work.num_items = sums.size();
  work.run = [&](uint64_t block_idx) {
    const std::span<const std::byte> block = block_of(arena, block_idx);
    sums[block_idx] = packed_sum(block, block_idx);
    file.write(begin + block_idx * kBlockBytes, block);
    return uint64_t{block.size()};
  };
  work.progress = options.progress;
  work.num_threads = options.num_threads;
  work.where = where;
  run_work_items(work);
  Header header{};
  std::copy_n(kMagic, sizeof kMagic, header.magic);
  header.byte_order = kByteOrder;
  header.format_version = kFormatVersion;
  header.layout_version = info.layout_version;
  header.num_bytes = info.num_bytes;
  header.key = info.key;
  set_text(header.part, info.part);
  set_text(header.library_version, info.library_version);
  set_text(header.source_dir, info.source_dir);
  header.sum_of_sums = packed_sum(std::as_bytes(std::span(sums)), 0);
  header.sum = header_sum(header);
  file.write(kSumsBegin, std::as_bytes(std::span(sums)));
  file.write(0, std::as_bytes(std::span(&header, 1)));
  if (::fdatasync(descriptor) != 0) file.refused("writing", errno);
}

}  // namespace mimo_rt
