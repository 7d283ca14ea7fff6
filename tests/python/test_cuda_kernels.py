"""What the compiler made of the CUDA kernels, for every architecture.

No GPU is needed: ptxas reports registers, stack and spills of each kernel. A build with CUDA (that of the wheel)
has kept its reports; without one the kernels are compiled here.
"""

import os
import pathlib
import re
import shutil
import subprocess
import time

import ptxas_report
import pytest
from ptxas_report import (
    ARCHITECTURES,
    Resources,
    built_report,
    compile_kernels,
    compile_with_nvcc,
    is_current,
    parse_resources,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAX_REGISTERS = 168  # a block has 9 warps: one of the 4 register files of 16384 holds 3 of them

# A block shares out with setmaxnreg only what it was launched with: kLaunchRegisters of persistent_params.h, and
# kGemmComputeRegisters and kGemmLoadRegisters of expert_gemm_params.h.
LAUNCH_REGISTERS = {"persistent_kernel": 168, "expert_gate_up_gemm_kernel": 168, "expert_down_gemm_kernel": 168}

MAX_SHARED_BYTES = 227 * 1024  # dynamic, compute capability 9.0 and 10.0

# Source -> its kernels. A kernel that is only here or only in the source fails the test.
KERNELS = {
    "csrc/cuda/attention.cu": {"attention_kernel", "attention_combine_kernel"},
    "csrc/cuda/bench_device.cu": {"read_kernel", "empty_kernel"},
    "csrc/cuda/edge_relay.cu": {"edge_relay_kernel"},
    "csrc/cuda/expert_fp8.cu": {"expert_round_x_kernel", "expert_round_act_kernel", "expert_gate_up_fp8_kernel",
                                "expert_down_fp8_kernel"},
    "csrc/cuda/expert_gemm.cu": {"expert_pack_x_kernel", "expert_pack_act_kernel", "expert_gate_up_gemm_kernel",
                                 "expert_down_gemm_kernel", "expert_combine_kernel"},
    "csrc/cuda/expert_mlp.cu": {"expert_gate_up_kernel", "expert_down_kernel"},
    "csrc/cuda/expert_mxfp8.cu": {"expert_round_x_mxfp8_kernel", "expert_round_act_mxfp8_kernel",
                                  "expert_swiglu_kernel", "expert_combine_mxfp8_kernel"},
    "csrc/cuda/persistent.cu": {"persistent_kernel"},
    "csrc/cuda/projection.cu": {"projection_fp8_kernel", "projection_fp8_normed_kernel",
                                "projection_bf16_kernel", "projection_bf16_normed_kernel",
                                "rms_norm_kernel"},
    "csrc/cuda/router.cu": {"router_logits_f32_kernel", "router_logits_bf16_kernel",
                            "select_experts_kernel"},
    "csrc/cuda/sampling.cu": {"sample_best_kernel", "sample_weigh_kernel", "sample_draw_kernel",
                              "sample_rows_kernel", "accept_kernel"},
}

# What ptxas says, as "info", of wgmma that it serialises and of register counts that it does not set.
PERFORMANCE_LOSS = re.compile(r"\(C75|setmaxnreg'? ignored|Performance Loss")

needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")


def over_limits(resources: Resources) -> Resources:
    """Kernels with a stack frame, with spills or with more registers than a block may use."""
    return {name: found for name, found in resources.items()
            if found["stack"] or found["spill_stores"] or found["spill_loads"]
            or found["registers"] > MAX_REGISTERS}


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", KERNELS)
def test_kernels_keep_everything_in_registers(source, architecture, tmp_path, capsys):
    report = built_report(source)
    if report is None:  # no CUDA build, or an old one
        report = compile_with_nvcc(ROOT / source, architecture, tmp_path)
    assert "warning" not in report
    assert not PERFORMANCE_LOSS.search(report)
    resources = parse_resources(report, architecture)
    with capsys.disabled():
        for name, found in resources.items():
            print(f"\n  sm_{architecture} {name}: {found}", end="")
    listed = {name for name in KERNELS[source] if any(name in mangled for mangled in resources)}
    assert listed == KERNELS[source] and len(resources) == len(listed)
    assert not over_limits(resources)
    for name, registers in LAUNCH_REGISTERS.items():
        assert all(found["registers"] == registers for mangled, found in resources.items() if name in mangled)


def shared_structs() -> dict[str, str]:
    """What lies in shared memory, in whole or as a part of another: its name and its header."""
    found = {}
    for path in sorted((ROOT / "csrc" / "cuda" / "device").rglob("*.cuh")):
        names = re.findall(r"^(?:struct|union) (\w+Shared) \{", path.read_text(), re.MULTILINE)
        found |= dict.fromkeys(names, str(path.relative_to(ROOT / "csrc")))
    return found


def sizes_of(structs: dict[str, str], architecture: str, out: pathlib.Path) -> dict[str, int]:
    """Bytes of structs of namespace mimo_rt::cuda, as the device's compiler lays them out."""
    source = out / "shared.cu"
    source.write_text("".join(f'#include "{header}"\n' for header in dict.fromkeys(structs.values())) +
                      "".join(f"__device__ char bytes_of_{name}[sizeof(mimo_rt::cuda::{name})];\n" for name in structs))
    subprocess.run(["nvcc", "-std=c++20", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'include'}", "-I", str(out),
                    f"-arch=compute_{architecture}", "-ptx", "-o", str(out / "shared.ptx"), str(source)], check=True)
    found = re.findall(r"\bbytes_of_(\w+)\[(\d+)\]", (out / "shared.ptx").read_text())
    return {name: int(size) for name, size in found}


