"""What ptxas reports of the kernels: read from the build that has just compiled them, or asked for.

A CUDA build keeps the report of x.cu beside its object (third_party/cmake/keep-report.sh).
"""

import pathlib
import re
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]

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
    """Whether everything that a ninja build made `target` of is older than it."""
    done = subprocess.run(["ninja", "-C", str(build), "-t", "deps", target], capture_output=True, text=True,
                          check=False)
    if done.returncode or "(VALID)" not in done.stdout or not (build / target).is_file():
        return False
    made = (build / target).stat().st_mtime_ns
    sources = [build / line.strip() for line in done.stdout.splitlines() if line.startswith("    ")]
    return all(path.is_file() and path.stat().st_mtime_ns <= made for path in sources)


def built_report(source: str) -> str | None:
    """The report of a source of this tree from a CUDA build of it that is up to date, if there is one."""
    target = f"CMakeFiles/mimo_rt_cuda.dir/{source}.o"
    for report in sorted((ROOT / "build").glob(f"*/{target}.ptxas")):
        build = report.parents[len(pathlib.Path(target).parents) - 1]
        if shutil.which("ninja") and is_current(build, target):
            return report.read_text()
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
