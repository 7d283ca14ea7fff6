"""The CUDA part with the compiler of the pip package: found, made complete, and used.

The package is played by the machine's own toolkit, laid out as the package lays it out: `lib`
instead of `lib64`, no `libcudart.so`.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")


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


def configure(root, build, site):
    environment = {**os.environ, "PYTHONPATH": str(site), "MIMO_RT_CUDA_FROM_PIP": "1"}
    environment.pop("CUDACXX", None)
    command = ["cmake", "-S", str(root), "-B", str(build), "-G", "Ninja", "-DMIMO_RT_CUDA=ON",
               f"-DPython_EXECUTABLE={sys.executable}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_compiler_of_the_package_is_used(root, tmp_path):
    play_package(tmp_path / "site", toolkit_root(tmp_path))
    done = configure(root, tmp_path / "build", tmp_path / "site")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"nvcc of the pip package in {tmp_path / 'site'}" in done.stdout
    assert "CUDA ON" in done.stdout
    cache = (tmp_path / "build" / "CMakeCache.txt").read_text()
    compiler = re.search(r"^CMAKE_CUDA_COMPILER:\w+=(.*)$", cache, re.MULTILINE)[1]
    assert compiler == str(tmp_path / "build" / "cuda-toolkit" / "bin" / "nvcc")


def test_a_package_without_its_runtime_is_told(root, tmp_path):
    play_package(tmp_path / "site", toolkit_root(tmp_path), with_runtime=False)
    done = configure(root, tmp_path / "build", tmp_path / "site")
    assert done.returncode != 0 and "no lib/libcudart.so" in done.stderr
