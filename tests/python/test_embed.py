"""A C++ program builds against the installed package with find_package(mimo_rt) and decodes the same tokens."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import pytest

import mimo_rt
from mimo_rt import _C
from mimo_rt.checkpoints.tiny import write_tiny_checkpoint

SOURCE = pathlib.Path(__file__).resolve().parents[1] / "cpp" / "embed"


def test_embed_example(tmp_path):
    model = tmp_path / "model"
    write_tiny_checkpoint(model, seed=3)
    build = tmp_path / "build"
    subprocess.run(["cmake", "-S", SOURCE, "-B", build, f"-Dmimo_rt_DIR={mimo_rt.get_cmake_dir()}",
                    f"-DPython_EXECUTABLE={sys.executable}"], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
    done = subprocess.run([build / "embed", model, "5", "6", "7"], check=True, capture_output=True, text=True)
    tokens = [int(t) for t in done.stdout.splitlines()[0].split()]
    with mimo_rt.Session(model) as session:
        expected = session.generate([5, 6, 7], temperature=0.0, max_tokens=16).token_ids
    assert tokens == expected and tokens
    failed = subprocess.run([build / "embed", tmp_path / "absent"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and "absent" in failed.stderr


def test_licences_of_what_is_compiled_in_are_installed(root, tmp_path):
    """By the project's own lines on them; a package that is not there is told."""
    lines = [line for line in (root / "CMakeLists.txt").read_text().splitlines() if "mimo_install_licence(" in line]
    (tmp_path / "CMakeLists.txt").write_text("\n".join([
        "cmake_minimum_required(VERSION 3.25)", "project(licences LANGUAGES NONE)",
        f'include("{root}/third_party/cmake/Licences.cmake")', *lines, "mimo_install_licence(no-such-package)"]))
    done = subprocess.run(["cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DPython_EXECUTABLE={sys.executable}"],
                          check=True, capture_output=True, text=True)
    assert "No licence of no-such-package" in done.stderr
    install = ["cmake", "--install", tmp_path / "build", "--prefix", tmp_path / "at"]
    subprocess.run(install, check=True, capture_output=True)
    installed = {path.parent.name: path.read_text() for path in (tmp_path / "at").glob("share/licenses/*/LICENSE*")}
    own = {"nlohmann-json"} | ({"pybind11"} if importlib.util.find_spec("pybind11") else set())  # needed to build alone
    assert len(lines) == 2 and installed.keys() == own
    assert all("granted, free of charge" in text or "Redistribution and use" in text for text in installed.values())


@pytest.mark.parametrize("flags", ["", "-O1 -g"])
def test_the_library_built_by_itself(root, tmp_path, flags):
    """A packager's flags of Release count; the library's name changes where its interface may; licences go along."""
    options = [f"-DCMAKE_CXX_FLAGS_RELEASE={flags}"] if flags else []
    subprocess.run(["cmake", "-S", root, "-B", tmp_path, "-G", "Ninja", "-DMIMO_RT_CUDA=OFF",
                    f"-DPython_EXECUTABLE={sys.executable}", *options], check=True, capture_output=True)
    (command,) = [entry["command"] for entry in json.loads((tmp_path / "compile_commands.json").read_text())
                  if entry["file"].endswith("/core/error.cpp")]
    assert re.findall(r" (-O\d|-g|-DNDEBUG)(?= )", command) == (flags.split() or ["-O2", "-DNDEBUG"])
    assert f"SONAME = libmimo_rt.so.{mimo_rt.__version__.rpartition('.')[0]}\n" in (tmp_path / "build.ninja").read_text()
    assert "share/licenses/nlohmann-json" in (tmp_path / "cmake_install.cmake").read_text()


def test_no_assert_of_others_and_no_path_of_the_build_is_left():
    package = pathlib.Path(mimo_rt.__file__).parent
    for library in (pathlib.Path(_C.__file__), package / "lib" / "libmimo_rt.so"):
        content = library.read_bytes()
        assert b"__assert_fail" not in content, library
        assert not re.findall(rb"\0(/[\w./-]+\.(?:h|hpp|cpp))\0", content), library


def test_notices_lie_beside_data_of_others(root):
    assets = pathlib.Path(mimo_rt.__file__).parent / "assets"
    folders = [path for path in assets.iterdir() if path.is_dir()]
    assert folders and all("Apache License" in (path / "NOTICE").read_text() for path in folders)
    assert "Copyright (c) OpenAI" in (root / "bench" / "prompts" / "NOTICE").read_text()
