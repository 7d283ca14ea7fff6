"""Builds the C++ test programs and lists each of their TEST_CASEs as a pytest test.

The build directory is kept between runs (build/tests-<sanitizers>), so only changed files are compiled again.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


def build_cpp(targets: list[str], *, sanitize: str = "", build_type: str = "Release") -> pathlib.Path:
    """Configures and builds C++ targets; returns the directory that holds the programs."""
    build = ROOT / "build" / f"tests-{(sanitize or build_type).replace(',', '-').lower()}"
    for tool in ("cmake", "ninja"):
        if not shutil.which(tool):
            pytest.fail(f"{tool} not found: pip install '.[test]'")
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DCMAKE_BUILD_TYPE={build_type}",
        "-DMIMO_RT_BUILD_TESTS=ON", "-DMIMO_RT_CUDA=OFF",
        f"-DMIMO_RT_REQUIRE_SIMDE={'ON' if os.environ.get('CI') else 'OFF'}",
        f"-DMIMO_RT_WERROR={'ON' if os.environ.get('CI') else 'OFF'}",
        f"-DMIMO_RT_SANITIZE={sanitize}", f"-DPython_EXECUTABLE={sys.executable}",
    ]
    for command in (configure, ["cmake", "--build", str(build), "--target", *targets]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"{' '.join(command)}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}", pytrace=False)
    return build / "tests" / "cpp"


class CppFile(pytest.File):
    """tests/cpp/test_x.cpp: one item per TEST_CASE."""

    def collect(self):
        for name in test_case_names(self.path.read_text()):
            yield CppItem.from_parent(self, name=name)


def test_case_names(source: str) -> list[str]:
    """Names of the TEST_CASEs of a C++ file; a name may be split into several literals."""
    cases = re.findall(r'^TEST_CASE\(\s*((?:"[^"]*"\s*)+)\)', source, re.MULTILINE)
    return ["".join(re.findall(r'"([^"]*)"', literals)) for literals in cases]


test_case_names.__test__ = False


class CppItem(pytest.Item):
    """One TEST_CASE of a C++ test program."""

    def runtest(self):
        programs = _cpp_programs()
        done = subprocess.run([programs / self.path.stem, self.name], capture_output=True, text=True,
                              check=False, timeout=600)
        if done.returncode:
            raise CppFailure(done.stdout + done.stderr)

    def repr_failure(self, excinfo):
        if isinstance(excinfo.value, CppFailure):
            return f"{excinfo.value}\nrepeat: build/tests-release/tests/cpp/{self.path.stem} '{self.name}'"
        return super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, 0, f"{self.path.stem}: {self.name}"


class CppFailure(Exception):
    """Output of a failed C++ test."""


_programs: list[pathlib.Path] = []


def _cpp_programs() -> pathlib.Path:
    if not _programs:
        sources = sorted((ROOT / "tests" / "cpp").glob("test_*.cpp"))
        programs = build_cpp([path.stem for path in sources])
        for path in sources:  # no TEST_CASE may escape the collection
            listed = subprocess.run([programs / path.stem, "--list"], capture_output=True, text=True, check=True)
            assert listed.stdout.splitlines() == test_case_names(path.read_text()), path
        _programs.append(programs)
    return _programs[0]


def pytest_collect_file(parent, file_path):
    """pytest's hook: C++ test files are collected too."""
    if file_path.suffix == ".cpp" and file_path.name.startswith("test_"):
        return CppFile.from_parent(parent, path=file_path)
    return None


@pytest.fixture(scope="session")
def cpp_builder():
    """`build_cpp` for tests that need special builds (sanitizers)."""
    return build_cpp


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """The repository."""
    return ROOT


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith("MIMO_RT_") and name != "MIMO_RT_CACHE":
            monkeypatch.delenv(name)
