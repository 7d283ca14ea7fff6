"""The CUDA part as it is built: with the machine's compiler, with that of the pip package, and for tests on a GPU.

The package is played by the machine's own toolkit, laid out as the package lays it out: `lib`
instead of `lib64`, no `libcudart.so`.
"""

import ctypes
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import ptxas_report
import pytest
from conftest import test_case_names as case_names

import mimo_rt
from mimo_rt import _C

needs_nvcc = pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")


def toolkit_root(tmp_path):
    """Where nvcc says its parts are."""
    source = tmp_path / "x.cu"
    source.write_text("")
    done = subprocess.run(["nvcc", "--dryrun", "-c", str(source)], capture_output=True, text=True, check=True)
    return pathlib.Path(re.search(r"^#\$ TOP=(.*)$", done.stderr, re.MULTILINE)[1]).resolve()


def play_package(site, toolkit, *, with_runtime=True):
    """A folder for PYTHONPATH with the package `nvidia` in it."""
    root = site / "nvidia" / "cu13"
    (root / "lib").mkdir(parents=True)
    for name in ("bin", "include", "nvvm"):
        (root / name).symlink_to(toolkit / name)
    lib = next(path for path in (toolkit / "lib64", toolkit / "lib") if path.is_dir())
    for path in lib.iterdir():
        if path.name != "libcudart.so" and (with_runtime or not path.name.startswith("libcudart.so")):
            (root / "lib" / path.name).symlink_to(path)


