#include "weights/content_hash.h"

#include "checkpoint/checkpoint_impl.h"
#include "core/checks.h"
#include "weights/arena.h"
#include "weights/work_items.h"

#include <algorithm>
#include <chrono>
#include <vector>

namespace mimo_rt {
namespace {

constexpr const char* kWhere = "Weights.load";
constexpr uint64_t kBlockBytes = uint64_t{4} << 20;
// Coarser than the time stamps of the file systems in use; FAT has 2 s.
constexpr int64_t kSettledAfterNs = 3'000'000'000;

struct Block {
  const MappedFile* file;
  std::span<const std::byte> bytes;
};

}  // namespace

Digest hash_contents(const Checkpoint& checkpoint, const Weights::Options& options,
                     const char* where) {
  Sha256 hash;
  hash.update_field("mimo_rt checkpoint contents");
  std::vector<Block> blocks;
  for (const Shard& shard : checkpoint.impl().shards) {
    const std::span<const std::byte> bytes = shard.file.bytes();
    hash.update_field(shard.name);
    hash.update_number(bytes.size());
    for (uint64_t at = 0; at < bytes.size(); at += kBlockBytes)
      blocks.push_back(
          {&shard.file, bytes.subspan(at, std::min<uint64_t>(kBlockBytes, bytes.size() - at))});
  }
  std::vector<Digest> digests(blocks.size());
  WorkItems work;
  work.num_items = blocks.size();
  work.run = [&](uint64_t i) {
    prefetch_pages(blocks[i].bytes);
    Sha256 block_hash;
    block_hash.update(blocks[i].bytes);
    digests[i] = block_hash.finish();
    blocks[i].file->release_pages(blocks[i].bytes);
    return uint64_t{0};
  };
  work.progress = options.progress;
  work.num_threads = options.num_threads;
  work.where = where;
  run_work_items(work);
  for (const Digest& digest : digests) hash.update(std::as_bytes(std::span(digest)));
  return hash.finish();
}

bool write_back(const Checkpoint& checkpoint) {
  bool do_stamps_tell = true;
  for (const Shard& shard : checkpoint.impl().shards) {
    try {
      do_stamps_tell &= InputFile::open(checkpoint.directory(), shard.name, kWhere).write_back();
    } catch (const Error&) {  // gone, or another kind of file
      do_stamps_tell = false;
    }
  }
  return do_stamps_tell;
}

Digest hash_stamps(const Checkpoint& checkpoint) {
  Sha256 hash;
  hash.update_field("mimo_rt checkpoint stamps");
  for (const Shard& shard : checkpoint.impl().shards) {
    const FileStamp& stamp = shard.stamp;
    hash.update_field(shard.name);
    for (const uint64_t number : {stamp.device, stamp.inode, stamp.size,
                                  static_cast<uint64_t>(stamp.mtime_ns),
                                  static_cast<uint64_t>(stamp.ctime_ns)})
      hash.update_number(number);
  }
  return hash.finish();
}

bool is_unchanged(const Checkpoint& checkpoint) {
  for (const Shard& shard : checkpoint.impl().shards) {
    try {
      const InputFile file = InputFile::open(checkpoint.directory(), shard.name, kWhere);
      if (!(file.stamp() == shard.stamp)) return false;
    } catch (const Error&) {  // gone, or another kind of file
      return false;
    }
  }
  return true;
}

bool are_stamps_settled(const Checkpoint& checkpoint) {
  using namespace std::chrono;
  const int64_t now =
      duration_cast<nanoseconds>(system_clock::now().time_since_epoch()).count();
  return std::ranges::all_of(checkpoint.impl().shards, [&](const Shard& shard) {
    return std::max(shard.stamp.mtime_ns, shard.stamp.ctime_ns) < now - kSettledAfterNs;
  });
}

}  // namespace mimo_rt
