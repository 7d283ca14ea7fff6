// How much memory loading needs, and what happens when the machine does not have it.
#include "check.h"
#include "core/available_memory.h"
#include "packed_cache_fixture.h"
#include "weights/arena.h"
#include "weights/cache_files.h"
#include "weights/weights.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <thread>
#include <utility>

using namespace mimo_rt;
using namespace fixture;

namespace {

/// kB of one line of /proc/self/status.
uint64_t status_kib(const std::string& key) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with(key + ":")) return std::stoull(line.substr(key.size() + 1));
  return 0;
}

bool has_huge_pages() { return std::filesystem::exists("/sys/kernel/mm/transparent_hugepage"); }

/// Whether the mapping around `address` has been advised to use them.
bool asks_for_huge_pages(const void* address) {
  std::ifstream maps("/proc/self/smaps");
  bool is_there = false;
  for (std::string line; std::getline(maps, line);) {
    uintptr_t begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%zx-%zx ", &begin, &end) == 2)  // a mapping's first line
      is_there = begin <= reinterpret_cast<uintptr_t>(address) && reinterpret_cast<uintptr_t>(address) < end;
    if (is_there && line.starts_with("VmFlags:")) return line.find(" hg") != std::string::npos;
  }
  return false;
}

/// Samples resident memory (anonymous + file pages) every millisecond while it lives.
class PeakMemory {
 public:
  PeakMemory() : start_(resident()), sampler_([this](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      peak_ = std::max(peak_.load(), resident());
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }) {}
  uint64_t stop() {
    sampler_.request_stop();
    sampler_.join();
    return peak_ - std::min(peak_.load(), start_);
  }

 private:
  static uint64_t resident() { return (status_kib("RssAnon") + status_kib("RssFile")) * 1024; }
  uint64_t start_;
  std::atomic<uint64_t> peak_ = 0;
  std::jthread sampler_;
};

}  // namespace

TEST_CASE("a model that does not fit is refused before anything is read") {
  ModelConfig config = small_config();
  config.layers.resize(1);
  config.num_layers = 1;
  config.vocab_size = 1 << 24;
  config.hidden_size = 8192;
  CHECK_THROWS(out_of_memory, "bytes available", Weights::synthetic(config, 1));
  // A checkpoint of 2 x 550 GB, sparse on disk: it would pass every other check. Its F32 zeros fit
  // BF16, which reading them would take minutes to see.
  const writer::TempDir dir;
  uint64_t end = 0;
  std::string json;
  for (const ExpectedTensor& tensor : expected_tensors(config)) {
    const TensorForm& form = tensor.forms[0];
    const bool is_table = form.shape[0] == config.vocab_size;
    const DType dtype = is_table ? DType::f32 : form.dtypes[0];
    uint64_t num_bytes = dtype_bits(dtype) / 8;
    for (const uint64_t dim : form.shape) num_bytes *= dim;
    json += (json.empty() ? "{" : ",") +
            writer::entry(tensor.name, file_dtype(dtype), writer::shape_text(form.shape),
                          writer::shape_text({end, end + num_bytes}));
    end += num_bytes;
  }
  const std::string header = writer::make_file(json + "}", "");
  dir.write("model.safetensors", header);
  std::filesystem::resize_file(dir.path() / "model.safetensors", header.size() + end);
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  CHECK_THROWS(out_of_memory, "bytes available", Weights::load(checkpoint, config, {}));
  config.layers[0].num_q_heads = 1 << 31;
  config.layers[0].v_head_dim = 4096;
  config.layers[0].qk_head_dim = config.layers[0].rotary_dim = 0;
  config.layers[0].num_kv_heads = 0;
  CHECK_THROWS(unsupported_shape, "at most", Weights::synthetic(config, 1));
}

TEST_CASE("files that do not fit are not copied, but can be mapped") {
  const uint64_t too_many = std::min(available_memory_bytes(), uint64_t{1} << 42) * 2;
  const writer::TempDir dir;  // sparse files
  const std::string header = writer::make_file(
      "{" + writer::entry("t", "U8", writer::shape_text({too_many}), writer::shape_text({0, too_many})) + "}", "");
  dir.write("model.safetensors", header);
  std::filesystem::resize_file(dir.path() / "model.safetensors", header.size() + too_many);
  CHECK_THROWS(out_of_memory, "'model.safetensors', copied without use_mmap, need",
               Checkpoint::open(dir.path(), {.use_mmap = false}));
  CHECK_EQ(Checkpoint::open(dir.path()).tensors().size(), 1u);

  PackedFileInfo info;
  info.num_bytes = 64;
  const std::filesystem::path path = dir.path() / "packed";
  Weights::Options options;
  const auto open_packed = [&] { return Descriptor(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)); };
  write_packed_file(open_packed().number(), "packed", info, Arena(info.num_bytes, "here"), options, "here");
  info.num_bytes = too_many;
  std::string packed = read_file(path);
  std::memcpy(packed.data() + 24, &too_many, sizeof too_many);
  seal_header(packed);
  replace_file(path, packed);
  std::filesystem::resize_file(path, packed_file_bytes(too_many));
  const auto read = [&] { return read_packed_file(open_packed().number(), "packed", info, options, "here"); };
  CHECK_THROWS(bad_format, "table of sums", read());  // the sizes fit, mapped bytes are looked at
  options.use_mmap = false;
  CHECK_THROWS(out_of_memory, "the packed weights, copied without use_mmap, need", read());
}

