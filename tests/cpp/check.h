// A small test framework: TEST_CASE registers, CHECK counts, and the program fails when any check failed.
// Usage of a test program: `test_x` runs all cases, `test_x --list` lists them, `test_x NAME…` runs some.
#pragma once

#include <mimo_rt/error.h>

#include <cstdio>
#include <cstring>
#include <functional>
#include <source_location>
#include <sstream>
#include <string>
#include <vector>

namespace check {

struct Case {
  const char* name;
  void (*run)();
};

inline std::vector<Case>& cases() {
  static std::vector<Case> list;
  return list;
}

inline int& failures() {
  static int count = 0;
  return count;
}

inline long& checks() {
  static long count = 0;
  return count;
}

struct Registrar {
  Registrar(const char* name, void (*run)()) { cases().push_back({name, run}); }
};

inline void report(const char* file, int line, const std::string& text) {
  if (++failures() <= 50) std::fprintf(stderr, "%s:%d: %s\n", file, line, text.c_str());
}

template <typename T>
std::string show(const T& value) {
  std::ostringstream out;
  if constexpr (requires { out << value; }) out << value;
  else out << "<value>";
  return out.str();
}

/// Runs `body`; it must throw Error{code} whose text contains `needle`.
inline void throws(const char* file, int line, mimo_rt::ErrorCode code, const std::string& needle,
                   const std::function<void()>& body) {
  ++checks();
  try {
    body();
  } catch (const mimo_rt::Error& error) {
    const std::string what = error.what();
    if (error.code() != code || what.find(needle) == std::string::npos)
      report(file, line, "expected Error{" + std::string(mimo_rt::error_name(code)) + "} with '" + needle +
                             "', got Error{" + std::string(mimo_rt::error_name(error.code())) + "}: " + what);
    return;
  }
  report(file, line, "expected Error{" + std::string(mimo_rt::error_name(code)) + "}, nothing was thrown");
}

/// refused(code, needle, change): `validate` throws Error{code} for `good` changed, whose text contains `needle`.
template <typename Params>
auto refusal_of(const Params& good, void (*validate)(const Params&)) {
  return [&good, validate](mimo_rt::ErrorCode code, const std::string& needle, const auto& change,
                           std::source_location at = std::source_location::current()) {
    Params bad = good;
    change(bad);
    throws(at.file_name(), static_cast<int>(at.line()), code, needle, [&] { validate(bad); });
  };
}

inline int main(int argc, char** argv) {
  if (argc == 2 && !std::strcmp(argv[1], "--list")) {
    for (const Case& test : cases()) std::printf("%s\n", test.name);
    return 0;
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // whoever ends a program that hangs knows the cases before
  int num_run = 0;
  for (const Case& test : cases()) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) wanted |= !std::strcmp(argv[i], test.name);
    if (!wanted) continue;
    ++num_run;
    const int before = failures();
    try {
      test.run();
    } catch (const std::exception& error) {
      report(test.name, 0, std::string("unexpected exception: ") + error.what());
    }
    std::printf("%s %s\n", failures() == before ? "ok  " : "FAIL", test.name);
  }
  std::printf("%d cases, %ld checks, %d failed\n", num_run, checks(), failures());
  return failures() || !num_run || !checks() ? 1 : 0;
}

}  // namespace check

#define CHECK_CONCAT_(a, b) a##b
#define CHECK_CONCAT(a, b) CHECK_CONCAT_(a, b)
#define TEST_CASE(name)                                                          \
  static void CHECK_CONCAT(test_, __LINE__)();                                   \
  static const check::Registrar CHECK_CONCAT(registrar_, __LINE__)(              \
      name, &CHECK_CONCAT(test_, __LINE__));                                     \
  static void CHECK_CONCAT(test_, __LINE__)()
#define CHECK(condition)                                                         \
  do {                                                                           \
    ++check::checks();                                                           \
    if (!(condition)) check::report(__FILE__, __LINE__, "CHECK(" #condition ")"); \
  } while (false)
#define CHECK_EQ(a, b)                                                           \
  do {                                                                           \
    ++check::checks();                                                           \
    const auto check_a = (a);                                                    \
    const auto check_b = (b);                                                    \
    if (!(check_a == check_b))                                                   \
      check::report(__FILE__, __LINE__, "CHECK_EQ(" #a ", " #b "): " +           \
                    check::show(check_a) + " vs " + check::show(check_b));       \
  } while (false)
#define CHECK_THROWS(code, needle, expression)                                   \
  check::throws(__FILE__, __LINE__, mimo_rt::ErrorCode::code, needle, [&] { (void)(expression); })
#define CHECK_MAIN() \
  int main(int argc, char** argv) { return check::main(argc, argv); }
