#include "kbench/expert_routes.h"

#include <algorithm>
#include <numeric>

#include "weights/random_fill.h"

namespace mimo_rt::kbench {
namespace {

constexpr uint32_t kNumRoutes = 16;

struct Choice {
  uint32_t expert, token;
};

std::vector<Choice> random_choices(const KernelCase& c, uint64_t seed) {
  Random random(seed);
  std::vector<uint32_t> experts(c.num_experts);
  std::iota(experts.begin(), experts.end(), 0u);
  std::vector<Choice> choices;
  for (uint32_t token = 0; token < c.num_tokens; ++token)
    for (uint32_t i = 0; i < c.experts_per_token; ++i) {  // the start of a shuffle
      std::swap(experts[i], experts[i + random.next() % (c.num_experts - i)]);
      choices.push_back({experts[i], token});
    }
  return choices;
}

void write_route(std::vector<Choice> choices, uint32_t experts_per_token, const RouteTable& table) {
  std::sort(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) {
    return a.expert != b.expert ? a.expert < b.expert : a.token < b.token;
  });
  uint32_t num_active = 0;
  for (uint32_t slot = 0; slot < choices.size(); ++slot) {
    if (slot == 0 || choices[slot].expert != choices[slot - 1].expert) {
      table.active_experts[num_active] = choices[slot].expert;
      table.slot_begin[num_active++] = slot;
    }
    table.slot_token[slot] = choices[slot].token;
    table.slot_weight[slot] = 1.0f / static_cast<float>(experts_per_token);
  }
  table.slot_begin[num_active] = static_cast<uint32_t>(choices.size());
  *table.num_active = num_active;
}

uint32_t count_experts(const std::vector<Choice>& choices, uint32_t num_experts) {
  std::vector<bool> is_active(num_experts);
  for (const Choice& choice : choices) is_active[choice.expert] = true;
  return static_cast<uint32_t>(std::count(is_active.begin(), is_active.end(), true));
}

}  // namespace

ExpertRoutes::ExpertRoutes(const KernelCase& c, uint64_t seed, cuda::BenchDevice& device)
    : num_experts_(c.num_experts), num_slots_(c.num_tokens * c.experts_per_token) {
  std::vector<Choice> choices = random_choices(c, seed);
  const uint32_t step = count_experts(choices, num_experts_);
  const uint64_t num_bytes = RouteTable::bytes(num_experts_, num_slots_);
  for (uint32_t i = 0; i < kNumRoutes; ++i) {
    host_.emplace_back(num_bytes / sizeof(uint32_t));
    write_route(choices, c.experts_per_token, view(i));
    void* memory = device.allocate(num_bytes);
    device.upload(memory, host_.back().data(), num_bytes);
    device_.push_back(
        RouteTable::view(static_cast<uint8_t*>(memory), num_experts_, num_slots_));
    for (Choice& choice : choices) choice.expert = (choice.expert + step) % num_experts_;
  }
}

uint32_t ExpertRoutes::expert(uint32_t route_idx, uint32_t slot) const {
  const RouteTable table = view(route_idx);
  uint32_t i = 0;
  while (table.slot_begin[i + 1] <= slot) ++i;
  return table.active_experts[i];
}

RouteTable ExpertRoutes::view(uint32_t route_idx) const {
  auto* words = const_cast<uint32_t*>(host_[route_idx].data());  // RouteTable has no const form
  return RouteTable::view(reinterpret_cast<uint8_t*>(words), num_experts_, num_slots_);
}

}  // namespace mimo_rt::kbench
