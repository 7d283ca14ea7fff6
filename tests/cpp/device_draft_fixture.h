// The model of device_step_fixture.h with a draft, from one pair of checkpoints for the CPU and for the CUDA kernels;
// and a driver that feeds one sequence to the executor in steps and then runs a round's draft.
#pragma once

#include "device_step_fixture.h"
#include "draft_fixture.h"
#include "draft_run.h"
#include "plan_mutator.h"

#include "core/checks.h"
#include "cuda/device_cache.h"
#include "cuda/draft_params.h"

#include <sstream>

namespace fixture {

/// Window layers and a full one, sinks, q and k norms, half a head rotated, a value scale. `draft_vocab_size` 0: all.
inline DraftConfig device_draft_config(const ModelConfig& target, uint32_t draft_vocab_size = 0) {
  DraftConfig draft = test_configs::make_draft(target, {4, 2, 32, 16, 16}, 3, 5, 20, {2, 0, 3});
  draft.has_sink = true;
  draft.value_scale = 0.612;
  draft.window_tokens[1] = 0;
  draft.vocab_size = target.vocab_size;
  draft.draft_vocab_size = draft_vocab_size;
  return draft;
}

/// A config of device_draft_config() as DraftConfig::from_directory reads it.
inline std::string to_json(const DraftConfig& c) {
  std::ostringstream out;
  out.precision(17);
  out << R"({"model_type": "qwen3", "hidden_size": )" << c.hidden_size << R"(, "num_hidden_layers": )" << c.num_layers
      << R"(, "intermediate_size": )" << c.intermediate_size << R"(, "vocab_size": )" << c.vocab_size
      << R"(, "rms_norm_eps": )" << c.rms_norm_eps << R"(, "num_attention_heads": )" << c.num_q_heads
      << R"(, "num_key_value_heads": )" << c.num_kv_heads << R"(, "head_dim": )" << c.qk_head_dim
      << R"(, "v_head_dim": )" << c.v_head_dim << R"(, "rope_theta": )" << c.rope_theta
      << R"(, "partial_rotary_factor": )" << double(c.rotary_dim) / c.qk_head_dim
      << R"(, "attention_value_scale": )" << c.value_scale << R"(, "attention_sink_bias": )" << (c.has_sink ? "true" : "false")
      << R"(, "use_qk_norm": )" << (c.has_qk_norm ? "true" : "false") << R"(, "use_sliding_window": true, "sliding_window": )"
      << c.window_tokens[0] << R"(, "block_size": )" << c.block_size << R"(, "mask_token_id": )" << c.mask_token_id
      << R"(, "target_layer_ids": [2, 0, 3], "is_causal": false, "layer_types": [)";
  for (uint32_t l = 0; l < c.num_layers; ++l)
    out << (l ? ", " : "") << (c.window_tokens[l] ? R"("sliding_attention")" : R"("full_attention")");
  out << "]}";
  return out.str();
}

inline void fill_sensible_draft(const DraftConfig& config, const std::string& name, std::string& bytes) {
  std::mt19937 random(static_cast<uint32_t>(std::hash<std::string>{}(name)));
  std::normal_distribution<float> normal;
  const auto fill = [&](float mean, float deviation) {
    for (size_t i = 0; i + 2 <= bytes.size(); i += 2) {
      const bf16_t value = f32_to_bf16(mean + deviation * normal(random));
      std::memcpy(bytes.data() + i, &value, 2);
    }
  };
  if (name.ends_with("d2t")) {  // token i is 3 i + 1
    for (uint64_t i = 0; i < bytes.size() / 8; ++i) {
      const uint64_t step = 2 * i + 1;
      std::memcpy(bytes.data() + i * 8, &step, 8);
    }
    return;
  }
  if (name.ends_with("norm.weight")) return fill(1.0f, 0.2f);
  if (!name.ends_with("weight")) return fill(0.0f, 1.0f);  // sinks
  const auto k = static_cast<float>(name.find("fc") != name.npos   ? 3 * config.hidden_size
                                    : name.find("down") != name.npos ? config.intermediate_size
                                                                     : config.hidden_size);
  fill(0.0f, 1.0f / std::sqrt(k));
}

struct DeviceDraft {
  DeviceModel target;
  DraftConfig config;
  Edit fill;         ///< the draft's tensors
  std::string mask;  ///< see DraftFiles
  writer::TempDir dir;
  std::unique_ptr<DraftModel> host;

