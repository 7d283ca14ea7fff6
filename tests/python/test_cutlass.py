"""The kernel for tcgen05 without a device: compiled, looked at, and its layouts compared with CuTe's on the host.

The headers come as a build with MIMO_RT_CUTLASS=ON gets them, through third_party/cmake/Cutlass.cmake.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

SOURCE = "csrc/cuda/gemm/block_scaled_sm100.cu"
needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")


def run_cmake(root, directory, lines, **environment):
    """What a script says that includes Cutlass.cmake."""
    script = directory / "script.cmake"
    script.write_text("\n".join([f'set(Python_EXECUTABLE "{sys.executable}")', f'set(CMAKE_BINARY_DIR "{directory}")',
                                 f'include("{root}/third_party/cmake/Cutlass.cmake")', *lines, ""]))
    return subprocess.run(["cmake", "-P", str(script)], capture_output=True, text=True, check=False, cwd=directory,
                          env=os.environ | environment)


@pytest.fixture(scope="module")
def cutlass(root):
    """The directory of the headers."""
    directory = root / "build" / "cutlass"  # kept between runs
    directory.mkdir(parents=True, exist_ok=True)
    done = run_cmake(root, directory, ["mimo_find_cutlass(include)", 'message(STATUS "in ${include}")'])
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"no CUTLASS: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return pathlib.Path(re.search(r"^-- in (.*)$", done.stdout, re.MULTILINE)[1])


def test_without_cuda_there_is_no_cutlass(root, tmp_path):
    done = subprocess.run(["cmake", "-S", str(root), "-B", str(tmp_path), "-G", "Ninja", "-DMIMO_RT_CUDA=OFF",
                           "-DMIMO_RT_CUTLASS=ON", f"-DPython_EXECUTABLE={sys.executable}"],
                          capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "MIMO_RT_CUTLASS=ON: expected a build with CUDA" in done.stderr


def test_a_wheel_that_is_not_the_pinned_one_is_refused(root, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    name = "nvidia_cutlass-4.2.0.0-py3-none-any.whl"
    metadata = "nvidia_cutlass-4.2.0.0.dist-info"
    with zipfile.ZipFile(wheels / name, "w") as archive:
        archive.writestr(f"{metadata}/METADATA", "Metadata-Version: 2.1\nName: nvidia-cutlass\nVersion: 4.2.0.0\n")
        archive.writestr(f"{metadata}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{metadata}/RECORD", "")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_EXTRA_INDEX_URL": ""}
    done = run_cmake(root, tmp_path, ["mimo_fetch_cutlass(${CMAKE_BINARY_DIR}/got)"], **offline)
    assert done.returncode != 0 and f"{name}: expected SHA-256 f9599ada" in done.stderr.replace("\n  ", " ")
    (wheels / name).unlink()
    done = run_cmake(root, tmp_path, ["mimo_fetch_cutlass(${CMAKE_BINARY_DIR}/none)"], **offline)
    assert done.returncode != 0 and "pip cannot fetch nvidia-cutlass==4.2.0.0" in done.stderr


@needs_nvcc
def test_the_layouts_are_those_of_cute(root, cutlass, cpp_builder, tmp_path):
    library = cpp_builder(["mimo_rt_testable"]) / "libmimo_rt_testable.a"
    toolkit = re.search(r"^#\$ TOP=(.*)$", subprocess.run(["nvcc", "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull],
                                                         capture_output=True, text=True, check=True).stderr, re.MULTILINE)[1]
    own = [f"-I{root / folder}" for folder in ("csrc", "include", "tests/cpp")]
    others = [f"-isystem{folder}" for folder in (cutlass, f"{toolkit}/include", f"{toolkit}/include/cccl")]
    program = tmp_path / "cute_layouts"
    subprocess.run(["g++", "-std=c++20", "-O1", "-w", *own, *others, "-o", str(program),
                    str(root / "tests" / "cutlass" / "cute_layouts.cpp"), str(library), "-lpthread"], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 cases" in done.stdout


@needs_nvcc
def test_the_kernel_multiplies_with_block_scales_and_spills_nothing(root, cutlass, tmp_path, capsys):
    build = tmp_path / "build"
    configure = ["cmake", "-S", str(root), "-B", str(build), "-G", "Ninja", "-DMIMO_RT_CUDA=ON", "-DMIMO_RT_CUTLASS=ON",
                 f"-DMIMO_RT_CUTLASS_INCLUDE={cutlass}", f"-DPython_EXECUTABLE={sys.executable}",
                 f"-DCMAKE_CUDA_FLAGS=--resource-usage -Werror all-warnings --keep --keep-dir {tmp_path}"]
    report = ""
    for command in (configure, ["cmake", "--build", str(build), "--target", "mimo_rt_cutlass", "--verbose"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        report = done.stdout + done.stderr
    assert "sm_100a" in report and "sm_90a" not in report
    (ptx,) = tmp_path.glob("block_scaled_sm100*.ptx")
    assert re.search(r"tcgen05\.mma\.cta_group::1\.kind::mxf8f6f4\.block_scale", ptx.read_text())
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", report)]
    with capsys.disabled():
        print(f"\n  sm_100a block_scaled: {max(registers)} registers", end="")
    assert len(registers) == 2  # CUTLASS's kernel and list_groups_kernel
    for what in ("stack frame", "spill stores", "spill loads"):
        assert set(re.findall(rf"(\d+) bytes {what}", report)) == {"0"}
