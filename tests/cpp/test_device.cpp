// Backends and processors: names, refusals, and control group files of both versions.
#include <mimo_rt/device.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "check.h"
#include "core/usable_cores.h"
#include "cpu/dispatch.h"
#include "engine/machine_notes.h"
#include "weights/arena.h"

using namespace mimo_rt;

namespace {

/// A fake root folder with files in it, removed at the end.
class FakeRoot {
 public:
  FakeRoot() {
    std::string name = (std::filesystem::temp_directory_path() / "mimo_cores_XXXXXX").string();
    root_ = std::string(mkdtemp(name.data())) + "/";
  }
  ~FakeRoot() { std::filesystem::remove_all(root_); }
  FakeRoot(const FakeRoot&) = delete;
  void write(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  const std::string& path() const { return root_; }

 private:
  std::string root_;
};

}  // namespace

TEST_CASE("the listed backends are the known ones and the available ones resolve to themselves") {
  std::string names;
  for (const Backend& backend : list_backends()) {
    names += backend.name + " ";
    CHECK(!backend.reason.empty());
    if (backend.available)
      CHECK_EQ(resolve_backend(backend.name), backend.name);
    else
      CHECK_THROWS(unavailable, backend.reason, resolve_backend(backend.name));
  }
  CHECK_EQ(names, "ref cpu-generic cpu-avx2 cpu-avx512 cuda ");
  CHECK_THROWS(invalid_argument, "'cpu-sse'", resolve_backend("cpu-sse"));
  CHECK_THROWS(invalid_argument, "''", resolve_backend(""));
}

#if defined(MIMO_RT_AVX512)
TEST_CASE("features decide which kernels stand behind a backend name") {
  using Flag = bool cpu::CpuFeatures::*;
  using F = cpu::CpuFeatures;
  const std::vector<Flag> avx2 = {&F::avx2, &F::fma};
  const std::vector<Flag> base = {&F::avx512f, &F::avx512bw, &F::avx512vl, &F::avx512dq};
  const std::vector<Flag> extra = {&F::avx512bf16, &F::avx512vbmi, &F::avx512vnni};
  const cpu::Kernels* kernels[] = {cpu::kernels_generic(), cpu::kernels_avx2(),
                                   cpu::kernels_avx512(), cpu::kernels_avx512_bf16()};
  const cpu::Kernels* int8_kernels[] = {cpu::kernels_generic_int8(), cpu::kernels_avx2_int8(),
                                        cpu::kernels_avx512_int8(), cpu::kernels_avx512_bf16_int8()};
  std::set<const cpu::Kernels*> distinct(std::begin(kernels), std::end(kernels));
  distinct.insert(std::begin(int8_kernels), std::end(int8_kernels));
  CHECK_EQ(distinct.size(), 8u);
  for (uint32_t set = 0; set < 1u << 10; ++set) {  // every combination
    F features;
    uint32_t bit = 0, num_avx2 = 0, num_base = 0, num_extra = 0;
    for (const Flag flag : avx2) num_avx2 += features.*flag = set >> bit++ & 1;
    for (const Flag flag : base) num_base += features.*flag = set >> bit++ & 1;
    for (const Flag flag : extra) num_extra += features.*flag = set >> bit++ & 1;
    features.fast_bf16 = set >> bit & 1;
    const bool has_avx2 = num_avx2 == 2, has_avx512 = has_avx2 && num_base == 4;
    const std::vector<cpu::CpuBackend> backends = cpu::backends_for(features);
    const auto is_refused = [&](const char* name) {
      CHECK_THROWS(unavailable, name, cpu::select_kernels(backends, name));
    };
    const auto stands_for = [&](const char* name, uint32_t i) {
      CHECK(&cpu::select_kernels(backends, name) == kernels[i]);
      CHECK(&cpu::select_kernels(backends, name, Activations::int8) == int8_kernels[i]);
    };
    stands_for("cpu-generic", 0);
    if (has_avx2)
      stands_for("cpu-avx2", 1);
    else
      is_refused("cpu-avx2");
    if (has_avx512 && (num_extra < 3 || features.fast_bf16)) {
      stands_for("cpu-avx512", num_extra == 3 ? 3 : 2);
    } else if (has_avx512) {
      CHECK(&cpu::select_kernels(backends, "cpu-avx512") == cpu::kernels_avx512());
      const cpu::Kernels& mixed = cpu::select_kernels(backends, "cpu-avx512", Activations::int8);
      CHECK(!distinct.contains(&mixed) && mixed.attend == cpu::kernels_avx512_int8()->attend);
    } else
      is_refused("cpu-avx512");
  }
}
#endif

TEST_CASE("the forced table is the one that is returned") {
  for (const cpu::CpuBackend& backend : cpu::cpu_backends()) {
    if (backend.supported && backend.kernels)
      CHECK_EQ(std::string("cpu-") + cpu::select_kernels(backend.name).name,
               std::string(backend.name));
    else
      CHECK_THROWS(unavailable, backend.needs, cpu::select_kernels(backend.name));
  }
  CHECK_THROWS(invalid_argument, "cuda", cpu::select_kernels("cuda"));
}

TEST_CASE("MIMO_RT_BACKEND overrides auto and nothing else") {
  unsetenv("MIMO_RT_BACKEND");
  const std::string fastest = resolve_backend("cpu");
  CHECK_EQ(resolve_backend("auto"), fastest);
  setenv("MIMO_RT_BACKEND", "ref", 1);
  CHECK_EQ(resolve_backend("auto"), "ref");
  CHECK_EQ(resolve_backend("cpu"), fastest);
  setenv("MIMO_RT_BACKEND", "nonsense", 1);
  CHECK_THROWS(invalid_argument, "nonsense", resolve_backend("auto"));
  unsetenv("MIMO_RT_BACKEND");
}

TEST_CASE("control group quotas lower the number of processors") {
  const FakeRoot none;
  const uint32_t all = usable_cores(none.path());
  CHECK(all >= 1);
  CHECK_EQ(num_usable_cores() <= all, true);
  const FakeRoot v2;
  v2.write("proc/self/cgroup", "0::/a/b\n");
  v2.write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  CHECK_EQ(usable_cores(v2.path()), all);
  v2.write("sys/fs/cgroup/a/cpu.max", "150000 100000\n");  // of the parent: one and a half
  CHECK_EQ(usable_cores(v2.path()), 1u);
  v2.write("sys/fs/cgroup/a/cpu.max", "900000000 1000\n");
  CHECK_EQ(usable_cores(v2.path()), all);
  const FakeRoot v1;
  v1.write("proc/self/cgroup", "7:memory:/x\n4:cpu,cpuacct:/x\n");
  v1.write("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "-1\n");
  v1.write("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us", "100000\n");
  CHECK_EQ(usable_cores(v1.path()), all);
  v1.write("sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us", "50000\n");
  CHECK_EQ(usable_cores(v1.path()), 1u);
  v1.write("proc/self/cgroup", "garbage\n:::\n4:cpu\n");
  CHECK_EQ(usable_cores(v1.path()), all);
}

TEST_CASE("workers without a core of their own are told") {
  CHECK_EQ(note_on_workers(1, 1), "");
  CHECK_EQ(note_on_workers(8, 8), "");
  for (const char* part : {"9 workers share 8 cores", "Use at most 8", "bound"})
    CHECK(note_on_workers(9, 8).find(part) != std::string::npos);
  CHECK(note_on_workers(1024, 1).find("share 1 core (") != std::string::npos);
}

TEST_CASE("cores that workers miss are told") {
  CHECK_EQ(note_on_cores({}, 8, 8), "");
  for (const char* part : {"pin_threads: 1 of 2 workers", "refuses core 3,", "1 core is usable now"})
    CHECK(note_on_cores({3}, 2, 1).find(part) != std::string::npos);
  CHECK(note_on_cores({3, 5}, 4, 2).find("2 of 4 workers not bound to a core: the system refuses cores 3, 5,") !=
        std::string::npos);
}

TEST_CASE("huge pages that are denied are told") {
  const FakeRoot root;
  root.write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
  const auto mapping = [](const char* bounds, int anonymous_kib, int huge_kib) {
    return std::string(bounds) + " rw-p 00000000 00:00 0 \nSize: 999 kB\nAnonymous: " + std::to_string(anonymous_kib) +
           " kB\nAnonHugePages: " + std::to_string(huge_kib) + " kB\nVmFlags: rd wr \n";
  };
  root.write("proc/self/smaps", mapping("1000-2000", 7, 7) + mapping("2000-a000", 100'000, 4096) +
                                    mapping("b000-c000", 50'000, 0) + mapping("ffff0000-ffff1000", 9, 9));
  const auto at = [](uintptr_t address) { return reinterpret_cast<const void*>(address); };
  const PageUse inside = page_use(at(0x2400), at(0x2500), root.path());
  CHECK(inside.private_bytes == 100'000u * 1024 && inside.huge_bytes == 4096u * 1024);
  const PageUse both = page_use(at(0x9fff), at(0xb001), root.path());
  CHECK(both.private_bytes == 150'000u * 1024 && both.huge_bytes == 4096u * 1024);
  CHECK_EQ(page_use(at(0xa000), at(0xb000), root.path()).private_bytes, 0u);  // between two mappings
  for (const char* part : {"gave 4 of 97 MiB", "enabled: never", "quarter"})
    CHECK(note_on_pages(inside, root.path()).find(part) != std::string::npos);
  CHECK_EQ(note_on_pages({inside.private_bytes, inside.private_bytes / 2}, root.path()), "");
  CHECK_EQ(note_on_pages({1 << 20, 0}, root.path()), "");  // too small to matter
  const FakeRoot empty;
  CHECK_EQ(page_use(at(0), at(~uintptr_t{0}), empty.path()).private_bytes, 0u);
  CHECK(note_on_pages(inside, empty.path()).find("enabled: unknown") != std::string::npos);
  CHECK_EQ(probe_huge_pages(8 << 20) % (2u << 20), 0u);  // whole pages of 2 MiB, none where the system grants none
}

TEST_CASE("memory that no machine has is refused") {
  for (const uint64_t num_bytes : {~uint64_t{0}, ~uint64_t{0} - (4u << 20), uint64_t{1} << 62}) {
    CHECK_THROWS(out_of_memory, std::to_string(num_bytes), probe_huge_pages(num_bytes));
    CHECK_THROWS(out_of_memory, "[test] reserving " + std::to_string(num_bytes), Arena(num_bytes, "test"));
  }
}

TEST_CASE("a mapped file's pages are counted by themselves, small ones are told") {
  const FakeRoot root;
  const auto mapping = [](const char* bounds, int resident_kib, int anonymous_kib, const char* huge) {
    return std::string(bounds) + " r--s 00200000 fe:00 7 /cache/0.packed\nSize: 999999 kB\nRss: " +
           std::to_string(resident_kib) + " kB\nAnonymous: " + std::to_string(anonymous_kib) + " kB\n" + huge;
  };
  root.write("proc/self/smaps", mapping("1000-2000", 200'000, 0, "FilePmdMapped: 4096 kB\n") +
                                    mapping("2000-3000", 50'000, 10'000, "ShmemPmdMapped: 2048 kB\n") +
                                    mapping("3000-4000", 90'000, 90'000, "AnonHugePages: 90000 kB\n"));
  const auto use_of = [&](uintptr_t begin, uintptr_t end) {
    return page_use(reinterpret_cast<const void*>(begin), reinterpret_cast<const void*>(end), root.path());
  };
  const PageUse file = use_of(0x1000, 0x2000), all = use_of(0x1000, 0x4000), own = use_of(0x3000, 0x4000);
  CHECK(file.mapped_bytes == 200'000u * 1024 && file.huge_mapped_bytes == 4096u * 1024);
  CHECK(file.private_bytes == 0 && file.huge_bytes == 0);
  CHECK(all.mapped_bytes == 240'000u * 1024 && all.huge_mapped_bytes == 6144u * 1024);
  CHECK(all.private_bytes == 100'000u * 1024 && all.huge_bytes == 90'000u * 1024);
  CHECK(own.mapped_bytes == 0 && own.huge_mapped_bytes == 0);
  for (const char* part : {"huge pages: 4 of 195 MiB of the mapped packed cache", "use_mmap = false"})
    CHECK(note_on_pages(file, root.path()).find(part) != std::string::npos);
  CHECK_EQ(note_on_pages(own, root.path()), "");
  CHECK_EQ(note_on_pages({.mapped_bytes = 64 << 20, .huge_mapped_bytes = 32 << 20}, root.path()), "");
  CHECK_EQ(note_on_pages({.mapped_bytes = 1 << 20}, root.path()), "");  // too small to matter
}

CHECK_MAIN()
