"""Builds, tests and measures the CUDA kernels on a machine with a GPU, within nine minutes, without a network.

    python bench/gpu_gate.py --collect wheels [--small]    where there is a network: what a bare machine needs, or
                                                           (40 MB) one with a CUDA toolkit and PyTorch
    python bench/gpu_gate.py [--wheels wheels]             on the GPU machine
    python bench/gpu_gate.py --model-pieces DIR            with the demo model, as gpu_train.py --collect DIR cuts it:
                                                           where little travels at once, bring DIR/part-1, part-2, …
                                                           one by one before; the same pieces serve gpu_train.py
                                                           --pieces DIR
    python bench/gpu_gate.py --soak-seconds 600            with ten minutes of soak, which come on top

Stages: `build` (package and tests), `tests` (tests/cpp/native_cuda_*.cpp on the device), `costs` (mimo-rt kbench
edges and bench costs: the table by which engines plan then), `engine` (mimo-rt doctor and bench/gpu_engine.py:
sessions against the CPU engine's, then sessions that share steps), `python` (the tests of sessions in Python, with
the GPU for the CPU), `bits` (bench/gpu_bits.py: 100 runs of any steps and launches, quiet and with delays planted into
the kernel, give the same bits; runs that there was no time for are a step that was not run), `kill` (bench/gpu_kill.py: a process that is killed
leaves a usable GPU), `soak` (half a minute of bench/soak.py, or --soak-seconds, half of it with two sessions), `slice`
(bench/gpu_slice.py: rounds of the rank slice of MiMo-V2.5-Pro-FP4, where 84 GB are free; the gate fails without a
round), `kbench` (mimo-rt kbench, cold caches, results checked), `sanitizer` (compute-sanitizer memcheck and racecheck,
test by test, as far as its time goes), `counters` (cuobjdump's registers of every kernel, Nsight Compute's counters of
some, where these tools are) and, on B200 and with CUTLASS, `cutlass`: a second build with its kernels, tested and
measured, which takes nothing from the rest when it fails. A test, an edge or a kernel that hangs is cut off after
seconds, and the others have their turn. Every step is one JSON line in bench/results/<date>-gpu-<device>.jsonl (of a
second run <date>-gpu-<device>-2.jsonl), written when it ends, so whatever stops the script leaves what was done. The
environment variable MIMO_RT_COMMIT names the commit of the sources, for those without a .git; it wins over one. Exit
codes: 0 all passed, 1 something failed, 2 wrong usage or the machine lacks something, 3 no GPU.

Of the emulated tests, tests/cpp/test_cuda_*.cpp, those of parts of the persistent kernel (edges, accept, attend_rows,
embed, lookup, task_slots) have no program for a GPU. There native_cuda_persistent, _step, _rounds, _draft_rounds, _exact
and _lookup_session run these parts, and compare with the bits of single kernels, with the exact model and with the CPU's
tokens (_exact: its bits).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import itertools
import os
import pathlib
import re
import signal
import sys
import time

import pieces
from gate_counters import run_counters, run_resources
from gate_kbench import measure, run_kbench
from gate_needs import (CUTLASS, collect, device_facts, find_baselines, find_commit, find_gpu, has_nvcc,
                        make_environment, missing, model_environment)
from gate_sanitizer import find_sanitizer, run_sanitizer
from gate_sessions import run_session_tests
from gate_slice import run_slice
from gate_steps import FAILED, LIMITS_S, NOT_RUN, Log, Stage
from gate_summary import print_summary

ROOT = pathlib.Path(__file__).resolve().parents[1]
LACKING, NO_GPU = 2, 3
SECONDS, SOAK_S = 540, 30
NATIVE_TESTS = tuple(sorted(p.stem for p in (ROOT / "tests" / "cpp").glob("native_cuda_*.cpp")))
TEST_SILENCE_S, EDGE_SILENCE_S, DOCTOR_S = 15, 15, 20  # with CUDA's start, which takes seconds
ARCHITECTURES = {"9.0": "90a-real", "10.0": "100a-real"}  # of the device alone: half the time to compile
CUTLASS_DEVICE = "10.0"
CUTLASS_TEST = "native_cuda_expert_mxfp8"
CUTLASS_KBENCH = ("expert_gate_up_mxfp8", "expert_down_mxfp8")


def build(log: Log, args: argparse.Namespace) -> dict[str, str] | None:
    """The package and the native tests; where they lie, or None."""
    stage = Stage("build", log)
    python = make_environment(stage, args.build / "venv", args.wheels)
    if not python:
        return None
    baselines = find_baselines(python)
    log.write({"stage": "baselines", **baselines})
    print("baselines:", ", ".join(f"{name} {version or 'is not there'}" for name, version in baselines.items()))
    programs = make_programs(stage, args, python, NATIVE_TESTS)
    own = "import mimo_rt as m, sys; sys.exit(None if m.__file__.startswith(sys.prefix) else m.__file__ + ' comes first')"
    if not programs or not stage.run("import", [python, "-c", own]):  # an editable install of the machine's Python would
        return None
    return {"tests": str(programs), "python": python}


def make_programs(stage: Stage, args: argparse.Namespace, python: str, targets: tuple[str, ...],
                  cutlass: str = "OFF") -> pathlib.Path | None:
    """Installs the package and builds native tests of its objects; the folder of the tests, or None."""
    folders = (pathlib.Path(python).parent, pathlib.Path(sys.executable).parent, os.environ.get("PATH", ""))
    environment = {"PATH": ":".join(map(str, folders)), "MIMO_RT_CUDA": "ON", "MIMO_RT_CUTLASS": cutlass}
    if not has_nvcc():  # or an old one
        environment["MIMO_RT_CUDA_FROM_PIP"] = "1"
    if args.architecture:
        environment["SKBUILD_CMAKE_DEFINE"] = f"MIMO_RT_CUDA_ARCHITECTURES={args.architecture}"
    if args.wheels:  # where CMake finds CUTLASS
        environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(args.wheels.resolve())}
    built, tests = args.build / "package", args.build / "tests"
    package = [python, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index",
               f"--config-settings=build-dir={built}", "."]
    configure = ["cmake", "-S", str(ROOT), "-B", str(tests), "-G", "Ninja", "-DMIMO_RT_BUILD_TESTS=ON",
                 "-DMIMO_RT_CUDA=ON", f"-DMIMO_RT_CUTLASS={cutlass}", f"-DPython_EXECUTABLE={python}",
                 f"-DMIMO_RT_BUILT_OBJECTS={built / 'CMakeFiles'}",
                 f"-DMIMO_RT_CUDA_OBJECTS={built / 'CMakeFiles' / 'mimo_rt_cuda.dir'}"]
    if args.architecture:
        configure.append(f"-DMIMO_RT_CUDA_ARCHITECTURES={args.architecture}")
    compile_tests = ["cmake", "--build", str(tests), "--target", *targets]
    steps = (("package", package), ("configure tests", configure), ("tests", compile_tests))
    if not all([stage.run(step, command, environment, may_be_cut=cutlass == "ON") for step, command in steps]):
        return None
    return tests / "tests" / "cpp"


def has_cutlass(log: Log, args: argparse.Namespace, facts: dict[str, str]) -> bool:
    """Whether CUTLASS's kernels are built: the device runs them and their headers are there."""
    if facts.get("compute_cap") != CUTLASS_DEVICE:
        return False
    name, version = CUTLASS.split("==")
    if args.wheels and (args.wheels / f"{name.replace('-', '_')}-{version}-py3-none-any.whl").is_file():
        return True
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        if importlib.metadata.version(name) == version:
            return True
    log.add("cutlass", "headers", NOT_RUN, 0.0, reason=f"no wheel of {CUTLASS}: see --collect and --wheels")
    return False


