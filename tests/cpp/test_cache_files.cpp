// Who writes a file of the packed cache, and where the cache lies.
#include "check.h"
#include "packed_cache_fixture.h"
#include "weights/cache_files.h"

#include <pwd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <memory>

using namespace fixture;

namespace {

namespace fs = std::filesystem;

constexpr const char* kLockName = "file.lock";

}  // namespace

TEST_CASE("the right to write ends with its holder, also when a child has copies of its descriptors") {
  const writer::TempDir dir;
  auto first = std::make_unique<WriterLock>(dir.path() / kLockName);
  WriterLock second(dir.path() / kLockName);
  CHECK(first->try_lock() == WriterLock::State::held);
  CHECK(second.try_lock() == WriterLock::State::busy);
  const pid_t child = ::fork();
  if (child == 0) {
    ::pause();
    ::_exit(0);
  }
  first.reset();
  CHECK(second.try_lock() == WriterLock::State::busy);  // the file it asked for is gone: it asks anew
  CHECK(second.try_lock() == WriterLock::State::held);
  ::kill(child, SIGKILL);
  CHECK_EQ(::waitpid(child, nullptr, 0), child);
}

TEST_CASE("one holds the right to write, also when its file was removed and made again") {
  const writer::TempDir dir;
  auto first = std::make_unique<WriterLock>(dir.path() / kLockName);
  WriterLock second(dir.path() / kLockName), third(dir.path() / kLockName);
  CHECK(first->try_lock() == WriterLock::State::held);
  CHECK(second.try_lock() == WriterLock::State::busy);
  first.reset();
  CHECK(third.try_lock() == WriterLock::State::held);
  for (int i = 0; i < 3; ++i) CHECK(second.try_lock() == WriterLock::State::busy);
}

TEST_CASE("a holder leaves the file alone that another one has made since") {
  const writer::TempDir dir;
  auto first = std::make_unique<WriterLock>(dir.path() / kLockName);
  WriterLock second(dir.path() / kLockName), third(dir.path() / kLockName);
  CHECK(first->try_lock() == WriterLock::State::held);
  fs::remove(dir.path() / kLockName);  // as who clears the cache does
  CHECK(second.try_lock() == WriterLock::State::held);
  first.reset();
  CHECK(third.try_lock() == WriterLock::State::busy);
}

TEST_CASE("the directory follows the environment and the option") {
  ::setenv("HOME", "/home/u", 1);
  ::setenv("MIMO_RT_CACHE", "", 1);
  ::setenv("XDG_CACHE_HOME", "relative", 1);
  CHECK_EQ(cache_directory(), "/home/u/.cache/mimo_rt");
  ::setenv("XDG_CACHE_HOME", "/xdg", 1);
  CHECK_EQ(cache_directory(), "/xdg/mimo_rt");
  ::setenv("MIMO_RT_CACHE", "~/here", 1);
  CHECK_EQ(cache_directory(), "/home/u/here");
  // A service may have no HOME; the system knows it all the same.
  const passwd* user = ::getpwuid(::getuid());
  for (const bool is_set : {true, false}) {
    if (is_set) ::setenv("HOME", "", 1);
    else ::unsetenv("HOME");
    if (user) CHECK_EQ(cache_directory(), fs::path(user->pw_dir) / "here");
  }
  ::setenv("MIMO_RT_CACHE", "/given", 1);
  CHECK_EQ(packed_cache_directory("auto"), "/given/packed");
  CHECK_EQ(packed_cache_directory("/dir"), "/dir");
  CHECK(packed_cache_directory("none").empty());
}

CHECK_MAIN()
