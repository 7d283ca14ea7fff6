// Every op of the draft on the CPU against the reference op, from equal inputs.
#include "draft_lock_step.h"

#include "check.h"

using namespace mimo_rt;
using namespace fixture;

namespace {

using FuseNorm = PlanOptions::FuseNorm;

LockStepResult lock_step(const DraftModel& model, const DraftWeights& cpu_draft, const std::string& backend,
                         FuseNorm fuse_norm = FuseNorm::yes) {
  DraftLockStep run(model, fuse_norm, backend);
  CpuDraftSubject subject(model, cpu_draft, backend, run.plan());
  run.run(subject);
  return run.result;
}

/// A draft whose CPU side differs from the reference in `change`; the ops named, and no others, must show it.
void control(const std::vector<std::string>& kinds, const std::function<void(DraftConfig&)>& change,
             const std::function<void(const DraftWeights&)>& damage = {}, FuseNorm fuse_norm = FuseNorm::yes) {
  const DraftModel model(draft_styles(6)[0]);
  DraftConfig wrong = model.style.draft;
  change(wrong);
  DraftWeights cpu_draft = DraftWeights::synthetic(wrong, 6);
  cpu_draft.bind(model.weights);
  if (damage) damage(cpu_draft);
  LockStepResult result = lock_step(model, cpu_draft, runnable_cpu_backends().back(), fuse_norm);
  for (const auto& [kind, count] : result.num_outside)
    if (count && std::find(kinds.begin(), kinds.end(), kind) == kinds.end())
      check::report(__FILE__, __LINE__, "a control also moved " + kind);
  for (const std::string& kind : kinds) CHECK(result.num_outside[kind] > 0);
}

}  // namespace

TEST_CASE("every op of the draft stays within its bound, on every backend, in every style") {
  std::map<std::string, uint64_t> compared;
  for (const uint32_t block_size : {2u, 7u, 16u})
    for (const DraftStyle& style : draft_styles(block_size)) {
      const DraftModel model(style);
      for (const std::string& backend : runnable_cpu_backends())
        for (const FuseNorm fuse_norm : {FuseNorm::yes, FuseNorm::no}) {
          const LockStepResult result = lock_step(model, model.draft, backend, fuse_norm);
          CHECK_EQ(result.num_strays, 0u);
          for (const auto& [kind, count] : result.num_outside)
            if (count)
              check::report(__FILE__, __LINE__, style.name + " " + backend + " " + kind + ": " +
                                                    std::to_string(count) + " outside");
          for (const auto& [kind, count] : result.num_compared) compared[kind] += count;
        }
    }
  for (auto kind = TaskKind::context_fc; kind <= TaskKind::draft_lm_head;
       kind = static_cast<TaskKind>(static_cast<uint16_t>(kind) + 1))
    CHECK(compared[task_kind_name(kind)] > 0);  // a kind that never ran proves nothing
}

TEST_CASE("the bounds see every wrong setting, at the op that uses it") {
  const auto same = [](DraftConfig&) {};
  control({}, same);
  control({"draft_attention"}, [](DraftConfig& c) { c.window_tokens.assign(3, c.window_tokens[0] + 1); });
  control({"draft_attention"}, [](DraftConfig& c) { c.window_tokens.assign(3, c.window_tokens[0] - 1); });
  control({"draft_qkv_proj", "context_kv"}, [](DraftConfig& c) { c.rope_theta *= 1.5; });
  control({"draft_qkv_proj", "context_kv"}, [](DraftConfig& c) { c.value_scale *= 1.02; });
  control({"draft_qkv_proj", "context_kv"}, [](DraftConfig& c) { c.rotary_dim = 8; });
  const auto set = [](const float* values, uint32_t idx, float value) { const_cast<float*>(values)[idx] = value; };
  control({"draft_attention"}, same, [&](const DraftWeights& w) { set(w.layer(1).sink_logits, 3, -1e30f); });
  control({"draft_qkv_proj"}, same, [&](const DraftWeights& w) { set(w.layer(2).q_norm, 31, 3.0f); });
  control({"draft_qkv_proj", "context_kv"}, same, [&](const DraftWeights& w) { set(w.layer(0).k_norm, 0, 3.0f); });
  control({"draft_qkv_proj"}, same, [&](const DraftWeights& w) { set(w.layer(1).attn_norm, 159, 3.0f); });
  control({"draft_gate_up_proj"}, same, [&](const DraftWeights& w) { set(w.layer(1).mlp_norm, 5, 3.0f); });
  control({"draft_lm_head"}, same, [&](const DraftWeights& w) { set(w.final_norm(), 7, 3.0f); });
  control({"context_kv"}, same, [&](const DraftWeights& w) { set(w.hidden_norm(), 7, 3.0f); });
  const auto damage_norms = [&](const DraftWeights& w) {
    set(w.hidden_norm(), 7, 3.0f), set(w.layer(1).attn_norm, 159, 3.0f);
  };
  control({"context_norm", "draft_norm"}, same, damage_norms, FuseNorm::no);
  control({"draft_embed"}, same, [](const DraftWeights& w) { const_cast<uint16_t*>(w.mask_embedding())[9] ^= 1; });
  const auto clear_group = [](const PackedMatrix& matrix, uint32_t group) {
    std::memset(const_cast<uint8_t*>(matrix.row_group(group)), 0, row_group_bytes(matrix.format, matrix.k));
  };
  control({"context_fc"}, same, [&](const DraftWeights& w) { clear_group(w.fc(), 9); });
  control({"draft_o_proj"}, same, [&](const DraftWeights& w) { clear_group(w.layer(0).o_proj, 9); });
  control({"draft_down_proj"}, same, [&](const DraftWeights& w) { clear_group(w.layer(2).down, 0); });
}

CHECK_MAIN()