def run_cutlass(log: Log, args: argparse.Namespace, python: str) -> None:
    """Last: its build replaces the one before."""
    stage = Stage("cutlass", log)
    if programs := make_programs(stage, args, python, (CUTLASS_TEST,), "ON"):
        stage.run(CUTLASS_TEST, [str(programs / CUTLASS_TEST)], silence_s=TEST_SILENCE_S)
        measure(stage, python, "kbench", *CUTLASS_KBENCH, may_be_cut=True)


def run_tests(log: Log, programs: pathlib.Path) -> None:
    stage = Stage("tests", log)
    for name in NATIVE_TESTS:
        stage.run(name, [str(programs / name)], silence_s=TEST_SILENCE_S)


def run_costs(log: Log, python: str) -> None:
    """Edges, then the cost table of this GPU, by which the engines of the stages that follow plan."""
    stage = Stage("costs", log)
    measure(stage, python, "edges", "edges", silence_s=EDGE_SILENCE_S)
    stage.run("costs", [python, "-m", "mimo_rt", "bench", "costs", "--device", "cuda", "--json"],
              on_line=log.keep_record)


def run_engine(log: Log, python: str, demo: pathlib.Path | None) -> None:
    """Whole sessions: what `doctor` checks, then tokens and logits beside the CPU engine's."""
    stage = Stage("engine", log)
    stage.run("doctor", [python, "-m", "mimo_rt", "doctor", "--device", "cuda"], step_s=DOCTOR_S)
    command = [python, str(ROOT / "bench" / "gpu_engine.py"), *(("--demo", str(demo)) if demo else ())]
    stage.run("sessions", command, on_line=log.keep_record)
    if demo:
        stage.run("shared steps", [python, "-m", "mimo_rt", "bench", "sessions", "--device", "cuda", "--model", str(demo),
                                   "--seconds", "1", "--json"], on_line=log.keep_record)
    for record in log.records:
        if reason := record.get("not_run"):
            log.add(stage.name, f"sessions of {record['model']}", NOT_RUN, 0.0, reason=reason)


