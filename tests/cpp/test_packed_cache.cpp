// The packed cache: equal bytes with and without it, names that tell contents and layouts apart, files that must not be
// believed, several writers, and directories that cannot be written.
#include "check.h"
#include "core/sha256.h"
#include "packed_cache_fixture.h"
#include "weights/cache_files.h"
#include "weights/content_hash.h"
#include "weights/packed_file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>

using namespace fixture;

namespace {

namespace fs = std::filesystem;

constexpr uint64_t kPayloadBegin = 2 << 20;  // of a small file
constexpr uint64_t kSumsBegin = 4096;

std::string hash_of(std::string_view text, bool use_extensions = true) {
  Sha256 hash(use_extensions);
  hash.update(text);
  return to_hex(hash.finish());
}

/// A model, its packed bytes without a cache, and a cache that holds them.
struct Cached {
  ModelConfig config = small_config();
  writer::TempDir model, root;
  fs::path cache = root.path() / "cache";
  std::string expected;
  fs::path file;  ///< in the cache

  Cached() {
    write_checkpoint(model, config);
    const CachedLoad plain = load_target(model, config, {});
    CHECK(plain.report.state == State::off);
    expected = plain.bytes;
    const CachedLoad first = load();
    CHECK(first.report.state == State::written && first.report.message.empty());
    CHECK(first.bytes == expected);
    file = first.report.file;
  }
  CachedLoad load(bool use_mmap = true) const {
    return load_target(model, config, cache_options(cache, use_mmap));
  }
};

/// The load must not believe the file, say why, and leave a sound one.
void check_rebuilt(const Cached& cached, const std::string& reason) {
  const CachedLoad again = cached.load();
  CHECK(again.report.state == State::written);
  CHECK(again.bytes == cached.expected);
  if (again.report.message.find(reason) == std::string::npos)
    check::report(__FILE__, __LINE__, "expected '" + reason + "' in: " + again.report.message);
  CHECK(cached.load().report.state == State::hit);
}

std::string with_bit_changed(std::string bytes, size_t at) {
  bytes[at] = static_cast<char>(bytes[at] ^ 4);
  return bytes;
}

}  // namespace

TEST_CASE("SHA-256 gives the published digests, in any pieces, with and without the extensions") {
  const std::string million(1'000'000, 'a');
  for (const bool use_extensions : {false, true}) {
    CHECK_EQ(hash_of("", use_extensions),
             "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK_EQ(hash_of("abc", use_extensions),
             "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK_EQ(hash_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", use_extensions),
             "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK_EQ(hash_of(million, use_extensions),
             "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    Sha256 pieces(use_extensions);
    for (size_t at = 0, size = 0; at < million.size(); at += size, size = (size * 7 + 1) % 300)
      pieces.update(std::string_view(million).substr(at, size));
    CHECK_EQ(to_hex(pieces.finish()), hash_of(million));
  }
}

TEST_CASE("packed bytes change with the layout version only") {
  // Whoever changes what packing writes counts kPackedLayoutVersion up and puts the new digests here.
  CHECK_EQ(kPackedLayoutVersion, 1u);
  ModelConfig plain = small_config();
  plain.expert_format = plain.linear_format = WeightFormat::plain;
  plain.tie_word_embeddings = true;
  const writer::TempDir mixed_dir, plain_dir, draft_dir;
  write_checkpoint(mixed_dir, small_config());
  write_checkpoint(plain_dir, plain, {{"model.embed_tokens.weight", DType::f32}});
  write_draft(draft_dir, small_draft());
  CHECK_EQ(hash_of(load_target(mixed_dir, small_config(), {}).bytes),
           "f3b1fe3205458b7e203b7000120d7a59d854876362d50d42343e9e440010bfe3");
  CHECK_EQ(hash_of(load_target(plain_dir, plain, {}).bytes),
           "bb4b39a61922ec75eb6d5abf95dafe56e6f40647f74f84a902e31204659def82");
  CHECK_EQ(hash_of(load_draft(draft_dir, small_draft(), {}).bytes),
           "27fce8094d19af3a79090b8532f1423d8e12f49f2e7f0faeec718fa999e63753");
}

