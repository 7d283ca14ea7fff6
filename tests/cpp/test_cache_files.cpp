// Who writes a file of the packed cache, where the cache lies, and what has a file of its own.
#include "check.h"
#include "packed_cache_fixture.h"
#include "weights/cache_files.h"
#include "weights/packed_cache.h"

#include <pwd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <memory>
#include <set>
#include <stdexcept>

using namespace fixture;

namespace {

namespace fs = std::filesystem;

constexpr const char* kLockName = "file.lock";

/// One vector and one matrix of q, k and v: every field that packed bytes depend on.
struct Recipe {
  std::string part = "target";
  TensorInfo weight{"weight", DType::fp8_e4m3, {}, {}, {}}, scale{"scale", DType::f32, {}, {}, {}};
  LayerConfig layer;
  std::vector<QkvTile> tiles = {{QkvTile::Part::q, false, 1, 16, 4}};
  MatrixSource source{.weight = &weight, .scale = &scale};
  PackJob job{.sources = {}, .order = RowOrder::qkv, .layer = &layer, .tiles = &tiles};
  PackedMatrix matrix;
  MatrixSlot matrix_slot{.role = MatrixRole::qkv, .matrix = &matrix};
  VectorSlot vector{.kind = VectorKind::final_norm};
  uint64_t total_bytes = 64;

  /// The file that would hold it; nothing is packed.
  fs::path file(const Checkpoint& checkpoint, const fs::path& cache) const {
    const WeightsLayout layout{.matrices = {matrix_slot}, .vectors = {vector}, .total_bytes = total_bytes};
    std::vector<PackJob> jobs = {job};
    jobs[0].sources = {source};
    const Weights::Options options = cache_options(cache);
    PackedCacheReport report;
    const auto fill = [](const Arena&) { throw std::runtime_error("not in the cache"); };
    try {
      make_arena({checkpoint, layout, jobs, options, part, "test", fill}, report);
    } catch (const std::runtime_error&) {
    }
    return report.file;
  }
};

}  // namespace

TEST_CASE("the right to write ends with its holder, also when a child has copies of its descriptors") {
  const writer::TempDir dir;
  auto first = std::make_unique<WriterLock>(dir.path() / kLockName);
  WriterLock second(dir.path() / kLockName);
  CHECK(first->try_lock() == WriterLock::State::held);
  CHECK(second.try_lock() == WriterLock::State::busy);
  const pid_t child = ::fork();
  if (child == 0) {
    ::pause();
    ::_exit(0);
  }
  first.reset();
  CHECK(second.try_lock() == WriterLock::State::busy);  // the file it asked for is gone: it asks anew
  CHECK(second.try_lock() == WriterLock::State::held);
  ::kill(child, SIGKILL);
  CHECK_EQ(::waitpid(child, nullptr, 0), child);
}

TEST_CASE("one holds the right to write, also when its file was removed and made again") {
  const writer::TempDir dir;
  auto first = std::make_unique<WriterLock>(dir.path() / kLockName);
  WriterLock second(dir.path() / kLockName), third(dir.path() / kLockName);
  CHECK(first->try_lock() == WriterLock::State::held);
  CHECK(second.try_lock() == WriterLock::State::busy);
  first.reset();
  CHECK(third.try_lock() == WriterLock::State::held);
  for (int i = 0; i < 3; ++i) CHECK(second.try_lock() == WriterLock::State::busy);
}

TEST_CASE("a holder leaves the file alone that another one has made since") {
  const writer::TempDir dir;
  auto first = std::make_unique<WriterLock>(dir.path() / kLockName);
  WriterLock second(dir.path() / kLockName), third(dir.path() / kLockName);
  CHECK(first->try_lock() == WriterLock::State::held);
  fs::remove(dir.path() / kLockName);  // as who clears the cache does
  CHECK(second.try_lock() == WriterLock::State::held);
  first.reset();
  CHECK(third.try_lock() == WriterLock::State::busy);
}

