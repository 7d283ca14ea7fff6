#include "core/file.h"

#include "core/checks.h"
#include "core/text.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace mimo_rt {
namespace {

namespace fs = std::filesystem;

bool lies_inside(const fs::path& path, const fs::path& directory) {
  const auto end = std::mismatch(directory.begin(), directory.end(), path.begin(), path.end());
  return end.first == directory.end() && end.second != path.end();
}

// A hub cache keeps <repo>/snapshots/<revision>/…/name -> <repo>/blobs/<hash>.
bool lies_in_hub_blobs(const fs::path& target, const fs::path& directory) {
  constexpr int kMaxLevels = 3;  // a draft model sits one folder below the revision
  fs::path level = directory;
  for (int i = 0; i < kMaxLevels && level.has_relative_path(); ++i, level = level.parent_path()) {
    const fs::path parent = level.parent_path();
    if (parent.filename() == "snapshots" && parent.has_parent_path())
      return lies_inside(target, parent.parent_path() / "blobs");
  }
  return false;
}

FileStamp stamp_of(const struct stat& status) {
  const auto nanoseconds = [](const timespec& time) {
    constexpr int64_t kSecond = 1'000'000'000, kMaxSeconds = INT64_MAX / kSecond - 1;  // in 2262
    return std::clamp<int64_t>(time.tv_sec, -kMaxSeconds, kMaxSeconds) * kSecond + time.tv_nsec;
  };
  return {.device = status.st_dev,
          .inode = status.st_ino,
          .size = static_cast<uint64_t>(status.st_size),
          .mtime_ns = nanoseconds(status.st_mtim),
          .ctime_ns = nanoseconds(status.st_ctim)};
}

fs::path resolve(const fs::path& directory, const std::string& name, const char* where) {
  const fs::path path = directory / name;
  std::error_code error;
  const fs::file_status status = fs::symlink_status(path, error);
  MIMO_RT_CHECK(status.type() != fs::file_type::not_found, io, where, printable(name),
                ": expected a file in ", directory.string(), ", found none");
  MIMO_RT_CHECK(status.type() != fs::file_type::none, io, where, printable(name), ": ",
                error.message());
  if (status.type() != fs::file_type::symlink) return path;
  const fs::path target = fs::canonical(path, error);
  MIMO_RT_CHECK(!error, io, where, printable(name), ": a symlink that cannot be followed: ",
                error.message());
  MIMO_RT_CHECK(lies_inside(target, directory) || lies_in_hub_blobs(target, directory), bad_format,
                where, printable(name),
                ": expected a symlink that stays in the checkpoint directory ",
                "or in the hub cache's blobs, got one to ", printable(target.string()),
                ". Copy the file into the directory.");
  return target;
}

}  // namespace

fs::path canonical_directory(const fs::path& directory, const char* where) {
  std::error_code error;
  const fs::path path = fs::canonical(directory, error);
  MIMO_RT_CHECK(!error && fs::is_directory(path, error), io, where, printable(directory.string()),
                ": expected a directory, ", error ? error.message() : "got something else");
  return path;
}

InputFile::InputFile(int descriptor, std::string name, const char* where)
    : descriptor_(descriptor), name_(std::move(name)), where_(where) {}

InputFile::InputFile(InputFile&& other) noexcept
    : descriptor_(std::exchange(other.descriptor_, -1)),
      stamp_(other.stamp_),
      name_(std::move(other.name_)),
      where_(other.where_) {}

InputFile::~InputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

InputFile InputFile::open(const fs::path& directory, const std::string& name, const char* where) {
  const fs::path path = resolve(directory, name, where);
  // O_NONBLOCK: opening a named pipe must not wait. O_NOFOLLOW: the last step was resolved above.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  const int open_errno = errno;
  InputFile file(descriptor, name, where);
  MIMO_RT_CHECK(descriptor >= 0, io, where, printable(name), ": cannot be opened: ",
                std::strerror(open_errno));
  struct stat status {};
  MIMO_RT_CHECK(::fstat(descriptor, &status) == 0, io, where, printable(name), ": ",
                std::strerror(errno));
  MIMO_RT_CHECK(S_ISREG(status.st_mode), bad_format, where, printable(name),
                ": expected a regular file, got a directory, pipe or device");
  file.stamp_ = stamp_of(status);
  return file;
}

bool InputFile::write_back() const noexcept {
  ::fdatasync(descriptor_);  // what a disk refuses is not this reader's loss
  struct statfs system {};
  return ::fstatfs(descriptor_, &system) == 0 && system.f_type != TMPFS_MAGIC &&
         system.f_type != RAMFS_MAGIC;
}

void InputFile::read_exact(uint64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t count =
        ::pread(descriptor_, out.data(), out.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    MIMO_RT_CHECK(count > 0, io, where_, printable(name_), ": reading at byte ", offset, ": ",
                  count == 0 ? "the file ended early" : std::strerror(errno));
    offset += static_cast<uint64_t>(count);
    out = out.subspan(static_cast<size_t>(count));
  }
}

void InputFile::check_unchanged() const {
  struct stat status {};
  const bool ok = ::fstat(descriptor_, &status) == 0;
  MIMO_RT_CHECK(ok && static_cast<uint64_t>(status.st_size) == size(), io, where_, printable(name_),
                ": the file changed while it was opened: expected ", size(), " bytes, got ",
                ok ? std::to_string(status.st_size) : std::strerror(errno));
}

std::string read_text_file(const fs::path& directory, const std::string& name, uint64_t max_bytes,
                           const char* where) {
  const InputFile file = InputFile::open(canonical_directory(directory, where), name, where);
  MIMO_RT_CHECK(file.size() <= max_bytes, bad_format, where, printable(name), ": expected at most ",
                max_bytes, " bytes, got ", file.size());
  std::string text(file.size(), '\0');
  file.read_exact(0, std::as_writable_bytes(std::span(text)));
  return text;
}

}  // namespace mimo_rt
