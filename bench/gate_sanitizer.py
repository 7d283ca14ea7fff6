"""compute-sanitizer over the native tests of bench/gpu_gate.py, a little of everything first."""

from __future__ import annotations

import itertools
import pathlib
import subprocess
from collections.abc import Iterable, Iterator

from gate_needs import find_tool
from gate_steps import NOT_RUN, Log, Stage

TOOLS = ("memcheck", "racecheck")
CASE_S = 20  # with CUDA's start, which takes seconds


def find_sanitizer(python: str) -> str | None:
    """compute-sanitizer of the machine or of the wheel."""
    of_wheel = pathlib.Path(python).parents[1].glob("lib/python3*/site-packages/nvidia/*/bin/compute-sanitizer")
    return find_tool("compute-sanitizer") or next(map(str, of_wheel), None)


def run_sanitizer(log: Log, programs: Iterable[pathlib.Path], sanitizer: str | None) -> None:
    """Test by test, so that what there is time for covers a little of everything."""
    stage = Stage("sanitizer", log)
    if not sanitizer:
        log.add(stage.name, "compute-sanitizer", NOT_RUN, 0.0, reason="not on this machine")
        return
    for program, case, tool in sanitizer_runs(programs):
        stage.run(f"{tool}: {program.name}: {case}",
                  [sanitizer, "--tool", tool, "--error-exitcode", "9", str(program), case],
                  may_be_cut=True, step_s=CASE_S)


def sanitizer_runs(programs: Iterable[pathlib.Path]) -> Iterator[tuple[pathlib.Path, str, str]]:
    """Program, case and tool: programs take turns, each tool has one with a case. Every other program begins with the
    second tool: the time may be over before the first turn is."""
    queues = [[(program, case, tool) for case in _cases(program) for tool in (TOOLS, TOOLS[::-1])[place % 2]]
              for place, program in enumerate(programs)]
    for turn in itertools.zip_longest(*queues):
        yield from filter(None, turn)


def _cases(program: pathlib.Path) -> list[str]:
    return subprocess.run([str(program), "--list"], capture_output=True, text=True, check=False).stdout.splitlines()