TEST_CASE("the directory follows the environment and the option") {
  ::setenv("HOME", "/home/u", 1);
  ::setenv("MIMO_RT_CACHE", "", 1);
  ::setenv("XDG_CACHE_HOME", "relative", 1);
  CHECK_EQ(cache_directory(), "/home/u/.cache/mimo_rt");
  ::setenv("XDG_CACHE_HOME", "/xdg", 1);
  CHECK_EQ(cache_directory(), "/xdg/mimo_rt");
  ::setenv("MIMO_RT_CACHE", "~/here", 1);
  CHECK_EQ(cache_directory(), "/home/u/here");
  // A service may have no HOME; the system knows it all the same.
  const passwd* user = ::getpwuid(::getuid());
  for (const bool is_set : {true, false}) {
    if (is_set) ::setenv("HOME", "", 1);
    else ::unsetenv("HOME");
    if (user) CHECK_EQ(cache_directory(), fs::path(user->pw_dir) / "here");
  }
  ::setenv("MIMO_RT_CACHE", "/given", 1);
  CHECK_EQ(packed_cache_directory("auto"), "/given/packed");
  CHECK_EQ(packed_cache_directory("/dir"), "/dir");
  CHECK(packed_cache_directory("none").empty());
}

TEST_CASE("whatever packed bytes depend on has a part in the name of their file") {
  using R = Recipe&;
  void (*const changes[])(R) = {
      [](R) {},
      [](R r) { r.part = "draft"; },
      [](R r) { ++r.total_bytes; },
      [](R r) { r.vector.kind = VectorKind::attn_norm; },
      [](R r) { ++r.vector.layer_idx; },
      [](R r) { ++r.vector.num_elements; },
      [](R r) { ++r.vector.offset; },
      [](R r) { r.matrix_slot.role = MatrixRole::o_proj; },
      [](R r) { ++r.matrix_slot.layer_idx; },
      [](R r) { ++r.matrix_slot.expert_idx; },
      [](R r) { ++r.matrix_slot.stored_k; },
      [](R r) { ++r.matrix_slot.offset; },
      [](R r) { r.matrix.format = PackedFormat::f32; },
      [](R r) { ++r.matrix.rows; },
      [](R r) { ++r.matrix.k; },
      [](R r) { r.job.order = RowOrder::stacked; },
      [](R r) { ++r.layer.qk_head_dim; },
      [](R r) { ++r.layer.v_head_dim; },
      [](R r) { ++r.layer.rotary_dim; },
      [](R r) { r.tiles[0].part = QkvTile::Part::k; },
      [](R r) { r.tiles[0].rotary = true; },
      [](R r) { ++r.tiles[0].head_idx; },
      [](R r) { ++r.tiles[0].dim_begin; },
      [](R r) { ++r.tiles[0].num_dims; },
      [](R r) { r.weight.name = "other"; },
      [](R r) { r.scale.name = "other"; },
      [](R r) { r.source.scale = nullptr; },
      [](R r) { r.source.format = WeightFormat::mxfp4; },
      [](R r) { ++r.source.rows; },
      [](R r) { ++r.source.k; },
      [](R r) { ++r.source.first_row; },
      [](R r) { ++r.source.piece_rows; },
      [](R r) { ++r.source.piece_stride; },
      [](R r) { ++r.source.scale_run_rows; },
      [](R r) { ++r.source.scale_block_rows; },
      [](R r) { ++r.source.scale_block_cols; }};
  const writer::TempDir dir;
  dir.write("model.safetensors", writer::make_file({{"a", "U8", {1}, "1"}}));
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  std::set<fs::path> files;
  for (const auto change : changes) {
    Recipe recipe;
    change(recipe);
    CHECK(files.insert(recipe.file(checkpoint, dir.path() / "cache")).second);
  }
  CHECK(files.contains(Recipe().file(checkpoint, dir.path() / "cache")));  // control: equal recipes, equal names
}

CHECK_MAIN()
