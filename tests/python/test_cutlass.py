"""The kernel for tcgen05 without a device: compiled, looked at, and its layouts compared with CuTe's on the host.

The headers come as a build with MIMO_RT_CUTLASS=ON gets them, through third_party/cmake/Cutlass.cmake.
"""

import json
import os
import pathlib
import re
import shlex
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
    """The directory of the headers. Without a network the tests that need them are skipped; in CI they fail."""
    directory = root / "build" / "cutlass"  # kept between runs
    directory.mkdir(parents=True, exist_ok=True)
    done = run_cmake(root, directory, ["mimo_find_cutlass(include)", 'message(STATUS "in ${include}")'])
    said = " ".join(done.stderr.split())
    if "pip cannot fetch" in said and "DO NOT MATCH THE HASHES" not in said and not os.environ.get("CI"):
        pytest.skip(f"no CUTLASS: {said}")
    assert done.returncode == 0, done.stderr
    return pathlib.Path(re.search(r"^-- in (.*)$", done.stdout, re.MULTILINE)[1])


def write_headers(include, version):
    (include / "cutlass").mkdir(parents=True)
    parts = zip(("MAJOR", "MINOR", "PATCH"), version.split("."), strict=True)
    (include / "cutlass" / "version.h").write_text("".join(f"#define CUTLASS_{name} {part} \n" for name, part in parts))


def find(root, directory, *lines, **environment):
    """Looks for the headers where nothing can be fetched; the exit code and what was said, in one line."""
    done = run_cmake(root, directory, [*lines, "mimo_find_cutlass(include)", 'message(STATUS "in ${include}")'],
                     PIP_NO_INDEX="1", PIP_FIND_LINKS=str(directory), PIP_EXTRA_INDEX_URL="", **environment)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_headers_of_another_version_are_refused_wherever_they_lie(root, tmp_path):
    for version in ("4.2.1", "4.1.0", "3.2.0", "4.2.0"):
        given = tmp_path / version
        write_headers(given, version)
        code, said = find(root, tmp_path, f'set(MIMO_RT_CUTLASS_INCLUDE "{given}")')
        if version == "4.2.0":
            assert code == 0 and said == f"-- in {given}"
        else:
            assert code and f"expected version 4.2.0 in {given}/cutlass/version.h, got '{version}'" in said
    code, said = find(root, tmp_path, f'set(MIMO_RT_CUTLASS_INCLUDE "{tmp_path}/none")')
    assert code and "got '' (empty: there is no such file)" in said

    package = tmp_path / "site" / "cutlass_library"
    for version in (None, "4.3.0", "4.2.0"):  # installed: another one is fetched instead
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        if version:
            write_headers(package / "source" / "include", version)
        code, said = find(root, tmp_path, PYTHONPATH=str(tmp_path / "site"))
        if version == "4.2.0":
            assert code == 0 and said == f"-- in {package}/source/include"
        else:
            assert code and "is not taken: expected version 4.2.0, got" in said and "pip cannot fetch" in said
        shutil.rmtree(tmp_path / "site")

    kept = tmp_path / "cutlass-4.2.0.0" / "cutlass_library" / "source" / "include"
    none = tmp_path / "without"  # hides a package that is installed
    write_headers(none / "cutlass_library" / "source" / "include", "0.0.0")
    (none / "cutlass_library" / "__init__.py").write_text("")
    write_headers(kept, "4.1.0")
    code, said = find(root, tmp_path, PYTHONPATH=str(none))
    assert code and f"in {kept}/cutlass/version.h, got '4.1.0'" in said


