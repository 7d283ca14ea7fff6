"""For the account of what limits each kernel: what the compiler gave it, and what Nsight Compute counts in a call."""

from __future__ import annotations

import csv
import os
import pathlib
import re
import time

from gate_needs import find_tool
from gate_steps import NOT_RUN, PASSED, Log, Stage, run_command

# What kbench calls it -> the kernel's function and the tokens of the call.
CASES = {"expert_gate_up": ("expert_gate_up_kernel", 8), "expert_down": ("expert_down_kernel", 8),
         "qkv": ("projection_fp8", 1), "o_proj": ("projection_bf16", 1), "attention_window": ("attention_kernel", 8),
         "router": ("router_logits", 1), "select_experts": ("select_experts_kernel", 1),
         "sample_best": ("sample_best_kernel", 1)}
SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "ComputeWorkloadAnalysis", "LaunchStats", "Occupancy",
            "SchedulerStats", "WarpStateStats")
SHAPE = "pro-r8"
CASE_S = 20  # one that hangs leaves the others their time


def parse_resources(text: str) -> list[dict[str, int | str]]:
    """Registers and bytes of memory of each kernel, from what `cuobjdump --dump-resource-usage` says."""
    found = []
    architecture = ""
    for line in text.splitlines():
        if match := re.search(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif numbers := dict(re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", line)):
            keys = {"registers": "REG", "stack_bytes": "STACK", "shared_bytes": "SHARED", "local_bytes": "LOCAL"}
            found.append({"function": name, "architecture": architecture,
                          **{key: int(numbers.get(said, 0)) for key, said in keys.items()}})
    return found


def parse_counters(text: str) -> dict[str, float | str]:
    """Metrics of the one kernel in what `ncu --csv --page details` says, by name and unit."""
    rows = [line for line in text.splitlines() if line.startswith('"')]
    counters: dict[str, float | str] = {}
    for row in csv.DictReader(rows):
        if not row.get("Metric Name"):  # advice
            continue
        unit = f" [{row['Metric Unit']}]" if row.get("Metric Unit") else ""
        value = row["Metric Value"].replace(",", "")
        counters[row["Metric Name"] + unit] = float(value) if re.fullmatch(r"-?[\d.]+", value) else value
    return counters


def run_resources(log: Log, python: str) -> None:
    """Registers and memory of every kernel of the library that the environment of `python` has."""
    tool = find_tool("cuobjdump")
    if not tool:
        log.add("counters", "cuobjdump", NOT_RUN, 0.0, reason="not on this machine")
        return
    libraries = pathlib.Path(python).parents[1].glob("lib/python3*/site-packages/mimo_rt/lib/libmimo_rt.so")
    lines: list[str] = []
    command = [tool, "--dump-resource-usage", str(next(libraries, "libmimo_rt.so"))]
    if Stage("counters", log, limit_s=10).run("cuobjdump", command, on_line=lines.append):
        for resources in parse_resources("".join(lines)):
            log.write({"stage": "counters", "resources": resources})


def run_counters(log: Log, python: str) -> None:
    """One call of some kernels under Nsight Compute: the third, with empty caches as in kbench, at the usual clocks."""
    tool = find_tool("ncu")
    if not tool:
        log.add("counters", "ncu", NOT_RUN, 0.0, reason="not on this machine")
        return
    stage = Stage("counters", log)
    for kernel, (function, tokens) in CASES.items():
        left = stage.until - time.monotonic()
        if left < 1:
            log.add(stage.name, f"ncu: {kernel}", NOT_RUN, 0.0, reason="no time left")
            continue
        sections = [part for section in SECTIONS for part in ("--section", section)]
        command = [tool, "--csv", "--page", "details", *sections, "--clock-control", "none", "--kernel-name",
                   f"regex:{function}", "--launch-skip", "2", "--launch-count", "1", "--kill", "yes", python, "-m",
                   "mimo_rt", "kbench", kernel, "--shape", SHAPE, "--tokens", str(tokens), "--device", "cuda",
                   "--no-baseline", "--seconds", "0.01", "--json"]
        begin = time.monotonic()
        code, output, _ = run_command(command, min(left, CASE_S), dict(os.environ), None)
        counters = parse_counters(output)
        if counters:  # ncu ends the program, which may count as a failure of it
            log.write({"stage": "counters", "op": kernel, "shape": SHAPE, "tokens": tokens, "counters": counters})
        more = {} if counters else {"output": output[-4000:], "exit_code": code}
        log.add(stage.name, f"ncu: {kernel}", PASSED if counters else NOT_RUN, time.monotonic() - begin, **more)
        if "ERR_NVGPUCTRPERM" in output:
            return  # whoever runs this may not count
