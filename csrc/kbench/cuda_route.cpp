#include <cmath>
#include <limits>

#include "kbench/cuda_subjects.h"
#include "kbench/router_matrix.h"
#include "weights/random_fill.h"

namespace mimo_rt::kbench {
namespace {

/// "route": the router's matrix, then the choice of the experts, as a MoE layer does it.
class CudaRoute final : public CudaSubject {
 public:
  CudaRoute(const KernelCase& c, const KernelBenchOptions& options,
            std::unique_ptr<cuda::BenchDevice> device)
      : CudaSubject(c, std::move(device)),
        matrix_(c, options.seed),
        stride_((c.num_experts + 3) / 4 * 4),
        words_(RouteTable::bytes(c.num_experts, num_slots()) / 4) {
    if (matrix_.f32_weights().empty()) upload_places(matrix_.bf16_weights(), options);
    else upload_places(matrix_.f32_weights(), options);
    Random random(options.seed ^ 3);
    for (uint32_t i = 0; i < c.num_experts; ++i)
      bias_.push_back(static_cast<float>(random.next() % 64) / 64);
    device_words_ = static_cast<uint32_t*>(device_->allocate(words_.size() * 4));
    auto* logits = static_cast<float*>(device_->allocate(4 * uint64_t{c.num_tokens} * stride_));
    logits_.x = {upload(matrix_.x()), c.hidden_size};
    logits_.logits = {logits, stride_};
    logits_.format = matrix_.f32_weights().empty() ? cuda::RouterFormat::bf16 : cuda::RouterFormat::f32;
    logits_.num_tokens = c.num_tokens;
    logits_.num_experts = c.num_experts;
    logits_.hidden_size = c.hidden_size;
    choice_.logits = {logits, stride_};
    choice_.bias = upload(bias_);
    choice_.route = table_at(device_words_);
    choice_.num_tokens = c.num_tokens;
    choice_.num_experts = c.num_experts;
    choice_.experts_per_token = c.experts_per_token;
    matrix_.add_work(work_, c.num_tokens);
  }

 private:
  uint32_t num_slots() const { return measured_.num_tokens * measured_.experts_per_token; }
  RouteTable table_at(uint32_t* words) const {
    return RouteTable::view(reinterpret_cast<uint8_t*>(words), measured_.num_experts, num_slots());
  }

  void call(uint32_t at) override {
    logits_.weights = place(at);
    device_->launch(logits_);
    device_->launch(choice_);
  }

  double worst_error_at(uint32_t at) override {
    std::vector<float> logits(uint64_t{measured_.num_tokens} * stride_,
                              std::numeric_limits<float>::quiet_NaN());
    std::fill(words_.begin(), words_.end(), ~0u);
    device_->upload(logits_.logits.data, logits.data(), logits.size() * 4);
    device_->upload(device_words_, words_.data(), words_.size() * 4);
    call(at);
    device_->download(logits.data(), logits_.logits.data, logits.size() * 4);
    device_->download(words_.data(), device_words_, words_.size() * 4);
    double worst = 0;
    for (uint32_t token = 0; token < measured_.num_tokens; ++token)
      for (const uint32_t expert : spread_over(measured_.num_experts, 64)) {
        const Bounded exact = matrix_.logit(token, expert);
        worst = worst_of(worst, double{logits[uint64_t{token} * stride_ + expert]}, exact.value, exact.bound);
      }
    return std::max(worst, worst_choice(logits));
  }

  /// The experts of each token in the table, or nothing when it is no table: experts ascending, then
  /// tokens, as many as there must be.
  std::vector<std::vector<std::pair<uint32_t, double>>> read_table() {
    const RouteTable got = table_at(words_.data());
    std::vector<std::vector<std::pair<uint32_t, double>>> chosen(measured_.num_tokens);
    const uint32_t num_active = *got.num_active;
    if (num_active > measured_.num_experts || got.slot_begin[num_active] != num_slots()) return {};
    for (uint32_t i = 0; i < num_active; ++i) {
      const uint32_t expert = got.active_experts[i];
      const bool is_next = i == 0 ? got.slot_begin[0] == 0 : expert > got.active_experts[i - 1];
      if (!is_next || expert >= measured_.num_experts || got.slot_begin[i] >= got.slot_begin[i + 1])
        return {};
      for (uint32_t slot = got.slot_begin[i]; slot < got.slot_begin[i + 1]; ++slot) {
        const uint32_t token = got.slot_token[slot];
        const bool is_above = slot == got.slot_begin[i] || token > got.slot_token[slot - 1];
        if (!is_above || token >= measured_.num_tokens) return {};
        chosen[token].push_back({expert, double{got.slot_weight[slot]}});
      }
    }
    return chosen;
  }

  /// Of the logits that are there. A sigma takes an exponential to 2 units and 3 roundings, its sum
  /// with the bias (both up to 1) another: experts closer than that may change places. Weights as in
  /// select_experts.
  double worst_choice(const std::vector<float>& logits) {
    constexpr double kWrong = std::numeric_limits<double>::infinity();
    const auto chosen = read_table();
    if (chosen.empty()) return kWrong;
    double worst = 0;
    for (uint32_t token = 0; token < measured_.num_tokens; ++token) {
      if (chosen[token].size() != measured_.experts_per_token) return kWrong;
      std::vector<double> sigma(measured_.num_experts);
      for (uint32_t e = 0; e < sigma.size(); ++e)
        sigma[e] = 1.0 / (1.0 + std::exp(-double{logits[uint64_t{token} * stride_ + e]}));
      double sum = 0, least = kWrong, most = -kWrong;
      std::vector<bool> is_chosen(sigma.size());
      for (const auto& [expert, weight] : chosen[token]) {
        sum += sigma[expert];
        is_chosen[expert] = true;
        least = std::min(least, sigma[expert] + double{bias_[expert]});
      }
      for (uint32_t e = 0; e < sigma.size(); ++e)
        if (!is_chosen[e]) most = std::max(most, sigma[e] + double{bias_[e]});
      if (least < most - 16 * kF32Unit) return kWrong;
      const double bound = (measured_.experts_per_token + 12) * kF32Unit;
      for (const auto& [expert, weight] : chosen[token])
        worst = worst_of(worst, weight, sigma[expert] / sum, bound * sigma[expert] / sum);
    }
    return worst;
  }

  const RouterMatrix matrix_;
  const uint32_t stride_;
  std::vector<uint32_t> words_;
  std::vector<float> bias_;
  uint32_t* device_words_ = nullptr;
  cuda::RouterLogitsParams logits_;
  cuda::SelectExpertsParams choice_;
};

}  // namespace

std::unique_ptr<Subject> make_cuda_route(const KernelCase& c, const KernelBenchOptions& options,
                                         std::unique_ptr<cuda::BenchDevice> device) {
  check_router_case(c, true);
  check_selection_case(c);
  return std::make_unique<CudaRoute>(c, options, std::move(device));
}

}  // namespace mimo_rt::kbench
