#include "weights/cache_files.h"

#include "core/checks.h"
#include "core/text.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace mimo_rt {
namespace {

namespace fs = std::filesystem;

constexpr size_t kNameDigits = 32;

bool are_digits(std::string_view text) {
  return std::ranges::all_of(
      text, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

/// Whether a path still leads to an open file.
bool is_same_file(int descriptor, const fs::path& path) {
  struct stat opened {}, found {};
  return ::fstat(descriptor, &opened) == 0 && ::lstat(path.c_str(), &found) == 0 &&
         opened.st_dev == found.st_dev && opened.st_ino == found.st_ino;
}

/// A temporary file that disappears unless it is kept.
class TemporaryFile {
 public:
  TemporaryFile(const fs::path& directory, const std::string& name, const char* where)
      : where_(where) {
    constexpr mode_t kReadableByAll = 0444;  // as far as the process's umask allows
    constexpr int kMaxTries = 1000;
    for (int i = 0; i < kMaxTries && !descriptor_; ++i) {
      path_ = directory / concat(name, '.', ::getpid(), '-', i, kTemporarySuffix);
      descriptor_ = Descriptor(::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC,
                                      kReadableByAll));
      if (!descriptor_ && errno != EEXIST) break;
    }
    if (!descriptor_) refused("cannot create the file", errno);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile() {
    if (!is_kept_) ::unlink(path_.c_str());
  }

  int descriptor() const { return descriptor_.number(); }

  void keep_as(const fs::path& path) {
    if (::rename(path_.c_str(), path.c_str()) != 0) refused("cannot rename it", errno);
    is_kept_ = true;
  }

 private:
  [[noreturn]] void refused(const char* action, int error) const {
    fail(ErrorCode::io, where_, printable(path_.string(), 300), ": ", action, ": ", std::strerror(error));
  }

  fs::path path_;
  const char* where_;
  Descriptor descriptor_;
  bool is_kept_ = false;
};

}  // namespace

std::string cache_file_name(const Digest& digest, const char* suffix) {
  return to_hex(std::span(digest).first(kNameDigits / 2)) + suffix;
}

bool is_cache_file_name(const std::string& name) {
  if (name.size() <= kNameDigits || !are_digits(std::string_view(name).substr(0, kNameDigits)))
    return false;
  const std::string_view rest = std::string_view(name).substr(kNameDigits);
  const bool is_temporary = rest.ends_with(kTemporarySuffix);
  return std::ranges::any_of(
      std::initializer_list<const char*>{kArenaSuffix, kContentSuffix, kLockSuffix},
      [&](const char* suffix) { return is_temporary ? rest.starts_with(suffix) : rest == suffix; });
}

Descriptor::Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(number_, other.number_);
  return *this;
}

Descriptor::~Descriptor() {
  if (number_ >= 0) ::close(number_);
}

Descriptor open_cache_file(const fs::path& path) {
  // O_NONBLOCK: opening a named pipe must not wait.
  return Descriptor(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
}

void write_cache_file(const fs::path& directory, const std::string& name, const char* where,
                      const std::function<void(int descriptor)>& write) {
  TemporaryFile file(directory, name, where);
  write(file.descriptor());
  file.keep_as(directory / name);
  const Descriptor opened(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (opened) ::fsync(opened.number());  // the new name too; losing it only costs packing again
}

void remove_leftovers(const fs::path& directory, const std::string& name) noexcept {
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string found = entry->path().filename().string();
    if (found.starts_with(name + '.') && found.ends_with(kTemporarySuffix)) {
      std::error_code ignored;
      fs::remove(entry->path(), ignored);
    }
  }
}

WriterLock::~WriterLock() {
  if (!is_held_) return;
  if (is_same_file(descriptor_.number(), path_)) ::unlink(path_.c_str());  // the cache may have been cleared
  ::flock(descriptor_.number(), LOCK_UN);  // closing would leave it to children that have a copy of the descriptor
}

WriterLock::State WriterLock::try_lock() {
  if (!descriptor_)
    descriptor_ = Descriptor(
        ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666));
  if (!descriptor_) return State::unavailable;
  while (::flock(descriptor_.number(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    return errno == EWOULDBLOCK ? State::busy : State::unavailable;
  }
  is_held_ = is_same_file(descriptor_.number(), path_);
  if (is_held_) return State::held;
  descriptor_ = Descriptor();  // of a file that its holder removed; the next one may have a holder already
  return State::busy;
}

}  // namespace mimo_rt
