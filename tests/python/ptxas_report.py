"""What ptxas reports of the kernels: read from the build that has just compiled them, or asked for.

A CUDA build keeps the report of x.cu beside its object, with the time at which the compiler began
(third_party/cmake/keep-report.sh).
"""

import pathlib
import re
import shutil
import subprocess
import sys

ARCHITECTURES = ("90a", "100a")
ROOT = pathlib.Path(__file__).resolve().parents[2]
WHEEL_TAG = f"cp{sys.version_info.major}{sys.version_info.minor}-"
OBJECTS = "CMakeFiles/mimo_rt_cuda.dir"

Resources = dict[str, dict[str, int]]  # mangled kernel name -> what ptxas reports


def parse_resources(text: str, architecture: str) -> Resources:
    """Mangled kernel name -> registers, stack and spill bytes, from what `nvcc -Xptxas=-v` says."""
    kernels = {}
    for part in text.split("Compiling entry function '")[1:]:
        name, target = re.match(r"(\w+)' for 'sm_(\w+)'", part).groups()
        if target != architecture:
            continue
        numbers = {
            "stack": r"(\d+) bytes stack frame",
            "spill_stores": r"(\d+) bytes spill stores",
            "spill_loads": r"(\d+) bytes spill loads",
            "registers": r"Used (\d+) registers",
        }
        kernels[name] = {key: int(re.search(pattern, part)[1]) for key, pattern in numbers.items()}
    return kernels


def is_current(build: pathlib.Path, target: str) -> bool:
    """Whether `target` of a ninja build has a report, and is made of files as they are."""
    done = subprocess.run(["ninja", "-C", str(build), "-t", "deps", target], capture_output=True, text=True,
                          check=False)
    report = build / f"{target}.ptxas"
    if done.returncode or "(VALID)" not in done.stdout or not (build / target).is_file() or not report.is_file():
        return False
    begun = report.stat().st_mtime_ns
    sources = [build / line.strip() for line in done.stdout.splitlines() if line.startswith("    ")]
    return begun <= (build / target).stat().st_mtime_ns and all(
        path.is_file() and path.stat().st_mtime_ns < begun for path in sources)


def built_objects() -> pathlib.Path | None:
    """Where the wheel's build, if it has CUDA and is up to date, keeps the objects of all kernels of this tree."""
    sources = [path.relative_to(ROOT) for path in sorted((ROOT / "csrc" / "cuda").glob("*.cu"))]
    for build in sorted((ROOT / "build").glob(f"{WHEEL_TAG}*")):
        if shutil.which("ninja") and all(is_current(build, f"{OBJECTS}/{source}.o") for source in sources):
            return build / OBJECTS
    return None


def built_report(source: str) -> str | None:
    """The report of a source of this tree from a CUDA build of it that is up to date, if there is one.

    That of the wheel comes first: pip builds in build/{wheel tag}.
    """
    target = f"{OBJECTS}/{source}.o"
    for build in sorted((ROOT / "build").glob("*"), key=lambda path: (not path.name.startswith(WHEEL_TAG), path)):
        if shutil.which("ninja") and is_current(build, target):
            report = (build / f"{target}.ptxas").read_text()
            if all(f"for 'sm_{architecture}'" in report for architecture in ARCHITECTURES):  # not that of the tests
                return report
    return None


def compile_with_nvcc(source: pathlib.Path, architecture: str, out: pathlib.Path) -> str:
    """Compiles `source`; returns what ptxas reports."""
    done = subprocess.run(
        ["nvcc", "-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'include'}", "-gencode",
         f"arch=compute_{architecture},code=sm_{architecture}", "-cubin", "-Xptxas=-v",
         "-Werror", "all-warnings", "-o", str(out / "kernel.cubin"), str(source)],
        capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def compile_kernels(source: pathlib.Path, architecture: str, out: pathlib.Path) -> Resources:
    """Compiles `source`; returns the resources of its kernels."""
    return parse_resources(compile_with_nvcc(source, architecture, out), architecture)
