// Prompts beside sessions that decode: steps that those can wait for.
#include "fake_engine.h"
#include "engine/prompt_pace.h"

using namespace fake_engine;

TEST_CASE("alone a prompt has the largest steps, beside others those that take a fifth of a second") {
  PromptPace pace;
  CHECK_EQ(pace.max_rows(512, 0), 512u);
  CHECK_EQ(pace.max_rows(512, 1), 128u);  // nothing is known
  CHECK_EQ(pace.max_rows(64, 3), 64u);
  pace.add(512, 512 * 0.6e6);  // 333 rows in that time
  CHECK_EQ(pace.max_rows(512, 1), 256u);
  CHECK_EQ(pace.max_rows(512, 0), 512u);
  pace.add(8, 8 * 50e6);  // most of it is the time of the weights
  CHECK_EQ(pace.max_rows(512, 1), 256u);
  pace.add(256, 256 * 5e6);  // slow, or interrupted
  CHECK_EQ(pace.max_rows(512, 1), 128u);
  for (uint32_t i = 0; i < 10; ++i) pace.add(128, 128 * 0.1e6);
  CHECK_EQ(pace.max_rows(512, 1), 512u);
  CHECK_EQ(pace.max_rows(4096, 1), 1920u);
}

TEST_CASE("the steps of a prompt are small while others decode, and its text is the same") {
  const Tokens prompt = iota_tokens(280);
  for (const uint32_t num_decoding : {0u, 1u}) {
    const Fixture f(256);
    f.engine->impl().num_decoding = num_decoding;
    Session session(f.engine);
    f.executor->on_step = [&] {  // the other comes to its end
      if (f.executor->step_sizes.size() == 1) f.engine->impl().num_decoding = 0;
    };
    const GenerateOptions options = greedy(3);
    CHECK(session.generate(prompt, options).token_ids == reference(prompt, options));
    const std::vector<uint32_t> expected = num_decoding ? std::vector<uint32_t>{128, 152, 1, 1} : std::vector<uint32_t>{256, 24, 1, 1};
    CHECK(f.executor->step_sizes == expected);
  }
}

CHECK_MAIN()
