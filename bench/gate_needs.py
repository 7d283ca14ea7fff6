"""What bench/gpu_gate.py needs of a machine: found there, or brought along as wheels."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import shutil
import site
import subprocess
import sys
import sysconfig

from gate_steps import ROOT, Stage

# With all that they need here: they are installed without their other dependencies.
SMALL = ("scikit-build-core>=0.11", "packaging", "pathspec", "pybind11>=2.13", "nlohmann-json==3.12.0", "cmake>=3.25",
         "ninja", "tokenizers>=0.21", *(("tomli", "exceptiongroup") if sys.version_info < (3, 11) else ()))
TESTING = ("pytest>=8", "iniconfig", "pluggy", "pygments")  # the gate does without: a stage is not run then
WITH_TORCH = ("numpy", "jinja2", "markupsafe")  # what a machine with PyTorch has
TOOLKIT = "cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]==13.0.2"
SANITIZER = "nvidia-cuda-sanitizer-api==13.0.85"
CUTLASS = "nvidia-cutlass==4.2.0.0"  # headers alone, for the kernels of one architecture
MIN_NVCC = (12, 8)
MODELS = "models"  # beside the wheels: a cache as `mimo-rt demo` has it


def find_gpu() -> str:
    """Why there is no GPU; empty when there is one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "the driver library libcuda.so.1 is not on this machine"
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the driver finds no device"
    return ""


def device_facts() -> dict[str, str]:
    """What nvidia-smi says about the first device."""
    names = ("name", "driver_version", "memory.total", "clocks.max.sm", "clocks.max.memory", "ecc.mode.current",
             "power.limit", "mig.mode.current", "compute_cap")
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"],
                              capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {"name": "unknown"}
    values = done.stdout.splitlines()[0].split(", ")
    return dict(zip(names, values, strict=False))


def find_commit() -> str | None:
    """Of these sources: MIMO_RT_COMMIT, as for the build, or git's."""
    if (commit := os.environ.get("MIMO_RT_COMMIT")) or not (ROOT / ".git").exists():
        return commit or None
    try:
        done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True,
                              check=False)
    except OSError:  # without git
        return None
    return done.stdout.strip() or None


def collect(directory: pathlib.Path, is_small: bool) -> int:
    """Downloads wheels: all, with the demo model, or only what a machine with a CUDA toolkit and PyTorch lacks (40 MB).

    Returns:
        An exit code.
    """
    downloads = [("--no-deps", *SMALL, *TESTING)]
    if not is_small:
        downloads = [("--no-deps", *SMALL, *TESTING, *WITH_TORCH, CUTLASS), (TOOLKIT, SANITIZER)]
    codes = [subprocess.run([sys.executable, "-m", "pip", "download", "-d", str(directory), *download],
                            check=False).returncode for download in downloads]
    return max(codes) if is_small else max(*codes, collect_demo_model(directory / MODELS))


def model_environment(wheels: pathlib.Path | None) -> dict[str, str]:
    """Where the package finds the demo model that was collected with the wheels."""
    models = wheels and (wheels / MODELS).resolve()
    return {"MIMO_RT_CACHE": str(models)} if models and models.is_dir() else {}


def collect_demo_model(directory: pathlib.Path) -> int:
    """Copies the demo model, converted first if need be, for bench/gpu_engine.py. An exit code."""
    code = ("import pathlib, shutil, sys\nfrom mimo_rt.checkpoints import ensure_demo_model\n"
            "model = ensure_demo_model()\n"
            "shutil.copytree(model, pathlib.Path(sys.argv[1]) / model.name, dirs_exist_ok=True)")
    done = subprocess.run([sys.executable, "-c", code, str(directory)], check=False)
    if done.returncode:
        print("gpu_gate: the demo model was not collected. It needs this package here: pip install '.[demo]'.",
              file=sys.stderr)
    return done.returncode


def is_installed(requirement: str) -> bool:
    """Whether this Python has a package, of a version that will do."""
    name, operator, wanted = re.fullmatch(r"([\w-]+)(?:\[.*\])?(?:(==|>=)(.*))?", requirement).groups()
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name in ("cmake", "ninja") and _runs(name, wanted)
    return {None: True, "==": found == wanted, ">=": _numbers(found) >= _numbers(wanted)}[operator]


