// Shared steps or rounds with drafts: whatever brings more tokens, found out first, and again after a while.
#include "check.h"
#include "engine/round_sharing.h"

#include <algorithm>

using namespace mimo_rt;

TEST_CASE("rounds alone are measured first, then a shared step, then what brings more tokens") {
  RoundSharing sharing;
  CHECK(!sharing.shares(2, 0.0, 0.0));
  CHECK(!sharing.shares(2, 0.0, 5.0));
  CHECK(sharing.shares(2, 1.0, 0.0));
  // Alone 3 tokens in 2 ns; shared one of each session in 1.6 ns.
  CHECK(!sharing.shares(2, 1.5, 1.6));
  CHECK(sharing.shares(3, 1.5, 1.6));
  CHECK(!sharing.shares(3, 1.5, 2.1));
}

TEST_CASE("whatever brings more, the other is looked at now and then: times of long ago may have been those of another load") {
  RoundSharing sharing;
  for (const bool pays : {true, false}) {
    uint32_t num_others = 0, num_in_a_row = 0, longest = 0;
    for (uint32_t round = 0; round < 10 * (pays ? 260u : 257u); ++round) {
      const bool shares = sharing.shares(8, pays ? 1.0 : 5.0, 2.0);
      num_others += shares != pays;
      num_in_a_row = shares == pays ? num_in_a_row + 1 : 0;
      longest = std::max(longest, num_in_a_row);
    }
    CHECK_EQ(num_others, pays ? 40u : 10u);
    CHECK_EQ(longest, 256u);
  }
  CHECK(sharing.shares(8, 1.0, 2.0));
}

CHECK_MAIN()
