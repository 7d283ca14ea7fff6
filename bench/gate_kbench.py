"""`mimo-rt kbench` as bench/gpu_gate.py runs it: a kernel that fails or hangs takes no other one's time."""

from __future__ import annotations

import re

from gate_steps import Log, Stage

SHAPES = ("pro-r8", "pro", "gpt-oss-120b", "flash")
# Before all other kernels and tokens, for which there may be no time.
TARGETS = ("expert_gate_up", "expert_down", "qkv", "o_proj", "attention_window", "route")
TARGET_TOKENS = ("--tokens", "1,8")
EXPERTS_ONLY = "gpt-oss-120b"  # the shapes of that model
KBENCH = ("kbench", "--device", "cuda", "--seconds", "0.1", "--json")  # per kernel and tokens: hundreds of calls
SILENCE_S = 30  # of a case, the first one's compilations by Triton included
_PROGRESS = re.compile(r"(\d+) of (\d+): [^/]+/(\w+), \d+ tokens$")  # as kbench says it


def run_kbench(log: Log, python: str) -> None:
    stage = Stage("kbench", log)
    for shape in SHAPES:
        kernels = TARGETS[:2] if shape == EXPERTS_ONLY else TARGETS
        measure(stage, python, f"{shape}, targets", *kernels, "--shape", shape, *TARGET_TOKENS, may_be_cut=True)
    for shape in SHAPES:
        measure(stage, python, shape, "--shape", shape, may_be_cut=True)


def measure(stage: Stage, python: str, step: str, *arguments: str, may_be_cut: bool = False,
            silence_s: float = SILENCE_S) -> None:
    """One process for all kernels; where it ends before the last one, another for those behind the one it was at."""
    after = ""
    while True:
        progress: list[re.Match[str]] = []

        def keep(line: str, progress: list[re.Match[str]] = progress) -> None:
            stage.log.keep_record(line)
            if match := _PROGRESS.match(line.rstrip()):
                progress.append(match)

        command = [python, "-m", "mimo_rt", *KBENCH, *arguments, *(("--after", after) if after else ())]
        if stage.run(f"{step} after {after}" if after else step, command, on_line=keep, may_be_cut=may_be_cut,
                     silence_s=silence_s):
            return
        place, number, kernel = progress[-1].groups() if progress else ("1", "1", "")
        if place == number or kernel == after or stage.left_s() < 1:
            return
        after = kernel
