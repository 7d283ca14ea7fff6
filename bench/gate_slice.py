"""The stage `slice` of bench/gpu_gate.py: rounds of the rank slice, where the GPU has room for it."""

from __future__ import annotations

import subprocess
from typing import Any

from gate_steps import FAILED, NOT_RUN, ROOT, Log, Stage

NEEDED_MIB = 80_000  # weights, keys and values, the torch round beside them


def run_slice(log: Log, python: str) -> None:
    if reason := lacks_room():
        log.add("slice", "rounds", NOT_RUN, 0.0, reason=reason)
    else:
        command = [python, str(ROOT / "bench" / "gpu_slice.py"), "--json"]
        Stage("slice", log).run("rounds", command, on_line=log.keep_record, may_be_cut=True)
        if log.steps[-1]["status"] == NOT_RUN and not any(is_rounds(record) for record in log.records):
            log.add("slice", "a record", FAILED, 0.0, reason="no round was measured, and rounds are what the gate is for")


def is_rounds(record: dict[str, Any]) -> bool:
    return str(record.get("case", "")).startswith("slice") and "median_us" in record


def lacks_room() -> str:
    """Why it does not fit on the first device; empty when it does."""
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"],
                              capture_output=True, text=True, timeout=20, check=True)
        free_mib = int(done.stdout.splitlines()[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return "nvidia-smi does not say how much memory is free"
    return "" if free_mib >= NEEDED_MIB else f"{NEEDED_MIB} MiB needed, {free_mib} are free"
