// On which memory node weights come to lie. Machines with several nodes are folders here: this one need not be one.
#include "check.h"
#include "checkpoint_fixture.h"
#include "safetensors_writer.h"
#include "step_fixture.h"
#include "test_configs.h"

#include "core/memory_nodes.h"
#include "engine/weight_readers.h"
#include "weights/layout.h"

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

using namespace mimo_rt;
using namespace fixture;

namespace {

namespace fs = std::filesystem;

/// A machine whose node i has the cores cores_of_node[i].
struct Machine {
  explicit Machine(const std::vector<std::vector<int>>& cores_of_node) {
    for (size_t node = 0; node < cores_of_node.size(); ++node)
      for (const int core : cores_of_node[node])
        fs::create_directories(nodes() / ("node" + std::to_string(node)) / ("cpu" + std::to_string(core)));
  }
  fs::path nodes() const { return dir.path() / "sys/devices/system/node"; }
  std::string root() const { return dir.path().string() + "/"; }
  writer::TempDir dir;
};

std::vector<uint32_t> nodes_of(const Machine& machine, const std::vector<int>& cores) {
  return memory_nodes(cores, machine.root());
}

/// Weights of `config` that take no memory.
struct Sizes {
  explicit Sizes(const ModelConfig& config) {
    data.config = config;
    layout = plan_layout(data, [](const MatrixSlot& slot) {
      const bool is_expert = slot.role == MatrixRole::expert_gate_up || slot.role == MatrixRole::expert_down;
      return is_expert ? PackedFormat::mxfp4 : PackedFormat::bf16;
    });
  }
  WeightsData data;
  WeightsLayout layout;
};

TaskKind reading_kind(MatrixRole role) {
  static const std::map<MatrixRole, TaskKind> kKinds = {
      {MatrixRole::embed, TaskKind::lm_head},   {MatrixRole::lm_head, TaskKind::lm_head},
      {MatrixRole::qkv, TaskKind::qkv_proj},    {MatrixRole::o_proj, TaskKind::o_proj},
      {MatrixRole::router, TaskKind::router},   {MatrixRole::gate_up, TaskKind::gate_up_proj},
      {MatrixRole::down, TaskKind::down_proj},  {MatrixRole::expert_gate_up, TaskKind::expert_gate_up},
      {MatrixRole::expert_down, TaskKind::expert_down}};
  return kKinds.at(role);
}

/// All workers that read a row group, in steps with 1, 2, … active experts of which the matrix is each in turn: by the
/// definition of tiles in plan/task.h.
std::vector<std::set<uint32_t>> find_readers(const Plan& plan, const MatrixSlot& slot) {
  const TaskKind kind = reading_kind(slot.role);
  std::vector<std::set<uint32_t>> readers(slot.matrix->num_row_groups());
  const auto mark = [&](uint32_t worker, uint32_t begin, uint32_t end) {
    for (uint32_t group = begin; group < end && group < readers.size(); ++group) readers[group].insert(worker);
  };
  for (uint32_t worker = 0; worker < plan.num_workers(); ++worker)
    for (const Task& task : plan.tasks(worker)) {
      if (task.kind != kind || (kind != TaskKind::lm_head && task.layer_idx != slot.layer_idx)) continue;
      const bool is_shared_out = kind == TaskKind::expert_gate_up;
      const uint32_t num_active = is_shared_out ? 2 * plan.num_workers() : 1;
      for (uint64_t tile = task.tile_first; tile < uint64_t{task.tile_end} * num_active; tile += task.tile_stride) {
        const auto place = static_cast<uint32_t>(tile % task.tile_end);
        const auto num_pairs = static_cast<uint32_t>(readers.size() / 2);
        if (is_shared_out)
          mark(worker, 2 * share_begin(place, task.tile_end, num_pairs), 2 * share_begin(place + 1, task.tile_end, num_pairs));
        else if (kind == TaskKind::gate_up_proj) mark(worker, 2 * place, 2 * place + 2);
        else mark(worker, place, place + 1);
      }
    }
  return readers;
}

/// Checks weight_readers against find_readers; returns the share of row groups that have one reader.
double check_readers(const ModelConfig& config, uint32_t num_workers) {
  const Plan plan = Plan::build(config, plan_options(num_workers, 8, 8));
  const Sizes sizes(config);
  const WeightReaders readers(plan);
  size_t num_groups = 0, num_known = 0;
  bool is_equal = true;
  for (const MatrixSlot& slot : sizes.layout.matrices) {
    if (slot.layer_idx > 2 || slot.expert_idx > 1) continue;
    const std::vector<uint32_t> found = readers.of(slot);
    const std::vector<std::set<uint32_t>> expected = find_readers(plan, slot);
    CHECK(found.size() == expected.size());
    for (size_t group = 0; group < found.size(); ++group) {
      const bool is_known = expected[group].size() == 1;
      is_equal &= found[group] == (is_known ? *expected[group].begin() : kNoReader);
      num_known += is_known;
    }
    num_groups += found.size();
  }
  CHECK(is_equal);
  return static_cast<double>(num_known) / static_cast<double>(num_groups);
}

/// A placement of `num_workers` workers, of which the first half is of node 0; core 0 for all.
PagePlacement halves(const Plan& plan) {
  std::vector<int> first, second, all;
  const auto num_workers = static_cast<int>(plan.num_workers());
  for (int core = 0; core < num_workers; ++core) {
    (2 * core < num_workers ? first : second).push_back(core);
    all.push_back(core);
  }
  const Machine machine({first, second});
  return placement_for(plan, all, machine.root());
}

/// The share of bytes with a reader that are touched on its node; workers 0 and 1 are of one node, 2 and 3 of the other.
double local_share(const WeightsLayout& layout, const PagePlacement& placement, const std::vector<uint32_t>& touchers) {
  uint64_t num_read = 0, num_local = 0;
  for (const MatrixSlot& slot : layout.matrices) {
    const std::vector<uint32_t> readers = placement.readers(slot);
    const uint64_t group_bytes = row_group_bytes(slot.matrix->format, slot.matrix->k);
    for (uint64_t group = 0; group < readers.size(); ++group) {
      if (readers[group] == kNoReader) continue;
      const uint64_t middle = slot.offset + group * group_bytes + group_bytes / 2;
      num_read += group_bytes;
      num_local += readers[group] / 2 == touchers[middle / kPlacedBlockBytes] / 2 ? group_bytes : 0;
    }
  }
  return static_cast<double>(num_local) / static_cast<double>(num_read);
}

size_t num_resident_pages(const Arena& arena) {
  std::vector<unsigned char> pages((arena.size_bytes() + 4095) / 4096);
  CHECK(mincore(arena.data(), arena.size_bytes(), pages.data()) == 0);
  return static_cast<size_t>(std::ranges::count_if(pages, [](unsigned char page) { return page & 1; }));
}

}  // namespace

