#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kbench/cuda_subject.h"
#include "kbench/cuda_subjects.h"
#include "kbench/router_matrix.h"
#include "weights/random_fill.h"

namespace mimo_rt::kbench {
namespace {

class RouterLogits final : public RowsSubject<cuda::RouterLogitsParams, float> {
 public:
  RouterLogits(const KernelCase& c, const KernelBenchOptions& options,
               std::unique_ptr<cuda::BenchDevice> device)
      : RowsSubject(c, std::move(device)), matrix_(c, options.seed) {
    const bool is_f32 = c.format == "f32";
    if (is_f32) upload_places(matrix_.f32_weights(), options);
    else upload_places(matrix_.bf16_weights(), options);
    params_.x = {upload(matrix_.x()), c.hidden_size};
    params_.logits = make_out(c.num_tokens, c.num_experts);
    params_.format = is_f32 ? cuda::RouterFormat::f32 : cuda::RouterFormat::bf16;
    params_.num_tokens = c.num_tokens;
    params_.num_experts = c.num_experts;
    params_.hidden_size = c.hidden_size;
    matrix_.add_work(work_, c.num_tokens);
  }

 private:
  void aim(uint32_t at) override { params_.weights = place(at); }
  Bounded expected(uint32_t /*place*/, uint32_t token, uint32_t expert) override {
    return matrix_.logit(token, expert);
  }

  const RouterMatrix matrix_;
};

/// Logits and biases are coarse: there are ties and no near misses, so the choice is exact.
class SelectExperts final : public CudaSubject {
 public:
  SelectExperts(const KernelCase& c, const KernelBenchOptions& options,
                std::unique_ptr<cuda::BenchDevice> device)
      : CudaSubject(c, std::move(device)),
        stride_((c.num_experts + 3) / 4 * 4),
        logits_(uint64_t{c.num_tokens} * stride_),
        num_words_(RouteTable::bytes(c.num_experts, c.num_tokens * c.experts_per_token) / 4) {
    Random random(options.seed);
    for (float& logit : logits_) logit = static_cast<float>(random.next() % 33) / 4 - 5.0f;
    for (uint32_t i = 0; i < c.num_experts; ++i)
      bias_.push_back(0.25f * static_cast<float>(random.next() % 3));
    upload_places(logits_, options);
    params_.bias = upload(bias_);
    words_ = static_cast<uint32_t*>(device_->allocate(num_words_ * 4));
    params_.route = table_at(words_);
    params_.num_tokens = c.num_tokens;
    params_.num_experts = c.num_experts;
    params_.experts_per_token = c.experts_per_token;
    work_.bytes = 4.0 * (c.num_tokens + 1) * c.num_experts;
  }

 private:
  struct Slot {
    uint32_t expert, token;
    double weight;
  };

  RouteTable table_at(uint32_t* words) const {
    return RouteTable::view(reinterpret_cast<uint8_t*>(words), measured_.num_experts,
                            measured_.num_tokens * measured_.experts_per_token);
  }

  void call(uint32_t at) override {
    params_.logits = {reinterpret_cast<const float*>(place(at)), stride_};
    device_->launch(params_);
  }

  /// The slots of a token, by expert.
  std::vector<Slot> choose(uint32_t token) const {
    const uint32_t num_experts = measured_.num_experts;
    std::vector<double> sigma(num_experts);
    std::vector<uint32_t> order(num_experts);
    std::iota(order.begin(), order.end(), 0u);
    for (uint32_t e = 0; e < num_experts; ++e)
      sigma[e] = 1.0 / (1.0 + std::exp(-double{logits_[uint64_t{token} * stride_ + e]}));
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      return sigma[a] + double{bias_[a]} > sigma[b] + double{bias_[b]};
    });
    double sum = 0;
    for (uint32_t i = 0; i < measured_.experts_per_token; ++i) sum += sigma[order[i]];
    std::vector<Slot> slots;
    for (uint32_t i = 0; i < measured_.experts_per_token; ++i)
      slots.push_back({order[i], token, sigma[order[i]] / sum});
    return slots;
  }

  /// The table is exact; a weight takes an exponential to 2 units and 3 roundings, as many sums as
  /// experts, a division and a product.
  double worst_error_at(uint32_t at) override {
    std::vector<uint32_t> words(num_words_, ~0u);
    device_->upload(words_, words.data(), num_words_ * 4);
    call(at);
    device_->download(words.data(), words_, num_words_ * 4);
    const RouteTable got = table_at(words.data());
    std::vector<Slot> slots;
    for (uint32_t token = 0; token < measured_.num_tokens; ++token)
      for (const Slot& slot : choose(token)) slots.push_back(slot);
    std::stable_sort(slots.begin(), slots.end(),
                     [](const Slot& a, const Slot& b) { return a.expert < b.expert; });
    const double bound = (measured_.experts_per_token + 12) * kF32Unit;
    double worst = 0;
    uint32_t num_active = 0;
    bool is_right = true;
    for (uint32_t i = 0; i < slots.size() && is_right; ++i) {
      if (i == 0 || slots[i].expert != slots[i - 1].expert) {
        is_right &= got.active_experts[num_active] == slots[i].expert;
        is_right &= got.slot_begin[num_active++] == i;
      }
      is_right &= got.slot_token[i] == slots[i].token;
      worst = worst_of(worst, double{got.slot_weight[i]}, slots[i].weight, bound * slots[i].weight);
    }
    is_right &= *got.num_active == num_active && got.slot_begin[num_active] == slots.size();
    return is_right ? worst : std::numeric_limits<double>::infinity();
  }

  const uint32_t stride_;
  std::vector<float> logits_, bias_;
  const uint64_t num_words_;
  uint32_t* words_ = nullptr;
  cuda::SelectExpertsParams params_;
};

}  // namespace

void check_router_case(const KernelCase& c, bool has_matrix) {
  MIMO_RT_CHECK(c.format == "f32" || (has_matrix && c.format == "bf16"), invalid_argument, kWhere,
                "format: expected f32", has_matrix ? " or bf16" : " logits", " for ", c.kernel,
                ", got '", c.format, "'");
  check_positive("num_tokens", c.num_tokens);
  check_positive("num_experts", c.num_experts);
  check_at_most("num_tokens", c.num_tokens, cuda::kMaxTokens);
  check_at_most("num_experts", c.num_experts, cuda::kMaxExperts);
  if (has_matrix) check_multiple("hidden_size", c.hidden_size, kBlockK);
}

void check_selection_case(const KernelCase& c) {
  check_positive("experts_per_token", c.experts_per_token);
  check_at_most("experts_per_token", c.experts_per_token,
                std::min(c.num_experts, cuda::kMaxExpertsPerToken));
  check_at_most("num_tokens * experts_per_token", c.num_tokens * c.experts_per_token,
                cuda::kMaxExpertSlots);
}

std::unique_ptr<Subject> make_cuda_router_logits(const KernelCase& c,
                                                 const KernelBenchOptions& options,
                                                 std::unique_ptr<cuda::BenchDevice> device) {
  check_router_case(c, true);
  return std::make_unique<RouterLogits>(c, options, std::move(device));
}

std::unique_ptr<Subject> make_cuda_select_experts(const KernelCase& c,
                                                  const KernelBenchOptions& options,
                                                  std::unique_ptr<cuda::BenchDevice> device) {
  check_router_case(c, false);
  check_selection_case(c);
  return std::make_unique<SelectExperts>(c, options, std::move(device));
}

}  // namespace mimo_rt::kbench
