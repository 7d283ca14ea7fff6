// Changes of a checkpoint's files that their time stamps show late or not at all, and times that no clock shows yet.
#include "check.h"
#include "core/file.h"
#include "packed_cache_fixture.h"
#include "weights/content_hash.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <thread>

using namespace fixture;

namespace {

namespace fs = std::filesystem;

constexpr const char* kWeightsName = "model.safetensors";
constexpr std::chrono::milliseconds kUntilSettled{3200};

/// The last byte of a file, which other programs could be changing through the same mapping.
class SharedByte {
 public:
  explicit SharedByte(const fs::path& path) : num_bytes_(fs::file_size(path)) {
    const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    mapping_ = ::mmap(nullptr, num_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    ::close(descriptor);
    if (mapping_ == MAP_FAILED) throw std::runtime_error("mmap failed");
  }
  SharedByte(const SharedByte&) = delete;
  ~SharedByte() { ::munmap(mapping_, num_bytes_); }

  void change() {
    auto& byte = static_cast<volatile unsigned char*>(mapping_)[num_bytes_ - 1];
    byte = static_cast<unsigned char>(byte ^ 1);
  }

 private:
  size_t num_bytes_;
  void* mapping_;
};

InputFile open_file(const writer::TempDir& dir, const std::string& name) {
  return InputFile::open(dir.path(), name, "test");
}

/// Whether this directory's file system shows the first change of a page that was brought to the disk.
bool shows_changes(const writer::TempDir& dir) {
  dir.write("probe", "a");
  SharedByte byte(dir.path() / "probe");
  byte.change();
  const InputFile before = open_file(dir, "probe");
  if (!before.write_back()) return true;  // it is known not to
  ::fsync(before.descriptor());
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  byte.change();
  return !(open_file(dir, "probe").stamp() == before.stamp());
}

/// Changes a page until it is dirty, the stamps are settled, and one more change did not show in them. False: it
/// always did.
bool change_unseen(const writer::TempDir& model, SharedByte& byte) {
  bool is_unseen = false;
  for (int i = 0; i < 5 && !is_unseen; ++i) {  // the system may bring the page to the disk at any time
    byte.change();
    std::this_thread::sleep_for(kUntilSettled);
    const FileStamp dirty = open_file(model, kWeightsName).stamp();
    byte.change();
    is_unseen = open_file(model, kWeightsName).stamp() == dirty;
  }
  return is_unseen;
}

/// A page that is dirty when the contents are hashed changes again. `must_be_unseen`: there is no disk that it could
/// have been brought to meanwhile.
void check_noticed(const writer::TempDir& model, bool must_be_unseen) {
  const ModelConfig config = small_config();
  const writer::TempDir cache;
  write_checkpoint(model, config);
  SharedByte byte(model.path() / kWeightsName);
  if (!change_unseen(model, byte)) {  // the system brings pages to the disk all the time: there is nothing to notice
    CHECK(!must_be_unseen);
    return void(std::printf("  not run: all changes in %s show\n", model.path().c_str()));
  }
  const auto load = [&] { return load_target(model, config, cache_options(cache.path())); };
  const CachedLoad before = load();
  CHECK(before.report.state == State::written);
  byte.change();
  std::this_thread::sleep_for(kUntilSettled);
  const CachedLoad after = load();
  CHECK(after.report.state == State::written && after.bytes != before.bytes);
  CHECK(after.bytes == load_target(model, config, {}).bytes);
  CHECK(load().report.state == State::hit);
}

}  // namespace

TEST_CASE("a change through a shared mapping is noticed, also of a page that was dirty before") {
  const writer::TempDir model;
  if (shows_changes(model)) return check_noticed(model, false);
  std::printf("  not run: the file system of %s never shows such changes\n", model.path().c_str());
}

TEST_CASE("where nothing is brought to a disk, contents are hashed at every start") {
  if (::access("/dev/shm", W_OK) == 0) check_noticed(writer::TempDir("/dev/shm"), true);
}

TEST_CASE("times that no clock shows for centuries are times to come") {
  const writer::TempDir model;
  write_checkpoint(model, small_config());
  const fs::path path = model.path() / kWeightsName;
  constexpr time_t kLastSecond = 9'223'372'036, kYear2400 = 13'569'465'600;  // the last second of 2^63 nanoseconds
  for (const time_t second : {kLastSecond - 2, kLastSecond, kYear2400, std::numeric_limits<time_t>::max()}) {
    const timespec times[2] = {{second, 999'999'999}, {second, 999'999'999}};
    if (::utimensat(AT_FDCWD, path.c_str(), times, 0) != 0) continue;  // the file system may know fewer
    struct stat status {};
    CHECK_EQ(::stat(path.c_str(), &status), 0);
    const int64_t shown = std::min<int64_t>(status.st_mtim.tv_sec, kLastSecond - 2);
    CHECK(open_file(model, kWeightsName).stamp().mtime_ns >= shown * 1'000'000'000);
    CHECK(!are_stamps_settled(Checkpoint::open(model.path())));
  }
}

CHECK_MAIN()
