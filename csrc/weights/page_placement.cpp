#include "weights/page_placement.h"

#include "core/pin.h"

#include <algorithm>
#include <map>
#include <system_error>
#include <thread>

namespace mimo_rt {
namespace {

constexpr uint64_t kSmallestPage = 4096;

/// The workers of every node, and whose turn it is among them.
class Nodes {
 public:
  explicit Nodes(const PagePlacement& placement) {
    for (uint32_t worker = 0; worker < placement.cores.size(); ++worker) {
      const auto [at, is_new] = index_.try_emplace(placement.cores[worker].node, index_.size());
      if (is_new) workers_.emplace_back();
      workers_[at->second].push_back(worker);
      node_of_worker_.push_back(at->second);
    }
    turns_.resize(workers_.size());
  }

  size_t count() const { return workers_.size(); }
  size_t of_worker(uint32_t worker) const { return node_of_worker_[worker]; }
  uint32_t next_worker(size_t node) { return workers_[node][turns_[node]++ % workers_[node].size()]; }

 private:
  std::map<uint32_t, size_t> index_;
  std::vector<std::vector<uint32_t>> workers_;
  std::vector<size_t> node_of_worker_;
  std::vector<size_t> turns_;
};

/// Adds the bytes [begin, end) to those that `node` reads: bytes_of_node [blocks, nodes].
void count_bytes(std::vector<uint64_t>& bytes_of_node, size_t num_nodes, size_t node, uint64_t begin, uint64_t end) {
  while (begin < end) {
    const uint64_t block = begin / kPlacedBlockBytes;
    const uint64_t block_end = std::min(end, (block + 1) * kPlacedBlockBytes);
    bytes_of_node[block * num_nodes + node] += block_end - begin;
    begin = block_end;
  }
}

void touch_blocks(const Arena& arena, const std::vector<uint32_t>& touchers, uint32_t worker) {
  for (uint64_t block = 0; block < touchers.size(); ++block) {
    if (touchers[block] != worker) continue;
    const uint64_t end = std::min((block + 1) * kPlacedBlockBytes, arena.size_bytes());
    for (uint64_t at = block * kPlacedBlockBytes; at < end; at += kSmallestPage)
      *static_cast<volatile uint8_t*>(arena.data() + at) = 0;
  }
}

}  // namespace

std::vector<uint32_t> choose_touchers(const WeightsLayout& layout, const PagePlacement& placement) {
  Nodes nodes(placement);
  const uint64_t num_blocks = (layout.total_bytes + kPlacedBlockBytes - 1) / kPlacedBlockBytes;
  std::vector<uint64_t> bytes_of_node(num_blocks * nodes.count());
  for (const MatrixSlot& slot : layout.matrices) {
    const std::vector<uint32_t> readers = placement.readers(slot);
    const uint64_t group_bytes = row_group_bytes(slot.matrix->format, slot.matrix->k);
    for (uint64_t group = 0; group < readers.size(); ++group)
      if (readers[group] != kNoReader)
        count_bytes(bytes_of_node, nodes.count(), nodes.of_worker(readers[group]), slot.offset + group * group_bytes,
                    slot.offset + (group + 1) * group_bytes);
  }
  std::vector<uint32_t> touchers;
  size_t turn = 0;
  for (uint64_t block = 0; block < num_blocks; ++block) {
    const auto begin = bytes_of_node.begin() + static_cast<ptrdiff_t>(block * nodes.count());
    const auto end = begin + static_cast<ptrdiff_t>(nodes.count());
    const auto most = std::max_element(begin, end);
    const bool is_tied = std::count(begin, end, *most) > 1;
    touchers.push_back(nodes.next_worker(is_tied ? turn++ % nodes.count() : static_cast<size_t>(most - begin)));
  }
  return touchers;
}

void place_pages(const Arena& arena, const WeightsLayout& layout, const PagePlacement& placement) {
  if (placement.cores.empty()) return;
  const std::vector<uint32_t> touchers = choose_touchers(layout, placement);
  std::vector<std::jthread> threads;
  threads.reserve(placement.cores.size());
  try {
    for (uint32_t worker = 0; worker < placement.cores.size(); ++worker)
      threads.emplace_back([&, worker] {
        pin_this_thread(placement.cores[worker].id);
        touch_blocks(arena, touchers, worker);
      });
  } catch (const std::system_error&) {  // no more threads: their pages stay untouched
  }
}

}  // namespace mimo_rt