def run_bits(log: Log, python: str) -> None:
    """The same bits for all launches and delays; ends in time by itself."""
    command = [python, str(ROOT / "bench" / "gpu_bits.py"), "--seconds", str(LIMITS_S["bits"] - 10)]
    if not Stage("bits", log).run("sessions", command, on_line=log.keep_record):
        return
    for record in log.records:
        if (num_left := record.get("num_left", 0)) > 0:
            log.add("bits", "the other runs", NOT_RUN, 0.0, reason=f"{num_left} of {sum(record['num_runs']) + num_left}")


def run_kill(log: Log, python: str) -> None:
    Stage("kill", log).run("processes", [python, str(ROOT / "bench" / "gpu_kill.py"), "--times", "2"],
                           on_line=log.keep_record)


def run_soak(log: Log, python: str, seconds: float) -> None:
    """The same tokens and bits again and again, while requests are cancelled: half the time by two sessions at once."""
    stage = Stage("soak", log, limit_s=LIMITS_S["soak"] + seconds - SOAK_S)
    for num_sessions in (1, 2):
        command = [python, str(ROOT / "bench" / "soak.py"), "--device", "cuda", "--seconds", f"{seconds / 2:g}",
                   "--sessions", str(num_sessions)]
        stage.run(f"sessions: {num_sessions}", command, on_line=log.keep_record)


def result_path(directory: pathlib.Path, device: str) -> pathlib.Path:
    name = re.sub(r"[^a-z0-9]+", "-", device.lower().removeprefix("nvidia ")).strip("-") or "unknown"
    stem = f"{datetime.date.today().isoformat()}-gpu-{name}"
    suffixes = itertools.chain(("",), (f"-{number}" for number in itertools.count(2)))
    return next(path for path in (directory / f"{stem}{suffix}.jsonl" for suffix in suffixes) if not path.exists())


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=pathlib.Path, help="folder of wheels, for what this machine lacks")
    parser.add_argument("--model-pieces", type=pathlib.Path, metavar="DIR", help="of the demo model, see above")
    parser.add_argument("--collect", type=pathlib.Path, metavar="DIR", help="download wheels and demo model and stop")
    parser.add_argument("--small", action="store_true", help="only those that a machine with nvcc and PyTorch lacks")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "gpu-gate", help="build folder")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "bench" / "results", help="folder of the result")
    parser.add_argument("--soak-seconds", type=float, default=SOAK_S, metavar="S", help=f"of soak (default {SOAK_S})")
    parser.add_argument("--seconds", type=float, help=f"for everything (default {SECONDS}, and a longer soak)")
    parser.set_defaults(architecture="")  # of the device, once it is known
    args = parser.parse_args(argv)
    for name in ("wheels", "model_pieces", "collect", "build", "results"):  # steps run elsewhere
        if path := getattr(args, name):
            setattr(args, name, path.resolve())
    if args.seconds is None:
        args.seconds = SECONDS + max(0, args.soak_seconds - SOAK_S)
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.collect:
        return collect(args.collect, args.small)
    if reason := find_gpu():
        print(f"gpu_gate: nothing was built or run: {reason}.", file=sys.stderr)
        return NO_GPU
    if lacking := missing(args.wheels):
        print(f"gpu_gate: nothing was built or run: this machine lacks {', '.join(lacking)}. Where there is a network, "
              "`python bench/gpu_gate.py --collect DIR [--small]` downloads packages; bring DIR along as --wheels DIR.",
              file=sys.stderr)
        return LACKING
    demo = args.model_pieces and args.build / "demo"
    try:
        if demo:
            pieces.join(args.model_pieces, demo)
    except pieces.PiecesError as error:
        print(f"gpu_gate: nothing was built or run: {error}", file=sys.stderr)
        return LACKING
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whatever it was at ends with it, and is told
    facts = device_facts()
    os.environ |= model_environment(args.wheels)  # the cache of all stages: cost tables must be found, too
    args.architecture = ARCHITECTURES.get(facts.get("compute_cap", ""), "")
    args.results.mkdir(parents=True, exist_ok=True)
    log = Log(result_path(args.results, facts["name"]), time.monotonic() + args.seconds)
    log.write({"stage": "device", **facts, "commit": find_commit(),
               "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")})
    try:
        if built := build(log, args):
            programs = pathlib.Path(built["tests"])
            run_tests(log, programs)
            run_costs(log, built["python"])
            run_engine(log, built["python"], demo)
            run_session_tests(log, built["python"])
            run_bits(log, built["python"])
            run_kill(log, built["python"])
            run_soak(log, built["python"], args.soak_seconds)
            run_slice(log, built["python"])
            run_kbench(log, built["python"])
            run_sanitizer(log, [programs / name for name in NATIVE_TESTS], find_sanitizer(built["python"]))
            run_resources(log, built["python"])
            run_counters(log, built["python"])
            if has_cutlass(log, args, facts):
                run_cutlass(log, args, built["python"])
    finally:
        print_summary(log)
    has_kernels = any("kernel_name" in record and "ns_per_hop" not in record for record in log.records)
    return int(any(step["status"] == FAILED for step in log.steps) or not has_kernels)


if __name__ == "__main__":
    sys.exit(main())
