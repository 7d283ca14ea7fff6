// The text of error messages.
#include "check.h"

#include "core/checks.h"

#include <limits>

using namespace mimo_rt;

namespace {

enum : uint32_t { kRows = 72 };
enum Format : int { kLast = -1 };

}  // namespace

TEST_CASE("pieces of a message read as they are written") {
  CHECK_EQ(concat("a ", std::string("b"), std::string_view("cd", 1), ' ', 'e'), "a bc e");
  CHECK_EQ(concat(uint8_t{72}, ' ', int8_t{-72}, ' ', true), "72 -72 1");  // numbers, not letters
  CHECK_EQ(concat(std::numeric_limits<int64_t>::min(), ' ', std::numeric_limits<uint64_t>::max()),
           "-9223372036854775808 18446744073709551615");
  CHECK_EQ(concat(0.25f, ' ', 1e-7, ' ', 1234567.0), "0.25 1e-07 1.23457e+06");
  CHECK_EQ(concat(kRows, ' ', kLast), "72 -1");
  CHECK_EQ(concat("from ", static_cast<const char*>(nullptr)), "from (null)");
}

TEST_CASE("a failed check names the operation and its pieces") {
  const auto check = [](uint32_t rows) {
    MIMO_RT_CHECK(rows < kRows, capacity, "Test.check", "rows: expected < ", kRows, ", got ", rows);
  };
  check(71);
  CHECK_THROWS(capacity, "[Test.check] rows: expected < 72, got 72", check(72));
}

CHECK_MAIN()