TEST_CASE("what comes from the cache is what packing gives, mapped or copied") {
  const Cached cached;
  for (const bool use_mmap : {true, false}) {
    const CachedLoad hit = cached.load(use_mmap);
    CHECK(hit.report.state == State::hit && hit.report.message.empty());
    CHECK(hit.report.part == "target" && hit.report.file == cached.file);
    CHECK(hit.bytes == cached.expected);
  }
  const DraftConfig draft = small_draft();
  const writer::TempDir dir;
  write_draft(dir, draft);
  const std::string expected = load_draft(dir, draft, {}).bytes;
  CHECK(load_draft(dir, draft, cache_options(cached.cache)).report.state == State::written);
  const CachedLoad hit = load_draft(dir, draft, cache_options(cached.cache));
  CHECK(hit.report.state == State::hit && hit.report.part == "draft");
  CHECK(hit.bytes == expected);
  CHECK(cached.load().report.state == State::hit);
}

TEST_CASE("a damaged file is packed anew") {
  const Cached cached;
  const std::string good = read_file(cached.file);
  CHECK_EQ(good.size(), kPayloadBegin + cached.expected.size());
  const std::pair<size_t, std::string> flips[] = {
      {3, "another kind of file"}, {9, "byte order"},          {12, "file format"},
      {16, "does not match its sum"}, {25, "expected a file for"}, {40, "does not match its sum"},
      {kPackedHeaderBytes - 1, "does not match its sum"}, {kSumsBegin + 1, "table of sums"},
      {kPayloadBegin, "block at byte 2097152"}, {good.size() - 1, "block at byte 2097152"}};
  for (const auto& [at, reason] : flips) {
    replace_file(cached.file, with_bit_changed(good, at));
    check_rebuilt(cached, reason);
  }
  for (const size_t size : {size_t{0}, size_t{100}, size_t{4096}, size_t{kPayloadBegin},
                            good.size() - 1}) {
    replace_file(cached.file, good.substr(0, size));
    check_rebuilt(cached, size < kSumsBegin ? "at least 4096 bytes" : "expected a file for");
  }
  replace_file(cached.file, good + "more");
  check_rebuilt(cached, "expected a file for");
  // Another layout, key or size, in a header that is sound.
  for (const auto& [at, reason] : {std::pair<size_t, std::string>{16, "expected the weights"},
                                   {33, "expected the weights"}}) {
    std::string bytes = with_bit_changed(good, at);
    seal_header(bytes);
    replace_file(cached.file, bytes);
    check_rebuilt(cached, reason);
  }
  std::string shorter = good.substr(0, good.size() - 64);
  const uint64_t num_bytes = cached.expected.size() - 64;
  std::memcpy(shorter.data() + 24, &num_bytes, sizeof num_bytes);
  seal_header(shorter);
  replace_file(cached.file, shorter);
  check_rebuilt(cached, "packed bytes, got");
}

TEST_CASE("control: a file whose sums fit is believed, so the sums are what finds damage") {
  const Cached cached;
  std::string bytes = with_bit_changed(read_file(cached.file), kPayloadBegin + 1000);
  const auto payload = std::as_bytes(std::span(bytes)).subspan(kPayloadBegin);
  const uint64_t sum = packed_sum(payload, 0);
  std::memcpy(bytes.data() + kSumsBegin, &sum, sizeof sum);
  const uint64_t of_sums = packed_sum(std::as_bytes(std::span(&sum, 1)), 0);
  std::memcpy(bytes.data() + kPackedHeaderBytes - 16, &of_sums, sizeof of_sums);
  seal_header(bytes);
  replace_file(cached.file, bytes);
  const CachedLoad hit = cached.load();
  CHECK(hit.report.state == State::hit);
  CHECK(hit.bytes == with_bit_changed(cached.expected, 1000));
}

TEST_CASE("no exchange of words, no single bit and no lost word leaves the sum as it was") {
  std::vector<uint64_t> words(1000);
  Bits bits{88172645463325252u};
  for (uint64_t& word : words) word = bits.next();
  const auto sum = [&] { return packed_sum(std::as_bytes(std::span(words)), 7); };
  const uint64_t before = sum();
  for (const size_t i : {0u, 1u, 7u, 8u, 500u, 991u, 999u}) {
    for (int bit = 0; bit < 64; ++bit) {
      words[i] ^= uint64_t{1} << bit;
      CHECK(sum() != before);
      words[i] ^= uint64_t{1} << bit;
    }
    for (const size_t j : {2u, 10u, 16u, 508u, 998u}) {
      std::swap(words[i], words[j]);
      CHECK(sum() != before);
      std::swap(words[i], words[j]);
    }
    const uint64_t lost = std::exchange(words[i], 0);
    CHECK(sum() != before);
    words[i] = lost;
  }
  CHECK_EQ(sum(), before);
  const auto all = std::as_bytes(std::span(words));
  CHECK(packed_sum(all.first(7999), 7) != packed_sum(all.first(7998), 7));
  CHECK(packed_sum(all, 7) != packed_sum(all, 8));
}

