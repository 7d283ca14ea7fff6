// What a session holds, and the loop that runs on it.
#pragma once

#include <mimo_rt/session.h>

#include "engine/engine_impl.h"
#include "engine/sequence.h"
#include "engine/vocabulary.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace mimo_rt {

struct SessionState {
  SessionState(std::shared_ptr<Engine> engine_, uint32_t max_context, uint64_t sequence_id_)
      : engine(std::move(engine_)),
        sequence_id(sequence_id_),
        sequence(engine->config(), engine->draft_config(), max_context,
                 std::max(engine->impl().max_step_tokens(), engine->impl().block_size())) {
    sequence.prepare(*engine->impl().executor);
  }

  std::shared_ptr<Engine> engine;
  uint64_t sequence_id;
  Sequence sequence;
  std::optional<Vocabulary> vocabulary;
  std::optional<NgramLookup> lookup;            ///< in the text of the last generation that could draft
  std::vector<uint32_t> token_counts;           ///< for the repetition penalty
  std::vector<std::max_align_t> sample_scratch;
  std::atomic<bool> cancelled = false;
  std::atomic<bool> busy = false;
};

struct Session::Impl : SessionState {
  using SessionState::SessionState;
};

/// One use of a session at a time: a second thread, or a callback that calls back, gets an error.
class BusyGuard {
 public:
  /// @throws Error{invalid_argument}
  BusyGuard(std::atomic<bool>& busy, const char* where);
  BusyGuard(const BusyGuard&) = delete;
  BusyGuard& operator=(const BusyGuard&) = delete;
  ~BusyGuard() { busy_ = false; }

 private:
  std::atomic<bool>& busy_;
};

/// The generation loop. Arguments are checked: see options_check.h.
GenerateResult run_generation(SessionState& session, std::span<const int32_t> prompt,
                              const GenerateOptions& options, const TokenCallback& on_token);

}  // namespace mimo_rt