def test_without_its_licence_there_is_no_library(root, tmp_path):
    include = tmp_path / "cutlass_library" / "source" / "include"
    include.mkdir(parents=True)
    for licence in (None, tmp_path / "nvidia_cutlass-4.2.0.0.dist-info" / "licenses" / "LICENSE.txt",
                    include.parent / "LICENSE.txt"):
        if licence:
            licence.parent.mkdir(parents=True, exist_ok=True)
            licence.write_text("")
        done = run_cmake(root, tmp_path, [f'mimo_find_cutlass_licence("{include}" licence)',
                                          'file(REAL_PATH "${licence}" licence)', 'message(STATUS "${licence}")'])
        if licence:
            assert done.returncode == 0 and done.stdout == f"-- {licence}\n"
            licence.unlink()
        else:
            assert done.returncode and "expected its licence" in " ".join(done.stderr.split())


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
    assert not (tmp_path / "got" / name).exists()  # the next try fetches it again
    (wheels / name).unlink()
    done = run_cmake(root, tmp_path, ["mimo_fetch_cutlass(${CMAKE_BINARY_DIR}/none)"], **offline)
    assert done.returncode != 0 and "pip cannot fetch nvidia-cutlass==4.2.0.0" in done.stderr


@needs_nvcc
@pytest.mark.parametrize(("name", "num_cases"), [("cute_layouts", 3), ("list_groups", 2)])
def test_operands_are_what_cutlass_reads(root, cutlass, cpp_builder, tmp_path, name, num_cases):
    library = cpp_builder(["mimo_rt_testable"]) / "libmimo_rt_testable.a"
    toolkit = re.search(r"^#\$ TOP=(.*)$", subprocess.run(["nvcc", "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull],
                                                         capture_output=True, text=True, check=True).stderr, re.MULTILINE)[1]
    own = [f"-I{root / folder}" for folder in ("csrc", "include", "tests/cpp")]
    others = [f"-isystem{folder}" for folder in (cutlass, f"{toolkit}/include", f"{toolkit}/include/cccl")]
    program = tmp_path / name
    subprocess.run(["g++", "-std=c++20", "-O1", "-w", *own, *others, "-o", str(program),
                    str(root / "tests" / "cutlass" / f"{name}.cpp"), str(library), "-lpthread"], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{num_cases} cases" in done.stdout


@pytest.fixture
def scratch(tmp_path):
    """A folder that is deleted: the compiler's intermediate files are large."""
    (tmp_path / "scratch").mkdir()
    yield tmp_path / "scratch"
    shutil.rmtree(tmp_path / "scratch")


@needs_nvcc
def test_the_kernel_multiplies_with_block_scales_and_spills_nothing(root, cutlass, scratch, capsys):
    build = scratch / "build"
    configure = ["cmake", "-S", str(root), "-B", str(build), "-G", "Ninja", "-DMIMO_RT_CUDA=ON", "-DMIMO_RT_CUTLASS=ON",
                 f"-DMIMO_RT_CUTLASS_INCLUDE={cutlass}", f"-DPython_EXECUTABLE={sys.executable}",
                 f"-DCMAKE_CUDA_FLAGS=--resource-usage -Werror all-warnings --keep --keep-dir {scratch}"]
    subprocess.run(configure, check=True, capture_output=True)
    (entry,) = [entry for entry in json.loads((build / "compile_commands.json").read_text())
                if entry["file"].endswith("/block_scaled_sm100.cu")]
    # Without the host's half, which the compiler of the device's checks as well: half of the time.
    command = ["-cubin" if part == "-c" else part for part in shlex.split(entry["command"])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=entry["directory"])
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    assert "sm_100a" in report and "sm_90a" not in report and "sm_90a" not in entry["command"]
    (ptx,) = scratch.glob("block_scaled_sm100*.ptx")
    assert re.search(r"tcgen05\.mma\.cta_group::1\.kind::mxf8f6f4\.block_scale", ptx.read_text())
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", report)]
    with capsys.disabled():
        print(f"\n  sm_100a block_scaled: {max(registers)} registers", end="")
    assert len(registers) == 2  # CUTLASS's kernel and list_groups_kernel
    for what in ("stack frame", "spill stores", "spill loads"):
        assert set(re.findall(rf"(\d+) bytes {what}", report)) == {"0"}