TEST_CASE("what is in the place of a file may be anything") {
  const Cached cached;
  const auto check_refused = [&](const std::string& reason) {
    const CachedLoad load = cached.load();
    CHECK(load.bytes == cached.expected);
    CHECK(load.report.message.find(reason) != std::string::npos);
    return load.report.state;
  };
  const fs::path elsewhere = cached.root.path() / "elsewhere";
  fs::rename(cached.file, elsewhere);
  fs::create_symlink(elsewhere, cached.file);
  CHECK(check_refused("cannot be read") == State::written);  // the link is replaced, not followed
  CHECK(fs::exists(elsewhere) && !fs::is_symlink(cached.file));
  fs::remove(cached.file);
  CHECK_EQ(::mkfifo(cached.file.c_str(), 0600), 0);
  CHECK(check_refused("expected a file of at least") == State::written);
  fs::remove(cached.file);
  fs::create_directory(cached.file);
  CHECK(check_refused("rename") == State::failed);
  CHECK_EQ(num_files(cached.cache, ".tmp") + num_files(cached.cache, ".lock"), 0u);
}

TEST_CASE("contents and layout have their own files, other config values do not matter") {
  Cached cached;
  cached.config.rms_norm_eps = 1e-3;
  cached.config.max_position_embeddings = 32;
  CHECK(cached.load().report.state == State::hit);
  const fs::path before = cached.file;
  const auto check_other_file = [&] {
    const std::string expected = load_target(cached.model, cached.config, {}).bytes;
    const CachedLoad load = cached.load();
    CHECK(load.report.state == State::written && load.report.file != before);
    CHECK(load.bytes == expected && load.bytes != cached.expected);
    CHECK(cached.load().report.state == State::hit);
  };
  for (LayerConfig& layer : cached.config.layers) layer.rotary_dim = 8;
  check_other_file();
  cached.config = small_config();
  write_checkpoint(cached.model, cached.config, {}, [](const std::string& name, std::string& bytes) {
    if (name == "lm_head.weight") bytes[100] = static_cast<char>(bytes[100] ^ 1);
  });
  check_other_file();
  write_checkpoint(cached.model, cached.config);  // back again: the first file serves
  CHECK(cached.load().report.file == before && cached.load().report.state == State::hit);
  // The same bytes in another directory are the same contents.
  const writer::TempDir copy;
  fs::copy_file(cached.model.path() / "model.safetensors", copy.path() / "model.safetensors");
  const CachedLoad moved = load_target(copy, cached.config, cache_options(cached.cache));
  CHECK(moved.report.state == State::hit && moved.report.file == before);
}

TEST_CASE("contents are hashed once, and again when the files' stamps say so") {
  const Cached cached;
  const fs::path weights = cached.model.path() / "model.safetensors";
  // A file written a moment ago, or tomorrow, could change again under the same stamp.
  clear_packed_cache(cached.cache);
  fs::last_write_time(weights, fs::file_time_type::clock::now() + std::chrono::hours(24));
  CHECK(!are_stamps_settled(Checkpoint::open(cached.model.path())));
  CHECK(cached.load().report.state == State::written);
  CHECK_EQ(num_files(cached.cache, ".content"), 0u);
  fs::last_write_time(weights, fs::file_time_type::clock::now() - std::chrono::hours(24));
  std::this_thread::sleep_for(std::chrono::milliseconds(3200));
  const Checkpoint checkpoint = Checkpoint::open(cached.model.path());
  CHECK(are_stamps_settled(checkpoint) && is_unchanged(checkpoint));
  CHECK(cached.load().report.state == State::hit);
  CHECK_EQ(num_files(cached.cache, ".content"), 1u);
  const fs::path known = cached.cache / cache_file_name(hash_stamps(checkpoint), kContentSuffix);
  CHECK_EQ(read_file(known), to_hex(hash_contents(checkpoint, {}, "test")));
  // Control: the name of the contents is really taken from there.
  replace_file(known, std::string(64, '0'));
  CHECK(cached.load().report.state == State::written);
  for (const std::string& bad : {std::string(), std::string(63, '0'), std::string(65, '0'), std::string(64, 'x'),
                                 "+" + std::string(63, '0')}) {
    replace_file(known, bad);
    CHECK(cached.load().report.file == cached.file);
  }
  // One byte and the old modification time: a program cannot set the time of the change.
  const auto modified = fs::last_write_time(weights);
  std::fstream(weights, std::ios::in | std::ios::out | std::ios::binary).seekp(-1, std::ios::end).put('\1');
  fs::last_write_time(weights, modified);
  CHECK(!is_unchanged(checkpoint));
  const CachedLoad changed = cached.load();
  CHECK(changed.report.state == State::written && changed.bytes != cached.expected);
}