@needs_nvcc
def test_shared_memory_fits_a_block(tmp_path, capsys):
    architecture = ARCHITECTURES[0]  # half a minute each; structs are the same for all
    (tmp_path / "large.cuh").write_text("namespace mimo_rt::cuda { struct LargeShared { char bytes[300 << 10]; }; }\n")
    structs = shared_structs()
    sizes = sizes_of({**structs, "LargeShared": "large.cuh"}, architecture, tmp_path)
    assert sizes.pop("LargeShared") == 300 * 1024 > MAX_SHARED_BYTES
    with capsys.disabled():
        for name, num_bytes in sizes.items():
            print(f"\n  sm_{architecture} {name}: {num_bytes} bytes of dynamic shared memory", end="")
    assert sizes.keys() == structs.keys() and 0 < min(sizes.values()) and max(sizes.values()) <= MAX_SHARED_BYTES


def test_every_struct_in_shared_memory_is_listed():
    launched = set()
    for path in (ROOT / "csrc" / "cuda").glob("*.cu"):
        launched |= set(re.findall(r"sizeof\((\w+)\),\s+options\.stream", path.read_text()))
        launched |= set(re.findall(r"dynamicSmemBytes = sizeof\((\w+)\)", path.read_text()))
    assert {"PersistentShared", "SelectShared", "NormShared"} <= launched <= shared_structs().keys()


def fused_float64(source: pathlib.Path, out: pathlib.Path) -> int:
    """How many multiply-adds in float64 the compiler makes of `source`."""
    subprocess.run(["nvcc", "-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'include'}", "-arch=compute_90a",
                    "-ptx", "-o", str(out / "kernel.ptx"), str(source)], check=True)
    return (out / "kernel.ptx").read_text().count("fma.rn.f64")


@needs_nvcc
def test_sampling_fuses_no_float64_operations(tmp_path):
    assert fused_float64(ROOT / "csrc" / "cuda" / "sampling.cu", tmp_path) == 0
    control = tmp_path / "control.cu"
    control.write_text("__global__ void fuse(double* p) { p[0] = p[1] * p[2] + p[3]; }\n")
    assert fused_float64(control, tmp_path) == 1


@needs_nvcc
def test_the_report_sees_a_stack_frame(tmp_path):
    source = tmp_path / "stack.cu"
    source.write_text("__global__ void keep(int* p) { int a[512]; for (int j = 0; j < 512; ++j)"
                      " a[p[j] & 511] = j; p[0] = a[p[1] & 511]; }\n")
    resources = compile_kernels(source, "90a", tmp_path)
    assert len(over_limits(resources)) == 1


FAKE_NVCC = """
for argument; do out=$in; in=$argument; done
echo "ptxas info    : Used 16 registers, used 0 barriers" >&2
echo "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized" >&2
sleep 0.05
case $(cat $in) in
  fail) exit 1;;
  edit) echo edited >$in;;
esac
cp $in $out
"""


