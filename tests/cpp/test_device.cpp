// Backends and processors: names, refusals, and control group files of both versions.
#include <mimo_rt/device.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include "check.h"
#include "core/usable_cores.h"
#include "cpu/dispatch.h"

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

#if defined(MIMO_RT_X86)
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
  for (uint32_t set = 0; set < 1u << 9; ++set) {  // every combination
    F features;
    uint32_t bit = 0, num_avx2 = 0, num_base = 0, num_extra = 0;
    for (const Flag flag : avx2) num_avx2 += features.*flag = set >> bit++ & 1;
    for (const Flag flag : base) num_base += features.*flag = set >> bit++ & 1;
    for (const Flag flag : extra) num_extra += features.*flag = set >> bit++ & 1;
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
    if (has_avx512)
      stands_for("cpu-avx512", num_extra == 3 ? 3 : 2);
    else
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

CHECK_MAIN()
