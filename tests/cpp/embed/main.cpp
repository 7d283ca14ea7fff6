// Embedding mimo_rt in a C++ program: load a checkpoint, decode greedily, stream tokens.
#include <mimo_rt/mimo_rt.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: embed MODEL_DIR [TOKEN_ID…]\n");
    return 2;
  }
  try {
    const auto engine = mimo_rt::Engine::open(argv[1]);
    mimo_rt::Session session(engine);
    std::vector<int32_t> prompt;
    for (int i = 2; i < argc; ++i) prompt.push_back(std::atoi(argv[i]));
    if (prompt.empty()) prompt = {1, 2, 3};

    mimo_rt::GenerateOptions options;
    options.sampling.temperature = 0.0f;
    options.max_tokens = 16;
    const auto result = session.generate(prompt, options, [](const mimo_rt::TokenEvent& event) {
      for (const int32_t id : event.token_ids) std::printf("%d ", id);
      return true;
    });
    std::printf("\n%s: %zu tokens, %.1f tokens/s\n", engine->backend().c_str(), result.token_ids.size(),
                result.stats.decode_tokens_per_s);
    return 0;
  } catch (const mimo_rt::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