TEST_CASE("available memory is the least of the machine's and the cgroups'") {
  const writer::TempDir root;
  root.write("proc/meminfo", "MemTotal: 100 kB\nMemAvailable:   1000 kB\nSwapFree: 5 kB\n");
  CHECK_EQ(available_memory_bytes(root.path()), 1024'000u);
  root.write("proc/self/cgroup", "0::/a/b\n");
  root.write("sys/fs/cgroup/a/b/memory.max", "max\n");
  root.write("sys/fs/cgroup/a/b/memory.current", "7\n");
  CHECK_EQ(available_memory_bytes(root.path()), 1024'000u);
  root.write("sys/fs/cgroup/a/memory.max", "500000\n");
  root.write("sys/fs/cgroup/a/memory.current", "450000\n");
  root.write("sys/fs/cgroup/a/memory.stat",
             "anon 50000\ninactive_file 300000\nactive_file 100000\n");
  CHECK_EQ(available_memory_bytes(root.path()), 450'000u);
  root.write("proc/self/cgroup", "5:cpu:/\n4:memory:/not/visible\n0::/\n");
  root.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9000\n");
  root.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "10000\n");
  CHECK_EQ(available_memory_bytes(root.path()), 0u);
  root.write("sys/fs/cgroup/memory/memory.stat", "cache 1\ntotal_inactive_file 4000\n");
  CHECK_EQ(available_memory_bytes(root.path()), 3000u);
  CHECK(available_memory_bytes() > 1 << 20);
  CHECK_THROWS(out_of_memory, "need 12 bytes", check_memory(12, 11, "here"));
  check_memory(11, 11, "here");
}

TEST_CASE("a mapped file has its bytes, read ahead or not, and asks for huge pages where there are any") {
  const writer::TempDir dir;
  constexpr uint64_t kBegin = 2 << 20, kBytes = (5 << 20) + 12;
  std::string bytes(kBegin + kBytes, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i / 4096 + i);
  std::ofstream(dir.path() / "file", std::ios::binary) << bytes;
  const int descriptor = ::open((dir.path() / "file").c_str(), O_RDONLY | O_CLOEXEC);
  Arena mapped = Arena::map_file(descriptor, kBegin, kBytes, "here");
  const Arena arena = std::move(mapped);
  ::close(descriptor);
  for (uint64_t offset = 0; offset < kBytes; offset += 2 << 20) arena.read_ahead(offset, 2 << 20);
  CHECK_EQ(arena.size_bytes(), kBytes);
  CHECK(std::memcmp(arena.data(), bytes.data() + kBegin, kBytes) == 0);
  CHECK_EQ(asks_for_huge_pages(arena.data()), has_huge_pages());
}

TEST_CASE("memory for weights asks for huge pages where there are any") {
  const Arena arena(4 << 20, "here");
  CHECK_EQ(asks_for_huge_pages(arena.data()), has_huge_pages());
  CHECK_EQ(reinterpret_cast<uintptr_t>(arena.data()) % (2 << 20), 0u);  // or the first would be small
  const auto plain = std::make_unique<char>();
  CHECK(!asks_for_huge_pages(plain.get()));  // control
}

TEST_CASE("loading needs at most 1.15 times the packed bytes of memory") {
  ModelConfig config = small_config();
  config.hidden_size = 1024;
  config.vocab_size = 32768;
  config.expert_intermediate_size = 1024;
  config.num_experts = 64;
  config.layers = {small_layer(true, false), small_layer(true, true)};
  const writer::TempDir dir;
  // The embedding is F32 that fits BF16: all of it is read twice.
  write_checkpoint(dir, config, {{"model.embed_tokens.weight", DType::f32}},
                   [](const std::string& name, std::string& bytes) {
                     for (size_t i = 0; name.ends_with("tokens.weight") && i < bytes.size(); i += 4)
                       bytes[i] = bytes[i + 1] = 0;
                   });
  CHECK(std::filesystem::file_size(dir.path() / "model.safetensors") >= 300'000'000);
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  for (const uint32_t num_threads : {1u, 2u, 4u}) {
    PeakMemory memory;
    const auto begin = std::chrono::steady_clock::now();
    const Weights weights = Weights::load(checkpoint, config, {num_threads, {}});
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    const double ratio =
        static_cast<double>(memory.stop()) / static_cast<double>(weights.packed_bytes());
    std::printf("  %u threads: %.2f GB/s, peak %.3f x packed\n", num_threads,
                static_cast<double>(weights.packed_bytes()) / seconds.count() * 1e-9, ratio);
    CHECK(ratio <= 1.15);
    CHECK(ratio > 0.9);  // control: the measurement sees the weights
  }
  // Control: without releasing pages the bound would not hold, and the measurement shows it.
  PeakMemory memory;
  uint64_t sum = 0;
  const Weights weights = Weights::load(checkpoint, config, {2, {}});
  for (const TensorInfo& tensor : checkpoint.tensors())
    for (size_t i = 0; i < tensor.data.size(); i += 512)
      sum += std::to_integer<uint64_t>(tensor.data[i]);
  CHECK(sum > 0);
  const auto bound = 1.15 * static_cast<double>(weights.packed_bytes());
  CHECK(static_cast<double>(memory.stop()) > bound);
}

CHECK_MAIN()