  explicit DeviceDraft(const DraftConfig& draft)
      : DeviceDraft(draft, device_config(), [](const std::string& name, std::string& bytes) {
          fill_sensible(device_config(), name, bytes);
        }, [draft](const std::string& name, std::string& bytes) { fill_sensible_draft(draft, name, bytes); }) {}
  DeviceDraft(const DraftConfig& draft, const ModelConfig& model, const Edit& fill_target, Edit fill_draft,
              std::string mask_bytes = {})
      : target(model, DType::f32, fill_target), config(draft), fill(std::move(fill_draft)), mask(std::move(mask_bytes)) {
    write({});
    const Weights::Options load{.num_threads = 1, .progress = {}, .cache_dir = {}, .use_mmap = true};
    host = std::make_unique<DraftModel>(DraftStyle{"device", target.config, config},
                                        Weights::load(*target.checkpoint, target.config, load),
                                        DraftWeights::load(dir.path(), config, load));
  }
  /// Writes the draft's files, anew when the device is to have another one than the host: tensors that `is_damaged`
  /// picks are `factor` times as large.
  void write(const std::function<bool(const std::string& name)>& is_damaged, float factor = 1.0f) const {
    DraftFiles files;
    files.mask = mask;
    files.edit = [&](const std::string& name, std::string& bytes) {
      fill(name, bytes);
      for (size_t i = 0; is_damaged && is_damaged(name) && i + 2 <= bytes.size(); i += 2) {
        bf16_t value;
        std::memcpy(&value, bytes.data() + i, 2);
        value = f32_to_bf16(bf16_to_f32(value) * factor);
        std::memcpy(bytes.data() + i, &value, 2);
      }
    };
    write_draft(dir, config, files);
  }
  CudaDraftWeights pack() const {
    return CudaDraftWeights::load(dir.path(), config, {*target.checkpoint, target.config},
                                  {.num_threads = 1, .progress = {}});
  }
};

struct DeviceDraftOptions {
  uint64_t seed = 0;  ///< of the emulated schedule
  std::function<Plan(const Plan&)> change_round = {};
  bool accepts = false;  ///< rounds are whole, for Executor::run_rounds; else they end with the drafts, for `draft`
  ExecutorOptions executor = {};
};

/// Where a head's key or value lies.
inline uint8_t* device_head_row(cuda::DeviceCache& cache, uint32_t layer, uint32_t seq, uint32_t head, uint32_t pos,
                                bool is_value) {
  const cuda::KvView kv = cache.layout().view(layer, seq, cache.block(0).addresses.kv);
  const uint32_t page = kv.pages ? seq * cache.layout().pages_per_seq() + pos / kv.block_rows : 0;
  const uint32_t stride = is_value ? kv.v_stride : kv.k_stride;
  return const_cast<uint8_t*>(kv.blocks) + page * kv.block_bytes + (is_value ? kv.v_begin : 0) +
         (uint64_t{head} * kv.block_rows + pos % kv.block_rows) * stride * 2;
}

/// One sequence on the device.
class DeviceDraftRun {
 public:
  DeviceDraftRun(const DeviceDraft& model, uint32_t num_workers, uint32_t chunk, const DeviceDraftOptions& options = {})
      : config(model.target.config), draft_config(model.config),
        step_plan(build(num_workers, chunk, false)), round_plan(build(num_workers, chunk, true)),
        cache(config, {.max_context = 128, .max_step_tokens = 8, .num_seqs = 2}, &draft_config),
        device(open_test_device(options.seed)), chunk_(chunk) {
    if (!options.accepts) round_plan = without_accept(round_plan);
    if (options.change_round) round_plan = options.change_round(round_plan);
    executor = cuda::make_cuda_executor(device, model.target.pack(), config, {&step_plan, &round_plan}, options.executor,
                                        model.pack());
    cache.reserve(kSeq, 128);
    report_ = cuda::DeviceBuffer(device, sizeof(cuda::HangReport), cuda::DeviceBuffer::Place::pinned);
  }

  /// Steps over tokens; the context of each is what the steps before captured.
  void feed(const std::vector<int32_t>& tokens) {
    for (; size < tokens.size();) {
      const uint32_t end = std::min(size + chunk_, static_cast<uint32_t>(tokens.size()));
      StepRows rows(tokens, kSeq, size, end);
      rows.input.context_begin = num_context;
      rows.input.num_context_rows = size - num_context;
      StepOutput output;
      executor->run(step_plan, cache, rows.input, output);
      num_context = size;
      size = end;
    }
  }

  /// One launch of the round's plan whose target verifies the anchor alone. @return the block
  std::vector<int32_t> draft(int32_t anchor, const cuda::SamplingRules& rules = {.temperature = 0.0f}) {
    cuda::StepBlock& block = this->block();
    set_round(anchor, rules);
    launch(block);
    num_context = size;
    std::vector<int32_t> ids(draft_config.block_size);
    device->download(ids.data(), block.addresses.step + block.plan.layout().token_ids, 4 * ids.size());
    return ids;
  }

  /// The inputs of a round after `size` tokens.
  void set_round(int32_t anchor, const cuda::SamplingRules& rules = {.temperature = 0.0f}) {
    cuda::StepBlock& block = this->block();
    const cuda::StepLayout& layout = block.plan.layout();
    cuda::StepTables tables = block.plan.tables(block.addresses, 1, 1, false);
    tables.num_draft_rows = draft_config.block_size;
    tables.context_begin = num_context;
    tables.num_context_rows = size - num_context;
    tables.kv[0] = store().sequence(kSeq);
    put(layout.tables, tables);
    for (uint32_t r = 0; r < tables.num_context_rows; ++r)
      put(layout.draft.context_ids + 4 * r, tables.kv[0].features.row_idx(num_context + r));
    cuda::SampleParams sample = block.plan.draft_sample(block.addresses);
    sample.rules = rules;
    put(layout.draft.sample, sample);
    put(layout.token_ids, anchor);
    put(layout.positions, size);
    put(layout.logit_rows, uint32_t{0});
  }