TEST_CASE("cores have the nodes that the system says") {
  const Machine two({{0, 1, 4}, {2, 3, 5}});
  CHECK((nodes_of(two, {0, 1, 2, 3}) == std::vector<uint32_t>{0, 0, 1, 1}));
  CHECK((nodes_of(two, {5, 4}) == std::vector<uint32_t>{1, 0}));
  CHECK(nodes_of(two, {0, 1, 4}).empty());     // one node
  CHECK(nodes_of(two, {0, 2, 9}).empty());     // core 9 is of none
  CHECK(nodes_of(two, {}).empty());
  fs::create_directories(two.nodes() / "power");  // other names are passed over
  fs::create_directories(two.nodes() / "node7x" / "cpu0");
  CHECK((nodes_of(two, {0, 2}) == std::vector<uint32_t>{0, 1}));
  CHECK(memory_nodes(std::vector<int>{0, 1}, "/nowhere/").empty());
}

TEST_CASE("every row group has the reader that the plan gives it") {
  CHECK(check_readers(test_configs::mimo_v2_5_pro_fp4(), 64) == 1.0);  // 128 pairs: two for each
  CHECK(check_readers(test_configs::mimo_v2_5_pro_fp4(), 2) == 1.0);
  CHECK(check_readers(small_quantised(), 3) > 0.5);
  // Where shares of an expert take turns among the workers, nobody is the reader.
  bool takes_turns = false;
  for (uint32_t num_workers = 3; num_workers < 40 && !takes_turns; ++num_workers) {
    const Plan plan = Plan::build(test_configs::mimo_v2_5_pro_fp4(), plan_options(num_workers, 8, 8));
    for (const Task& task : plan.tasks(0))
      takes_turns |= task.kind == TaskKind::expert_gate_up && task.tile_end % task.tile_stride != 0;
    if (takes_turns) CHECK(check_readers(test_configs::mimo_v2_5_pro_fp4(), num_workers) < 1.0);
  }
  CHECK(takes_turns);
}

