// Which file of the cache holds which arena, and how it gets there.
#include "weights/packed_cache.h"

#include "core/checks.h"
#include "core/text.h"
#include "weights/cache_files.h"
#include "weights/content_hash.h"
#include "weights/packed_file.h"

#include <mimo_rt/version.h>

#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <thread>
#include <utility>

namespace mimo_rt {
namespace {

namespace fs = std::filesystem;
using State = PackedCacheReport::State;

constexpr std::chrono::milliseconds kLockPollInterval{20};
// A writer slower than this is not waited for: packing once more is quicker.
constexpr std::chrono::seconds kMinLockWait{10};
constexpr uint64_t kMinWriterBytesPerSecond = 100'000'000;

/// Two checkpoints or two layouts never share a key. The config takes part by what it makes of the layout and the
/// sources of every matrix; what it says about running the model does not change packed bytes.
class KeyHash {
 public:
  explicit KeyHash(const std::string& part, const Digest& contents) {
    hash_.update_field("mimo_rt packed weights");
    hash_.update_field(part);
    hash_.update_number(kPackedLayoutVersion);
    hash_.update(std::as_bytes(std::span(contents)));
  }

  void add(const WeightsLayout& layout, const std::vector<PackJob>& jobs) {
    numbers({layout.total_bytes, layout.matrices.size(), layout.vectors.size()});
    for (const VectorSlot& slot : layout.vectors)
      numbers({uint64_t(slot.kind), slot.layer_idx, slot.num_elements, slot.offset});
    for (size_t i = 0; i < layout.matrices.size(); ++i) {
      const MatrixSlot& slot = layout.matrices[i];
      const PackedMatrix& matrix = *slot.matrix;
      numbers({uint64_t(slot.role), slot.layer_idx, slot.expert_idx, slot.stored_k, slot.offset});
      numbers({uint64_t(matrix.format), matrix.rows, matrix.k});
      add(jobs[i]);
    }
  }

  Digest finish() { return hash_.finish(); }

 private:
  void numbers(std::initializer_list<uint64_t> values) {
    for (const uint64_t value : values) hash_.update_number(value);
  }

  void add(const PackJob& job) {
    numbers({uint64_t(job.order), job.sources.size(), job.tiles ? job.tiles->size() : 0});
    for (const MatrixSource& source : job.sources) add(source);
    if (!job.tiles) return;
    numbers({job.layer->qk_head_dim, job.layer->v_head_dim, job.layer->rotary_dim});
    for (const QkvTile& tile : *job.tiles)
      numbers({uint64_t(tile.part), tile.rotary, tile.head_idx, tile.dim_begin, tile.num_dims});
  }

  void add(const MatrixSource& source) {
    static_assert(sizeof(MatrixSource) == 2 * sizeof(void*) + 4 * 8 + 6 * 4,
                  "a new field takes part in the key");
    hash_.update_field(source.weight->name);
    hash_.update_field(source.scale ? source.scale->name : "");
    numbers({uint64_t(source.format), source.rows, source.k, source.first_row, source.piece_rows,
             source.piece_stride, source.scale_run_rows, source.scale_block_rows,
             source.scale_block_cols});
  }

  Sha256 hash_;
};

Arena pack_arena(const ArenaRecipe& recipe) {
  Arena arena = allocate(recipe.layout, recipe.where, recipe.options.placement);
  recipe.fill(arena);
  return arena;
}

/// One arena and its file.
class CachedArena {
 public:
  CachedArena(const ArenaRecipe& recipe, PackedCacheReport& report)
      : recipe_(recipe), report_(report) {
    std::error_code error;
    directory_ = fs::absolute(recipe.options.cache_dir, error);
    if (error) directory_ = recipe.options.cache_dir;
  }

  Arena make() {
    std::error_code error, ignored;
    fs::create_directories(directory_, error);
    if (!fs::is_directory(directory_, ignored)) {  // one that only others may write still serves
      give_up(concat(printable(directory_.string(), 300), " cannot be created: ", error.message()));
      return pack_arena(recipe_);
    }
    set_key(find_contents());
    if (std::optional<Arena> found = find()) return std::move(*found);
    WriterLock lock(directory_ / cache_file_name(info_.key, kLockSuffix));
    const WriterLock::State state = wait_for(lock);
    // The file may have come into being in the meantime.
    if (std::optional<Arena> found = find()) return std::move(*found);
    Arena arena = pack_arena(recipe_);
    if (state == WriterLock::State::busy)
      give_up("another process has been writing the same file for too long");
    else
      keep(arena, state == WriterLock::State::held);
    return arena;
  }

 private:
  void set_key(const Digest& contents) {
    KeyHash hash(recipe_.part, contents);
    hash.add(recipe_.layout, recipe_.jobs);
    info_ = {.key = hash.finish(),
             .layout_version = kPackedLayoutVersion,
             .num_bytes = recipe_.layout.total_bytes,
             .part = recipe_.part,
             .library_version = MIMO_RT_VERSION,
             .source_dir = recipe_.checkpoint.directory().string()};
    name_ = cache_file_name(info_.key, kArenaSuffix);
    report_.file = directory_ / name_;
  }