  /// @throws Error{timeout} when a wait is given up
  void launch(cuda::StepBlock& block) { launch(block, block.epoch++); }
  void launch(cuda::StepBlock& block, uint32_t epoch) {
    cuda::PersistentParams params = block.plan.params(block.addresses, epoch);
    params.watchdog.report = reinterpret_cast<cuda::HangReport*>(report_.data());
    params.watchdog.deadline_ns = uint64_t{timeout_ms} * 1'000'000;
    device->launch(params, executor->num_workers());
    if (!device->wait(60'000'000'000)) fail(ErrorCode::timeout, "DeviceDraftRun", "the launch does not end");
    if (params.watchdog.report->is_written) fail(ErrorCode::timeout, "DeviceDraftRun", "a wait was given up");
  }

  cuda::DeviceCache& store() { return static_cast<cuda::DeviceCache&>(*cache.store()); }
  cuda::StepBlock& block() {
    executor->prepare(cache);
    return store().block(1);
  }
  template <typename T>
  void put(uint64_t offset, const T& value) {
    device->upload(block().addresses.step + offset, &value, sizeof value);
  }

  /// A buffer of the arena, [rows, cols) of them.
  template <typename T>
  std::vector<T> rows(uint16_t buffer_id, uint32_t num_rows, uint32_t num_cols) const {
    const auto* data = reinterpret_cast<const T*>(executor->buffer_data(round_plan, buffer_id));
    const uint32_t stride = round_plan.buffers()[buffer_id].cols;
    std::vector<T> out;
    for (uint32_t r = 0; r < num_rows; ++r) out.insert(out.end(), data + r * stride, data + r * stride + num_cols);
    return out;
  }
  std::vector<float> draft_logits() const {
    return rows<float>(kDraftLogits, draft_config.block_size - 1, round_plan.shape().draft.vocab_size);
  }

  std::vector<bf16_t> features(uint32_t begin, uint32_t end) {
    executor->prepare(cache);
    const cuda::FeatureRing ring = store().sequence(kSeq).features;
    std::vector<bf16_t> out(uint64_t{end - begin} * ring.width);
    for (uint32_t pos = begin; pos < end; ++pos)
      device->download(&out[uint64_t{pos - begin} * ring.width],
                       ring.rows + uint64_t{ring.row_idx(pos)} * ring.width, 2 * ring.width);
    return out;
  }

  /// Where a head's key or value of a draft layer lies.
  uint8_t* head_row(uint32_t layer, uint32_t head, uint32_t pos, bool is_value) {
    executor->prepare(cache);
    return device_head_row(store(), config.num_layers + layer, kSeq, head, pos, is_value);
  }
  /// Of one draft layer: per position K of all heads, then V of all heads.
  std::vector<bf16_t> kv(uint32_t layer, uint32_t begin, uint32_t end) {
    std::vector<bf16_t> out, row(std::max(draft_config.qk_head_dim, draft_config.v_head_dim));
    for (uint32_t pos = begin; pos < end; ++pos)
      for (const bool is_value : {false, true})
        for (uint32_t head = 0; head < draft_config.num_kv_heads; ++head) {
          const uint32_t dims = is_value ? draft_config.v_head_dim : draft_config.qk_head_dim;
          device->download(row.data(), head_row(layer, head, pos, is_value), 2 * dims);
          out.insert(out.end(), row.begin(), row.begin() + dims);
        }
    return out;
  }

  static constexpr uint32_t kSeq = 1;  // the other one shows what is counted from the wrong sequence
  const ModelConfig& config;
  const DraftConfig& draft_config;
  Plan step_plan, round_plan;
  const Plan whole_round_plan = round_plan;  ///< as the planner made it
  KvCache cache;
  std::shared_ptr<cuda::StepDevice> device;
  std::unique_ptr<Executor> executor;
  uint32_t size = 0, num_context = 0;
  uint32_t timeout_ms = 1000;

 private:
  Plan build(uint32_t num_workers, uint32_t chunk, bool is_round) const {
    const uint32_t rows = is_round ? draft_config.block_size : chunk;
    PlanOptions options = device_plan_options(num_workers, rows, rows);
    options.max_context_rows = 8;
    options.is_round = is_round;
    return Plan::build(config, options, &draft_config);
  }
  /// Samples no rows instead: what the block holds afterwards are the drafts.
  static Plan without_accept(const Plan& plan) {
    PlanMutator mutator(plan);
    for (auto& list : mutator.lists)
      for (Task& task : list)
        if (task.kind == TaskKind::accept) task.kind = TaskKind::sample;
    return mutator.finish();
  }

  const uint32_t chunk_;
  cuda::DeviceBuffer report_;
};

}  // namespace fixture