TEST_CASE("a block is touched on the node that reads most of it") {
  const ModelConfig config = test_configs::mimo_v2_5_pro_fp4();
  const Plan plan = Plan::build(config, plan_options(4, 8, 8));
  Sizes sizes(config);
  std::erase_if(sizes.layout.matrices, [](const MatrixSlot& slot) { return slot.layer_idx > 1 || slot.expert_idx > 3; });
  const PagePlacement placement = halves(plan);
  CHECK(placement.cores.size() == 4);
  const std::vector<uint32_t> touchers = choose_touchers(sizes.layout, placement);
  CHECK(touchers.size() == (sizes.layout.total_bytes + kPlacedBlockBytes - 1) / kPlacedBlockBytes);
  std::array<uint64_t, 4> blocks{};
  for (const uint32_t toucher : touchers) ++blocks[toucher];
  // A matrix has one border between the nodes: at most a block of it is on the wrong side, and one is shared with its
  // neighbour. Matrices are 6 to 1875 MB.
  CHECK(local_share(sizes.layout, placement, touchers) > 0.9);
  // Workers of a node share its blocks, and blocks without a reader are spread: nobody touches much more than others.
  CHECK(*std::ranges::max_element(blocks) <= 2 * *std::ranges::min_element(blocks));
  // The control: with readers of the other node, what a worker reads is far from it.
  PagePlacement exchanged = placement;
  exchanged.readers = [&](const MatrixSlot& slot) {
    std::vector<uint32_t> readers = placement.readers(slot);
    for (uint32_t& reader : readers) reader = reader == kNoReader ? kNoReader : (reader + 2) % 4;
    return readers;
  };
  CHECK(local_share(sizes.layout, placement, choose_touchers(sizes.layout, exchanged)) < 0.1);
}

TEST_CASE("all pages are touched, on cores that exist or not") {
  const ModelConfig config = small_quantised();
  const Plan plan = Plan::build(config, plan_options(2, 8, 8));
  Sizes sizes(config);
  sizes.layout.total_bytes = 3 * kPlacedBlockBytes + 5000;
  PagePlacement placement = halves(plan);
  placement.cores[1].id = CPU_SETSIZE + 1;
  const Arena arena(sizes.layout.total_bytes, "test");
  CHECK(num_resident_pages(arena) == 0);
  place_pages(arena, sizes.layout, placement);
  CHECK(num_resident_pages(arena) == (sizes.layout.total_bytes + 4095) / 4096);
  CHECK(std::all_of(arena.data(), arena.data() + arena.size_bytes(), [](uint8_t byte) { return byte == 0; }));
  // Without nodes nothing is touched.
  const Arena untouched(sizes.layout.total_bytes, "test");
  place_pages(untouched, sizes.layout, PagePlacement{});
  CHECK(num_resident_pages(untouched) == 0);
}

TEST_CASE("weights have the same bytes wherever they lie") {
  const auto bytes_of = [](const Weights& weights) {  // the embedding lies at the beginning of the arena
    return std::string(reinterpret_cast<const char*>(weights.embed().data), weights.packed_bytes());
  };
  const ModelConfig config = small_config();
  const writer::TempDir dir;
  write_checkpoint(dir, config, {}, [](const std::string&, std::string&) {});
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  const Plan plan = Plan::build(config, plan_options(2, 8, 8));
  const PagePlacement placement = halves(plan);
  CHECK_EQ(placement.cores.size(), 2u);
  Weights::Options options;
  options.num_threads = 2;
  const std::string plain = bytes_of(Weights::load(checkpoint, config, options));
  options.placement = &placement;
  CHECK(bytes_of(Weights::load(checkpoint, config, options)) == plain);
  options.cache_dir = dir.path() / "cache";  // packed, kept, and read back
  for (int i = 0; i < 2; ++i) CHECK(bytes_of(Weights::load(checkpoint, config, options)) == plain);
  CHECK(bytes_of(Weights::synthetic(config, 3)) == bytes_of(Weights::synthetic(config, 3, &placement)));
  CHECK(bytes_of(Weights::synthetic(config, 3)) != bytes_of(Weights::synthetic(config, 4, &placement)));
  CHECK(placement_for(plan, std::vector<int>{0}, "/").cores.empty());  // one core for two workers: none is bound
}

CHECK_MAIN()