TEST_CASE("files that change while they are packed are not kept") {
  Cached cached;
  clear_packed_cache(cached.cache);
  Weights::Options options = cache_options(cached.cache);
  options.progress = [&](uint64_t done, uint64_t total) {
    if (done == total) fs::last_write_time(cached.model.path() / "model.safetensors", fs::file_time_type{});
    return true;
  };
  const CachedLoad load = load_target(cached.model, cached.config, options);
  CHECK(load.report.state == State::failed && load.bytes == cached.expected);
  CHECK(load.report.message.find("changed while") != std::string::npos);
  CHECK(list_packed_cache(cached.cache).empty());
}

TEST_CASE("writing can be cancelled, and then leaves nothing") {
  const Cached cached;
  clear_packed_cache(cached.cache);
  Weights::Options options = cache_options(cached.cache);
  bool is_packed = false;
  options.progress = [&](uint64_t done, uint64_t total) { return !std::exchange(is_packed, done == total); };
  CHECK_THROWS(cancelled, "progress callback", load_target(cached.model, cached.config, options));
  CHECK_EQ(num_files(cached.cache, ".packed") + num_files(cached.cache, ".tmp"), 0u);
  CHECK_EQ(num_files(cached.cache, ".lock"), 0u);
}

TEST_CASE("many loads at once, in threads and processes, agree and write one file") {
  const Cached cached;
  clear_packed_cache(cached.cache);
  std::vector<pid_t> children;
  for (int i = 0; i < 3; ++i) {
    const pid_t child = ::fork();
    if (child == 0) ::_exit(cached.load().bytes == cached.expected ? 0 : 1);
    children.push_back(child);
  }
  std::atomic<int> num_written = 0, num_hits = 0, num_right = 0;
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i)
      threads.emplace_back([&] {
        const CachedLoad load = cached.load();
        num_written += load.report.state == State::written;
        num_hits += load.report.state == State::hit;
        num_right += load.bytes == cached.expected;
      });
  }
  CHECK_EQ(num_right.load(), 4);
  CHECK_EQ(num_written + num_hits, 4);
  for (const pid_t child : children) {
    int status = -1;
    CHECK(::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  CHECK_EQ(num_files(cached.cache, ".packed"), 1u);
  CHECK_EQ(num_files(cached.cache, ".tmp"), 0u);
  CHECK(cached.load().report.state == State::hit);
}

TEST_CASE("the second writer waits for the first, which may also die") {
  const Cached cached;
  const std::string good = read_file(cached.file);
  fs::remove(cached.file);
  const fs::path lock_path = fs::path(cached.file).replace_extension(kLockSuffix);
  const fs::path leftover = cached.file.string() + ".77-0.tmp";
  auto lock = std::make_unique<WriterLock>(lock_path);
  CHECK(lock->try_lock() == WriterLock::State::held);
  CHECK(WriterLock(lock_path).try_lock() == WriterLock::State::busy);
  std::atomic<int> num_polls = 0;
  Weights::Options options = cache_options(cached.cache);
  options.progress = [&](uint64_t, uint64_t) {
    if (++num_polls == 8) {
      replace_file(cached.file, good);
      lock.reset();
    }
    return true;
  };
  CHECK(load_target(cached.model, cached.config, options).report.state == State::hit);
  CHECK(num_polls >= 8);
  // The first one dies: its lock goes with it, its temporary file is cleared away.
  fs::remove(cached.file);
  replace_file(leftover, "half");
  lock = std::make_unique<WriterLock>(lock_path);
  CHECK(lock->try_lock() == WriterLock::State::held);
  num_polls = 0;
  options.progress = [&](uint64_t, uint64_t) {
    if (++num_polls == 8) lock.reset();
    return true;
  };
  CHECK(load_target(cached.model, cached.config, options).report.state == State::written);
  CHECK(!fs::exists(leftover) && !fs::exists(lock_path));
  // Waiting can be cancelled.
  fs::remove(cached.file);
  WriterLock forever(lock_path);
  CHECK(forever.try_lock() == WriterLock::State::held);
  num_polls = 0;
  options.progress = [&](uint64_t, uint64_t) { return ++num_polls < 8; };
  CHECK_THROWS(cancelled, "another process packs", load_target(cached.model, cached.config, options));
}

TEST_CASE("a cache that cannot be written costs nothing but itself") {
  Cached cached;
  cached.root.write("file", "not a directory");
  cached.cache = cached.root.path() / "file" / "below";
  const CachedLoad load = cached.load();
  CHECK(load.report.state == State::failed && load.bytes == cached.expected);
  CHECK(load.report.message.find("Not a directory") != std::string::npos);
  // A directory that cannot be made says why, not that it is missing.
  cached.cache = "/sys/mimo_rt/cache";
  const CachedLoad nowhere = cached.load();
  CHECK(nowhere.report.state == State::failed && nowhere.bytes == cached.expected);
  CHECK(nowhere.report.message.find("'/sys/mimo_rt/cache' cannot be created: ") == 0);
  CHECK(nowhere.report.message.find("No such file") == std::string::npos);
  CHECK(nowhere.report.file.empty());  // a name would have taken the hash of all contents
  // One that vanishes while the weights are packed could be created.
  cached.cache = cached.root.path() / "vanishing";
  Weights::Options options = cache_options(cached.cache);
  options.progress = [&](uint64_t, uint64_t) { return fs::remove_all(cached.cache) != UINTMAX_MAX; };
  const CachedLoad vanished = load_target(cached.model, cached.config, options);
  CHECK(vanished.report.state == State::failed && vanished.bytes == cached.expected);
  CHECK(vanished.report.message.find("cannot be created") == std::string::npos);
  CHECK(vanished.report.message.find("No such file") != std::string::npos);

  // A limit on the size of files: no signal, no half file. As on a full disk, the space is asked for first.
  cached.cache = cached.root.path() / "limited";
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const rlimit limit{1 << 20, before.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &limit);
  const CachedLoad limited = cached.load();
  ::setrlimit(RLIMIT_FSIZE, &before);
  CHECK(limited.report.state == State::failed && limited.bytes == cached.expected);
  CHECK(limited.report.message.find("File too large") != std::string::npos);
  CHECK_EQ(num_files(cached.cache, ".packed") + num_files(cached.cache, ".tmp"), 0u);
}

TEST_CASE("the cache is listed and cleared without touching other files") {
  const Cached cached;
  CHECK(list_packed_cache(cached.root.path() / "absent").empty());
  CHECK_EQ(clear_packed_cache(cached.root.path() / "absent"), 0u);
  const std::string digits(32, 'a');
  for (const std::string& name : {std::string("notes.packed"), std::string("config.json"), std::string("lock"),
                                  digits + ".safetensors"})
    replace_file(cached.cache / name, "mine");
  fs::create_directory(cached.cache / (std::string(32, 'd') + ".packed"));
  for (const std::string& name : {digits + ".packed", digits + ".lock", digits + ".content",
                                  digits + ".packed.1-0.tmp"})
    replace_file(cached.cache / name, "ours");
  std::string old = read_file(cached.file);
  old[16] = 2;  // the layout version
  seal_header(old);
  replace_file(cached.cache / (std::string(32, 'b') + ".packed"), old);
  const std::vector<PackedCacheEntry> entries = list_packed_cache(cached.cache);
  CHECK_EQ(entries.size(), 3u);
  for (const PackedCacheEntry& entry : entries) {
    CHECK_EQ(entry.is_usable, entry.file == cached.file);
    CHECK_EQ(entry.num_bytes, fs::file_size(entry.file));
    const bool is_sound = entry.file.filename() != digits + ".packed";
    CHECK_EQ(entry.part, is_sound ? "target" : "");
    CHECK_EQ(entry.source_dir, is_sound ? cached.model.path() : fs::path());
  }
  CHECK_EQ(clear_packed_cache(cached.cache), 2 * old.size() + 4 * 4);
  CHECK_EQ(names_in(cached.cache).size(), 5u);
  CHECK(cached.load().report.state == State::written);
  CHECK_THROWS(io, "Not a directory", list_packed_cache(cached.model.path() / "model.safetensors"));
}

CHECK_MAIN()