@pytest.fixture
def build(tmp_path):
    """Runs ninja on x.o, made of `source` with keep-report.sh, and returns what it prints."""
    (tmp_path / "nvcc.sh").write_text(FAKE_NVCC)
    launcher = ROOT / "third_party" / "cmake" / "keep-report.sh"
    (tmp_path / "build.ninja").write_text(
        f"rule make\n  command = sh '{launcher}' sh nvcc.sh -o $out $in && echo '$out: $in header' > $out.d\n"
        "  depfile = $out.d\n  deps = gcc\nbuild x.o: make source\n")

    def run(source: str) -> str:
        (tmp_path / "source").write_text(source)
        (tmp_path / "header").touch()
        long_ago = time.time_ns() - 10**9
        for name in ("source", "header"):
            os.utime(tmp_path / name, ns=(long_ago, long_ago))
        (tmp_path / "x.o").unlink(missing_ok=True)
        return subprocess.run(["ninja", "-C", str(tmp_path)], check=False, capture_output=True, text=True).stdout

    return run


def test_a_report_is_believed_while_it_is_current(tmp_path, build):
    for name, difference in (("header", 1), ("x.o", -1)):  # a newer header, an object older than its report
        assert not is_current(tmp_path, "x.o")
        output = build("kernel")
        assert is_current(tmp_path, "x.o")
        assert "(C7510)" in output and "Used 16" not in output  # of the report only the resources are not shown
        changed = (tmp_path / "x.o.ptxas").stat().st_mtime_ns + difference
        os.utime(tmp_path / name, ns=(changed, changed))
    assert not is_current(tmp_path, "x.o")


def test_no_report_is_believed_of_a_failed_compile(tmp_path, build):
    build("kernel")
    assert is_current(tmp_path, "x.o")
    kept = (tmp_path / "x.o").read_bytes()
    assert "FAILED" in build("fail")
    assert not list(tmp_path.glob("*.ptxas*"))
    (tmp_path / "x.o").write_bytes(kept)  # a compiler may leave an object
    assert not is_current(tmp_path, "x.o")


def test_no_report_is_believed_of_a_source_edited_during_the_compile(tmp_path, build):
    build("edit")
    assert (tmp_path / "source").stat().st_mtime_ns <= (tmp_path / "x.o").stat().st_mtime_ns
    assert (tmp_path / "x.o.ptxas").is_file() and not is_current(tmp_path, "x.o")


def test_only_a_report_of_all_architectures_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(ptxas_report, "ROOT", tmp_path)
    monkeypatch.setattr(ptxas_report, "is_current", lambda build, target: True)
    for build, architectures in (("tests-release", ARCHITECTURES[:1]), ("wheel", ARCHITECTURES)):
        assert built_report("x.cu") is None
        report = tmp_path / "build" / build / "CMakeFiles" / "mimo_rt_cuda.dir" / "x.cu.o.ptxas"
        report.parent.mkdir(parents=True)
        report.write_text("".join(f"Compiling entry function 'k' for 'sm_{name}'\n" for name in architectures))
    assert built_report("x.cu") == report.read_text()


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_wrapper_is_assembled(architecture, tmp_path):
    source = ROOT / "tests" / "emulation" / "every_wrapper.cu"
    assert len(compile_kernels(source, architecture, tmp_path)) == 1
    unused = {name for name in wrapper_names() if not re.search(rf"::{name}\b", source.read_text())}
    assert not unused


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_edge_is_compiled(architecture, tmp_path):
    resources = compile_kernels(ROOT / "tests" / "emulation" / "every_edge.cu", architecture, tmp_path)
    assert len(resources) == 1 and not over_limits(resources)


def wrapper_names() -> set[str]:
    """Functions of csrc/cuda/device/ptx that kernels may call."""
    names = set()
    for path in (ROOT / "csrc" / "cuda" / "device" / "ptx").glob("*.cuh"):
        names |= set(re.findall(r"__forceinline__ [\w*]+ (\w+)\(", path.read_text()))
    return names - {"shared_address"}


def test_kernels_call_every_wrapper():
    device = ROOT / "csrc" / "cuda" / "device"
    text = "".join(path.read_text() for path in device.rglob("*.cuh") if path.parent.name != "ptx")
    assert {name for name in wrapper_names() if not re.search(rf"\bptx::{name}\b", text)} == set()


def test_the_emulation_has_every_wrapper():
    names = wrapper_names()
    emulated = (ROOT / "tests" / "emulation" / "ptx.h").read_text()
    assert len(names) > 20 and "mma_m16n8k16" in names
    assert not {name for name in names if not re.search(rf"[\w*] {name}\(", emulated)}


def test_every_kernel_source_is_listed():
    with_kernels = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / "cuda").rglob("*.cu")
                    if re.search(r"launch_(cooperative_)?kernel\(|<<<", path.read_text())}
    assert with_kernels == set(KERNELS) | {"csrc/cuda/gemm/block_scaled_sm100.cu"}  # test_cutlass.py has it