def configure(root, build, site, *options, cuda="ON", **variables):
    environment = {**os.environ, "PYTHONPATH": str(site), **variables}
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        environment.pop(name, None)
    command = ["cmake", "-S", str(root), "-B", str(build), "-G", "Ninja", f"-DMIMO_RT_CUDA={cuda}",
               f"-DPython_EXECUTABLE={sys.executable}", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def commands_of(build):
    """Source -> the command that compiles it."""
    return {pathlib.Path(entry["file"]).name: entry["command"]
            for entry in json.loads((build / "compile_commands.json").read_text())}


@needs_nvcc
def test_the_compiler_of_the_package_is_used(root, tmp_path):
    play_package(tmp_path / "site", toolkit_root(tmp_path))
    done = configure(root, tmp_path / "build", tmp_path / "site", MIMO_RT_CUDA_FROM_PIP="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"nvcc of the pip package in {tmp_path / 'site'}" in done.stdout
    assert "CUDA ON" in done.stdout
    cache = (tmp_path / "build" / "CMakeCache.txt").read_text()
    compiler = re.search(r"^CMAKE_CUDA_COMPILER:\w+=(.*)$", cache, re.MULTILINE)[1]
    assert compiler == str(tmp_path / "build" / "cuda-toolkit" / "bin" / "nvcc")
    commands = commands_of(tmp_path / "build")
    kernels = commands["persistent.cu"]
    assert "arch=compute_90a,code=[sm_90a]" in kernels and "arch=compute_100a,code=[sm_100a]" in kernels
    assert capabilities_in(commands["cuda_devices.cu"]) == '"9.0 or 10.0"'


def capabilities_in(command):
    """What a device must have, as the compiler is told."""
    (definition,) = [word for word in shlex.split(command) if word.startswith("-DMIMO_RT_CUDA_CAPABILITIES=")]
    return definition.partition("=")[2]


@needs_nvcc
def test_kernels_for_one_architecture_ask_for_it(root, tmp_path):
    done = configure(root, tmp_path / "build", tmp_path, "-DMIMO_RT_CUDA_ARCHITECTURES=90a-real")
    assert done.returncode == 0, done.stdout + done.stderr
    assert capabilities_in(commands_of(tmp_path / "build")["cuda_devices.cu"]) == '"9.0"'
    done = configure(root, tmp_path / "build", tmp_path, "-DMIMO_RT_CUDA_ARCHITECTURES=native")
    assert done.returncode != 0 and "expected architectures as 90a-real, got 'native'" in " ".join(done.stderr.split())


@needs_nvcc
def test_a_package_without_its_runtime_is_told(root, tmp_path):
    play_package(tmp_path / "site", toolkit_root(tmp_path), with_runtime=False)
    done = configure(root, tmp_path / "build", tmp_path / "site", MIMO_RT_CUDA_FROM_PIP="1")
    assert done.returncode != 0 and "no lib/libcudart.so" in done.stderr


def configure_without_nvcc(root, tmp_path, cuda):
    """Where neither path, toolkit nor Python's packages have a compiler for CUDA."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("cmake", "ninja", "c++", "g++", "gcc", "cc", "ar", "ranlib", "ld", "as", "nm", "git", "sh", "uname"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    site = tmp_path / "site"
    (site / "nvidia").mkdir(parents=True)
    (site / "nvidia" / "__init__.py").write_text("")  # hides packages of that name
    no_others = ("-DCMAKE_IGNORE_PATH=/usr/local/cuda/bin", "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF")
    return configure(root, tmp_path / "build", site, *no_others, cuda=cuda, PATH=str(tools))


def test_without_a_compiler_auto_builds_for_the_cpu(root, tmp_path):
    done = configure_without_nvcc(root, tmp_path, "AUTO")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CUDA OFF" in done.stdout
    commands = commands_of(tmp_path / "build")
    assert "cuda_devices.cpp" in commands and "cuda_devices.cu" not in commands


def test_without_a_compiler_on_says_what_to_do(root, tmp_path):
    done = configure_without_nvcc(root, tmp_path, "ON")
    assert done.returncode != 0
    assert ("MIMO_RT_CUDA=ON, but no CUDA compiler was found. Install CUDA >= 12.8, set CUDACXX, or build with "
            "MIMO_RT_CUDA_FROM_PIP=1.") in " ".join(done.stderr.split())


@pytest.mark.parametrize(("switch", "said"), [("auto", "without CUDA: no CUDA compiler"), ("0", ""), ("False", ""),
                                             ("yes", "MIMO_RT_CUDA=ON, but"),
                                             ("of", "expected AUTO, ON or OFF, got 'of'"), ("", "OFF, got ''")])
def test_the_switch_is_spelled_as_cmake_spells_it(root, tmp_path, switch, said):
    done = configure_without_nvcc(root, tmp_path, switch)
    is_refused = switch not in ("auto", "0", "False")
    assert (done.returncode != 0) == is_refused, done.stdout + done.stderr
    output = done.stderr if is_refused else done.stdout
    assert said in output and ("without CUDA" in output) == (switch == "auto")


@needs_nvcc
def test_without_a_working_host_compiler_auto_builds_for_the_cpu(root, tmp_path):
    done = configure(root, tmp_path / "build", tmp_path, cuda="AUTO", CUDAHOSTCXX="/bin/false")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CUDA OFF" in done.stdout
    assert f"without CUDA: {shutil.which('nvcc')} makes no program (1)." in done.stdout
    again = configure(root, tmp_path / "build", tmp_path, cuda="AUTO")
    assert again.returncode == 0 and "CUDA ON" in again.stdout, again.stdout + again.stderr


def test_why_a_compiler_fails_is_told(root, tmp_path):
    tool = tmp_path / "nvcc"
    tool.write_text("#!/bin/sh\necho unsupported GNU version >&2\nexit 7\n")
    tool.chmod(0o755)
    done = configure(root, tmp_path / "build", tmp_path, f"-DCMAKE_CUDA_COMPILER={tool}", cuda="AUTO")
    assert done.returncode == 0 and "CUDA OFF" in done.stdout, done.stdout + done.stderr
    assert f"without CUDA: {tool} makes no program (7). unsupported GNU version" in done.stdout


def needed(library):
    """Libraries that a shared library or a program asks for."""
    done = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True)
    return re.findall(r"\(NEEDED\).*\[(.*)\]", done.stdout)


def sections(path):
    done = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True)
    return set(re.findall(r"^ *\[ *\d+\] (\S+)", done.stdout, re.MULTILINE))


@needs_nvcc
def test_the_installed_library_asks_for_no_driver_and_no_runtime():
    package = pathlib.Path(mimo_rt.__file__).parent
    for library in (_C.__file__, package / "lib" / "libmimo_rt.so"):
        names = needed(library)
        assert any(name.startswith("libc.so") for name in names)
        assert not [name for name in names if "cuda" in name or "nv" in name], library
    (cuda,) = [backend for backend in mimo_rt.list_backends() if backend.name == "cuda"]
    has_kernels = ".nv_fatbin" in sections(package / "lib" / "libmimo_rt.so")
    assert has_kernels == ("not built" not in cuda.reason)


@needs_nvcc
def test_no_device_code_is_left_to_link(root, native_tests, tmp_path):
    objects = list((ptxas_report.built_objects() or root / "build" / "tests-release" / ptxas_report.OBJECTS).rglob("*.cu.o"))
    assert len(objects) >= 12 and not [path for path in objects if "__nv_relfatbin" in sections(path)]
    source = tmp_path / "control.cu"
    source.write_text("__global__ void nothing() {}\n")
    subprocess.run(["nvcc", "-rdc=true", "-c", "-o", tmp_path / "control.o", source], check=True)
    assert "__nv_relfatbin" in sections(tmp_path / "control.o")


def has_driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def native_tests(root, cpp_builder):
    """Programs of bench/gpu_gate.py, built as it builds them; kernels are those of the wheel, if it has them."""
    names = sorted(path.stem for path in (root / "tests" / "cpp").glob("native_cuda_*.cpp"))
    programs = cpp_builder(names, options=(f"-DMIMO_RT_CUDA_OBJECTS={ptxas_report.built_objects() or ''}",))
    return [programs / name for name in names]


@needs_nvcc
def test_tests_for_a_gpu_are_built_and_start_without_a_driver(root, native_tests):
    assert len(native_tests) >= 16
    for program in native_tests:
        done = subprocess.run([program, "--list"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (program, done.stderr)
        emulated = root / "tests" / "cpp" / f"{program.name.replace('native_', 'test_')}.cpp"
        cases = done.stdout.splitlines()
        assert cases and set(cases) <= set(case_names(emulated.read_text())), program


@needs_nvcc
def test_tests_for_a_gpu_fail_without_one(native_tests):
    if has_driver():
        pytest.skip("there may be a GPU")
    for program in native_tests:
        done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 1 and "FAIL" in done.stdout, (program, done.stdout, done.stderr)
