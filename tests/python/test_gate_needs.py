"""What the GPU gate needs of a machine: what is missing is told before anything is built, what is there is seen."""

import importlib
import json
import subprocess
import sys
import time
import zipfile

import pytest


@pytest.fixture
def needs(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "bench"))
    return importlib.import_module("gate_needs")


@pytest.fixture
def stage(needs, tmp_path):
    steps = importlib.import_module("gate_steps")
    return steps.Stage("build", steps.Log(tmp_path / "result.jsonl", time.monotonic() + 300))


def make_wheel(folder, name, version):
    """A package with one module, in the folder."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        info = f"{name}-{version}.dist-info"
        archive.writestr(f"{name}.py", f"VERSION = '{version}'\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
                                             "Requires-Dist: not-to-be-had\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def run_python(python, code):
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_versions_are_compared(needs, monkeypatch):
    monkeypatch.setattr(needs.importlib.metadata, "version", lambda name: "3.12.0")
    assert needs.is_installed("x") and needs.is_installed("x>=3.9") and needs.is_installed("x[part,other]==3.12.0")
    assert not needs.is_installed("x>=3.13") and not needs.is_installed("x==3.12") and not needs.is_installed("x>=4")
    monkeypatch.undo()
    assert needs.is_installed("pytest>=8") and not needs.is_installed("no-such-package")


def test_programs_of_the_machine_count_as_packages(needs, monkeypatch, tmp_path):
    def no_package(name):
        raise needs.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(needs.importlib.metadata, "version", no_package)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not needs.is_installed("cmake>=3.25")
    (tmp_path / "cmake").write_text("#!/bin/sh\necho cmake version 3.25.1\n")
    (tmp_path / "cmake").chmod(0o755)
    assert needs.is_installed("cmake>=3.25") and not needs.is_installed("cmake>=3.26")
    assert not needs.is_installed("numpy")


def test_a_tool_is_found_beside_nvcc_or_in_its_package(needs, monkeypatch, tmp_path):
    for folder in ("path", "toolkit/bin", "site/nvidia/cu13/bin"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.delenv("CUDACXX", raising=False)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(needs.site, "getsitepackages", lambda: [str(tmp_path / "site")])
    assert needs.find_tool("gate_tool") is None
    for folder in ("site/nvidia/cu13/bin", "toolkit/bin", "path"):  # the later ones come first
        tool = tmp_path / folder / "gate_tool"
        tool.write_text("#!/bin/sh\n")
        tool.chmod(0o755)
        (tmp_path / folder / "nvcc").symlink_to(tool)
        if folder == "toolkit/bin":
            (tmp_path / "path" / "nvcc").symlink_to(tmp_path / folder / "nvcc")
        assert needs.find_tool("gate_tool") == str(tool)
        if folder == "toolkit/bin":
            (tmp_path / "path" / "nvcc").unlink()


@pytest.mark.parametrize(("said", "is_enough"), [("release 13.0, V13.0.88", True), ("release 12.8, V12.8.9", True),
                                                 ("release 12.4, V12.4.1", False), ("no version", False)])
def test_an_old_compiler_is_none(needs, monkeypatch, tmp_path, said, is_enough):
    (tmp_path / "nvcc").write_text(f"#!/bin/sh\necho Cuda compilation tools, {said}\n")
    (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setattr(needs, "find_tool", lambda name: str(tmp_path / name))
    assert needs.has_nvcc() is is_enough
    assert (needs.TOOLKIT in needs.wanted_wheels(None)) is not is_enough


def test_everything_missing_is_told_at_once(needs, monkeypatch, tmp_path):
    monkeypatch.setattr(needs, "is_installed", lambda requirement: False)
    monkeypatch.setattr(needs, "find_tool", lambda name: None)
    monkeypatch.setattr(needs.shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(needs.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    told = ", ".join(needs.missing(None))
    for what in ("nlohmann-json==3.12.0", "scikit-build-core>=0.11", "numpy", "nvcc >= 12.8", "C++ comp", "Python.h"):
        assert what in told
    make_wheel(tmp_path, "nlohmann_json", "3.12.0")
    make_wheel(tmp_path, "Cuda_Toolkit", "13.0.2")
    told = ", ".join(needs.missing(tmp_path))
    assert "nlohmann" not in told and "nvcc" not in told and "numpy" in told


def test_the_small_collection_is_what_a_machine_with_torch_and_nvcc_lacks(needs, monkeypatch, tmp_path, root):
    commands = []
    monkeypatch.setattr(needs.subprocess, "run", lambda command, check: commands.append(command) or
                        subprocess.CompletedProcess(command, len(commands)))
    assert needs.collect(tmp_path, is_small=True) == 1
    (command,) = commands
    assert {"nlohmann-json==3.12.0", "--no-deps", *needs.TESTING} <= set(command)
    assert not {"numpy", needs.TOOLKIT, needs.CUTLASS, needs.SANITIZER} & set(command)
    assert needs.collect(tmp_path, is_small=False) == 4
    both, demo = commands[1] + commands[2], commands[3]
    assert demo[-1] == str(tmp_path / needs.MODELS)
    assert {"numpy", needs.TOOLKIT, needs.CUTLASS, needs.SANITIZER} <= set(both)
    project = (root / "pyproject.toml").read_text()
    assert needs.TOOLKIT in project and all(f'"{need}"' in project for need in ("nlohmann-json==3.12.0", "numpy"))


def test_pytest_is_installed_where_it_was_brought_along_and_otherwise_not_asked_for(needs, monkeypatch, tmp_path):
    monkeypatch.setattr(needs, "is_installed", lambda requirement: not requirement.startswith(("pytest", "pluggy")))
    assert not {"pytest>=8", "pluggy"} & set(needs.wanted_wheels(None)) and not needs.missing(None)
    make_wheel(tmp_path / "wheels", "pytest", "9.0.0")
    assert [name for name in needs.wanted_wheels(tmp_path / "wheels") if name != needs.TOOLKIT] == ["pytest>=8"]


def test_the_environment_has_what_this_python_has_and_the_wheels(needs, stage, monkeypatch, tmp_path):
    make_wheel(tmp_path / "wheels", "gate_example", "2.1")
    monkeypatch.setattr(needs, "SMALL", ("pytest", "gate-example>=2"))
    monkeypatch.setattr(needs, "WITH_TORCH", ())
    monkeypatch.setattr(needs, "has_nvcc", lambda: True)
    assert needs.missing(None) == ["the package gate-example>=2"] and not needs.missing(tmp_path / "wheels")
    python = needs.make_environment(stage, tmp_path / "venv", tmp_path / "wheels")
    assert run_python(python, "import gate_example as g; print(g.VERSION)") == "2.1"
    where = run_python(python, "import sys, pytest; print(sys.prefix, pytest.__file__)").split()
    assert where == [str(tmp_path / "venv"), pytest.__file__]  # of a virtual environment, too
    assert needs.make_environment(stage, tmp_path / "venv", None) is None  # made anew, and without the wheel
    steps = [json.loads(line) for line in stage.log.path.read_text().splitlines()]
    assert [(s["step"], s["status"]) for s in steps] == [("venv", "passed"), ("wheels", "passed"), ("venv", "passed"),
                                                         ("wheels", "failed")]


def test_baselines_are_those_that_the_environment_sees(needs, monkeypatch, tmp_path):
    for name, version in (("torch", "2.9.0"), ("triton", "3.5.0")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert needs.find_baselines(sys.executable) == {"torch": "2.9.0", "triton": "3.5.0"}
    (tmp_path / "python").write_text("#!/bin/sh\n")
    (tmp_path / "python").chmod(0o755)
    assert needs.find_baselines(str(tmp_path / "python")) == {"torch": None, "triton": None}


def test_the_commit_of_sources_without_git_is_that_of_the_environment(needs, root, monkeypatch, tmp_path):
    """For the gate and for the build, and neither takes that of a repository around the sources."""
    inner = tmp_path / "inner"
    inner.mkdir()
    git = ["git", "-c", "user.name=x", "-c", "user.email=x", "-C", str(tmp_path)]
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *arguments], check=True)
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True).stdout
    cmake = root / "third_party" / "cmake" / "Commit.cmake"

    def found(directory):
        monkeypatch.setattr(needs, "ROOT", directory)
        (tmp_path / "script.cmake").write_text(
            f'include("{cmake}")\nmimo_commit("{directory}" commit)\nfile(WRITE "{tmp_path}/said" "${{commit}}")\n')
        done = subprocess.run(["cmake", "-P", tmp_path / "script.cmake"], capture_output=True, text=True)
        return done.stderr or (tmp_path / "said").read_text(), needs.find_commit()

    assert found(tmp_path) == (commit.strip(), commit.strip()) and found(inner) == ("", None)
    monkeypatch.setenv("MIMO_RT_COMMIT", "0123456789ab+")
    assert found(tmp_path) == found(inner) == ("0123456789ab+", "0123456789ab+")
    monkeypatch.setenv("MIMO_RT_COMMIT", 'x"; int y')
    assert "MIMO_RT_COMMIT: expected a commit such as" in found(inner)[0]
