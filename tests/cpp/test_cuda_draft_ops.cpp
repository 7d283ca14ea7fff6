// Every op of the draft on the emulated GPU (or a real one) against the reference op, from equal inputs.
#include "device_draft_subject.h"

#include "check.h"

using namespace mimo_rt;
using namespace fixture;

namespace {

constexpr uint32_t kContextRows = 5;

LockStepResult lock_step(const DraftModel& ref, const DeviceDraft& device, uint32_t num_workers) {
  DraftLockStep run(ref, PlanOptions::FuseNorm::no, "cpu-generic", kContextRows);
  DeviceDraftSubject subject(device, num_workers, run.input());
  run.run(subject);
  return run.result;
}

DeviceDraft draft_of(const DraftConfig& config) { return DeviceDraft(config); }

/// A device that differs from the reference; the ops named, and no others, must show it.
void control(const std::vector<std::string>& kinds, const std::function<void(DeviceDraft&)>& change) {
  DeviceDraft model = draft_of(device_draft_config(device_config()));
  const DeviceDraft right = draft_of(model.config);
  change(model);
  LockStepResult result = lock_step(*right.host, model, 2);
  CHECK(result.num_compared["draft_lm_head"] > 0);  // the last op ran
  for (const auto& [kind, count] : result.num_outside)
    if (count && std::find(kinds.begin(), kinds.end(), kind) == kinds.end())
      check::report(__FILE__, __LINE__, "a control also moved " + kind);
  for (const std::string& kind : kinds)
    if (!result.num_outside[kind]) check::report(__FILE__, __LINE__, "a control did not move " + kind);
}

}  // namespace

TEST_CASE("every op of the draft stays within its bound") {
  std::map<std::string, uint64_t> compared;
  std::map<std::string, double> worst;
  const DraftConfig whole = device_draft_config(device_config()), part = device_draft_config(device_config(), 61);
  DraftConfig shared = whole;  // two of eight workers have the keys of a row in layer 1, which has no window
  shared.num_kv_heads = 1;
  shared.block_size = 4;
  for (const DraftConfig& config : {whole, part, shared})
    for (const uint32_t num_workers : {1u, 3u, 8u}) {
      const DeviceDraft model = draft_of(config);
      const LockStepResult result = lock_step(*model.host, model, num_workers);
      for (const auto& [kind, count] : result.num_outside)
        if (count) check::report(__FILE__, __LINE__, kind + ": " + std::to_string(count) + " outside");
      for (const auto& [kind, count] : result.num_compared) compared[kind] += count;
      for (const auto& [kind, share] : result.worst) worst[kind] = std::max(worst[kind], share);
    }
  for (auto kind = TaskKind::context_fc; kind <= TaskKind::draft_lm_head;
       kind = static_cast<TaskKind>(static_cast<uint16_t>(kind) + 1))
    CHECK(compared[task_kind_name(kind)] > 0);  // a kind that never ran proves nothing
  for (const auto& [kind, share] : worst) std::printf("  %s: at most %.2f of the bound\n", kind.c_str(), share);
}

TEST_CASE("the bounds see every wrong setting, at the op that uses it") {
  control({}, [](DeviceDraft&) {});
  control({"draft_attention"}, [](DeviceDraft& d) { d.config.window_tokens[0] += 1; });
  control({"draft_attention"}, [](DeviceDraft& d) { d.config.window_tokens[2] -= 1; });
  control({"draft_qkv_proj", "context_kv"}, [](DeviceDraft& d) { d.config.rope_theta *= 1.5; });
  control({"draft_qkv_proj", "context_kv"}, [](DeviceDraft& d) { d.config.value_scale *= 1.02; });
  control({"draft_qkv_proj", "context_kv"}, [](DeviceDraft& d) { d.config.rotary_dim = 8; });
  control({"draft_norm", "context_norm", "draft_qkv_proj", "context_kv"},
          [](DeviceDraft& d) { d.config.rms_norm_eps = 0.1; });
  const auto damage = [](const std::string& tensor, float factor = 0.5f) {
    return [tensor, factor](DeviceDraft& d) {
      d.write([&](const std::string& name) { return name.ends_with(tensor); }, factor);
    };
  };
  control({"draft_attention"}, damage("layers.1.self_attn.attention_sink_bias", 6.0f));
  control({"draft_qkv_proj"}, damage("layers.2.self_attn.q_norm.weight"));
  control({"draft_qkv_proj", "context_kv"}, damage("layers.0.self_attn.k_norm.weight"));
  control({"draft_norm"}, damage("layers.1.input_layernorm.weight"));
  control({"context_norm"}, damage("hidden_norm.weight"));
  control({"context_fc"}, damage("fc.weight"));
  control({"draft_qkv_proj", "context_kv"}, damage("layers.1.self_attn.v_proj.weight"));
  control({"draft_o_proj"}, damage("layers.0.self_attn.o_proj.weight"));
  control({"draft_gate_up_proj"}, damage("layers.2.mlp.up_proj.weight"));
  control({"draft_down_proj"}, damage("layers.2.mlp.down_proj.weight"));
}

CHECK_MAIN()