def _numbers(version: str | None) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version or "")[:3]]


def _runs(program: str, wanted: str | None) -> bool:
    """Whether the machine has a program, of a version that will do."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return done.returncode == 0 and _numbers(done.stdout) >= _numbers(wanted)


def has_wheel(requirement: str, wheels: pathlib.Path | None) -> bool:
    name = re.match(r"[\w-]+", requirement)[0].replace("-", "[-_.]")
    names = [path.name for path in wheels.glob("*.whl")] if wheels else []
    return any(re.match(f"{name}-\\d", found, re.IGNORECASE) for found in names)


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit: on the path, or where third_party/cmake/CudaToolchain.cmake looks for nvcc."""
    homes = [os.environ.get(variable) for variable in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    places = [str(pathlib.Path(home) / "bin") for home in homes if home]
    if nvcc := os.environ.get("CUDACXX") or shutil.which("nvcc"):
        places.append(str(pathlib.Path(nvcc).resolve().parent))
    for folder in (*site.getsitepackages(), site.getusersitepackages()):
        places += map(str, pathlib.Path(folder).glob("nvidia/*/bin"))
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))


def has_nvcc() -> bool:
    """Whether this machine has a compiler that knows the architectures."""
    if not (nvcc := find_tool("nvcc")):
        return False
    done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"release (\d+)\.(\d+)", done.stdout)
    return found is not None and tuple(map(int, found.groups())) >= MIN_NVCC


def wanted_wheels(wheels: pathlib.Path | None) -> list[str]:
    """What this Python lacks: requirements."""
    wanted = [requirement for requirement in (*SMALL, *WITH_TORCH) if not is_installed(requirement)]
    wanted += [requirement for requirement in TESTING if not is_installed(requirement) and has_wheel(requirement, wheels)]
    if not has_nvcc():
        wanted.append(TOOLKIT)
    if not find_tool("compute-sanitizer") and has_wheel(SANITIZER, wheels):  # the gate does without, too
        wanted.append(SANITIZER)
    return wanted


def missing(wheels: pathlib.Path | None) -> list[str]:
    """What is neither on this machine nor among the wheels: nothing can be built."""
    lacking = [f"the package {wanted}" for wanted in wanted_wheels(wheels) if not has_wheel(wanted, wheels)]
    lacking = [f"nvcc >= {'.'.join(map(str, MIN_NVCC))} (or {what})" if TOOLKIT in what else what for what in lacking]
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "c++"))):
        lacking.append("a C++ compiler")
    if not (pathlib.Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        lacking.append(f"Python.h of {sys.executable}")
    if not any(map(importlib.util.find_spec, ("pip", "ensurepip"))):
        lacking.append(f"pip of {sys.executable}")
    return lacking


def make_environment(stage: Stage, directory: pathlib.Path, wheels: pathlib.Path | None) -> str | None:
    """A virtual environment that has all that this Python has, PyTorch too, and the wheels that it lacks.

    `--system-site-packages` would not do: where this Python is one of a virtual environment, it means another one's.

    Returns:
        Its Python, or None.
    """
    make = [sys.executable, "-m", "venv", "--clear", str(directory)]
    if not stage.run("venv", make + (["--without-pip"] if importlib.util.find_spec("pip") else [])):
        return None
    own = next(directory.glob("lib/python3*/site-packages"))
    folders = site.getsitepackages() + ([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])
    (own / "of_the_machine.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in folders))
    python = str(directory / "bin" / "python")
    wanted = wanted_wheels(wheels)
    toolkit = [requirement for requirement in wanted if requirement in (TOOLKIT, SANITIZER)]
    install = [python, "-m", "pip", "install", "-q", "--no-index", "--find-links", str(wheels)]
    for options, some in ((["--no-deps"], [name for name in wanted if name not in toolkit]), ([], toolkit)):
        if some and not stage.run("wheels", [*install, *options, *some]):
            return None
    return python


def find_baselines(python: str) -> dict[str, str | None]:
    """Versions of what kbench can compare with, as the environment's Python sees them."""
    code = ("import importlib.metadata as m\nfor name in ('torch', 'triton'):\n"
            "    try: print(name, m.version(name))\n    except m.PackageNotFoundError: pass")
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    found = dict(line.split() for line in done.stdout.splitlines())
    return {name: found.get(name) for name in ("torch", "triton")}