  /// Options for work before (0) or after packing, which the progress callback may end but sees no progress in.
  Weights::Options options_at(uint64_t done_bytes) const {
    Weights::Options options = recipe_.options;
    if (options.progress)
      options.progress = [this, done_bytes](uint64_t, uint64_t) {
        return recipe_.options.progress(done_bytes, recipe_.layout.total_bytes);
      };
    return options;
  }

  Digest find_contents() const;
  std::optional<Digest> read_contents(const std::string& name) const;
  void write_contents(const std::string& name, const Digest& contents) const;
  std::optional<Arena> find();
  WriterLock::State wait_for(WriterLock& lock) const;
  void keep(const Arena& arena, bool is_alone);
  void give_up(const std::string& message) {
    report_.state = State::failed;
    report_.message = message;
  }

  const ArenaRecipe& recipe_;
  PackedCacheReport& report_;
  fs::path directory_;
  PackedFileInfo info_;
  std::string name_;
};

/// What the files hold: as noted under their stamps, or read.
Digest CachedArena::find_contents() const {
  const bool has_settled_stamps = are_stamps_settled(recipe_.checkpoint);
  const std::string name = cache_file_name(hash_stamps(recipe_.checkpoint), kContentSuffix);
  if (has_settled_stamps)
    if (const std::optional<Digest> known = read_contents(name)) return *known;
  // A copy was made before pages came to the disk: it may be of another state than the stamps are.
  const bool do_stamps_tell = write_back(recipe_.checkpoint) && recipe_.options.use_mmap;
  const Digest contents = hash_contents(recipe_.checkpoint, options_at(0), recipe_.where);
  if (has_settled_stamps && do_stamps_tell) write_contents(name, contents);
  return contents;
}

std::optional<Digest> CachedArena::read_contents(const std::string& name) const {
  Digest digest;
  char text[2 * sizeof digest + 1];  // one more: a longer file is another one
  const Descriptor file = open_cache_file(directory_ / name);
  if (!file || ::read(file.number(), text, sizeof text) != 2 * sizeof digest) return std::nullopt;
  for (size_t i = 0; i < digest.size(); ++i) {
    const char* end = text + 2 * i + 2;
    const auto [stop, error] = std::from_chars(text + 2 * i, end, digest[i], 16);
    if (error != std::errc() || stop != end) return std::nullopt;
  }
  return digest;
}

/// Without this file the next start hashes once more: failing to write it is no failure.
void CachedArena::write_contents(const std::string& name, const Digest& contents) const {
  if (!is_unchanged(recipe_.checkpoint)) return;
  const std::string text = to_hex(contents);
  try {
    write_cache_file(directory_, name, recipe_.where, [&](int descriptor) {
      const bool is_written =
          ::write(descriptor, text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
          ::fdatasync(descriptor) == 0;
      MIMO_RT_CHECK(is_written, io, recipe_.where, name, ": ", std::strerror(errno));
    });
  } catch (const Error&) {
  }
}

std::optional<Arena> CachedArena::find() {
  const Descriptor file = open_cache_file(report_.file);
  if (!file) {
    if (errno != ENOENT)
      report_.message = concat(printable(name_), " cannot be read: ", std::strerror(errno));
    return std::nullopt;
  }
  try {
    Arena arena = read_packed_file(file.number(), name_, info_, recipe_.options, recipe_.where);
    report_.state = State::hit;
    report_.message.clear();
    return arena;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::bad_format && error.code() != ErrorCode::io) throw;
    report_.message = error.what();
    return std::nullopt;
  }
}

/// Waits while another process writes the file, for a bounded time.
WriterLock::State CachedArena::wait_for(WriterLock& lock) const {
  const auto limit = kMinLockWait + std::chrono::seconds(info_.num_bytes / kMinWriterBytesPerSecond);
  const auto begin = std::chrono::steady_clock::now();
  const Weights::Options options = options_at(0);
  while (true) {
    const WriterLock::State state = lock.try_lock();
    if (state != WriterLock::State::busy || std::chrono::steady_clock::now() - begin > limit)
      return state;
    MIMO_RT_CHECK(!options.progress || options.progress(0, 0), cancelled, recipe_.where,
                  "stopped by the progress callback while another process packs the weights");
    std::this_thread::sleep_for(kLockPollInterval);
  }
}

void CachedArena::keep(const Arena& arena, bool is_alone) {
  // What was hashed and what was packed are the same bytes only if nobody wrote to the files.
  if (!is_unchanged(recipe_.checkpoint))
    return give_up("the checkpoint's files changed while they were read");
  const Weights::Options options = options_at(recipe_.layout.total_bytes);
  try {
    if (is_alone) remove_leftovers(directory_, name_);
    write_cache_file(directory_, name_, recipe_.where, [&](int descriptor) {
      write_packed_file(descriptor, name_, info_, arena, options, recipe_.where);
    });
    report_.state = State::written;
  } catch (const Error& error) {
    if (error.code() != ErrorCode::io) throw;
    give_up(error.what());
  }
}

}  // namespace

Arena make_arena(const ArenaRecipe& recipe, PackedCacheReport& report) {
  report.part = recipe.part;
  if (!recipe.options.cache_dir.empty()) return CachedArena(recipe, report).make();
  return pack_arena(recipe);
}

std::string_view packed_cache_state_name(State state) noexcept {
  switch (state) {
    case State::off: return "off";
    case State::hit: return "hit";
    case State::written: return "written";
    case State::failed: return "failed";
  }
  return "unknown";
}

}  // namespace mimo_rt
