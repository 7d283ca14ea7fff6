// Regular files of a checkpoint directory, opened so that no link leads out of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace mimo_rt {

/// The canonical path of an existing directory. `where` names the public operation in errors.
/// @throws Error{io}
std::filesystem::path canonical_directory(const std::filesystem::path& directory,
                                          const char* where);

/// What the file system says about a file. Writing to a file changes its `ctime_ns`, which no program
/// can set; through a shared mapping only the write that makes a page dirty does. From an
/// `InputFile::write_back` on, equal stamps mean equal contents, up to the clock's resolution.
struct FileStamp {
  uint64_t device = 0, inode = 0, size = 0;
  int64_t mtime_ns = 0, ctime_ns = 0;

  bool operator==(const FileStamp&) const = default;
};

/// An open regular file; size and stamp are taken once, from the open descriptor.
class InputFile {
 public:
  /// Opens `name` of `directory` (canonical). A symlink must lead to a file in the directory, or,
  /// when the directory lies in `snapshots/<revision>` of a hub cache, in its sibling `blobs`.
  /// @throws Error{io} when absent or unreadable, Error{bad_format} when not a regular file or when
  ///         the link leads elsewhere
  static InputFile open(const std::filesystem::path& directory, const std::string& name,
                        const char* where);
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&&) = delete;
  ~InputFile();

  const std::string& name() const { return name_; }
  uint64_t size() const { return stamp_.size; }
  const FileStamp& stamp() const { return stamp_; }
  int descriptor() const { return descriptor_; }
  /// Brings all changes to the disk, so that no page is dirty. False on tmpfs and ramfs, which have
  /// no disk: their pages stay dirty, and stamps miss changes. Others are believed.
  bool write_back() const noexcept;
  /// @throws Error{io} when the file ends earlier
  void read_exact(uint64_t offset, std::span<std::byte> out) const;
  /// @throws Error{io} when the file's size is no longer `size()`
  void check_unchanged() const;

 private:
  InputFile(int descriptor, std::string name, const char* where);

  int descriptor_ = -1;
  FileStamp stamp_;
  std::string name_;
  const char* where_;
};

/// The whole of a small file. @throws Error{bad_format} when it has more than `max_bytes`.
std::string read_text_file(const std::filesystem::path& directory, const std::string& name,
                           uint64_t max_bytes, const char* where);

}  // namespace mimo_rt
