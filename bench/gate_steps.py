"""The steps of bench/gpu_gate.py: run, cut off at their limits, kept as they end."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
# What the stages may take of nine minutes; a stage that ends early leaves its time to the others. A build of 120 s
# leaves enough for all up to kbench, whose first measurements are worth having; one that takes longer takes it from the
# last stages: without it there are no results at all.
LIMITS_S = {"build": 300, "tests": 60, "costs": 35, "engine": 45, "python": 45, "bits": 40, "kill": 40, "soak": 55, "slice": 50,
            "kbench": 110, "sanitizer": 60, "counters": 45, "cutlass": 240}
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
KILL_S = 15  # after which a killed process is left behind


@dataclass
class Log:
    """Steps as they end: in the file, on the terminal, and for the summary."""

    path: pathlib.Path
    deadline: float
    steps: list[dict[str, Any]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)  # of kbench and of the engine

    def add(self, stage: str, step: str, status: str, seconds: float, **more: Any) -> None:
        line = {"stage": stage, "step": step, "status": status, "seconds": round(seconds, 2), **more}
        self.steps.append(line)
        self.write(line)
        reason = f": {more['reason']}" if "reason" in more else ""
        print(f"[{stage}] {step}: {status} ({seconds:.1f} s){reason}", flush=True)
        if status == FAILED and more.get("output"):
            print(more["output"][-2000:], flush=True)

    def write(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def keep_record(self, line: str) -> None:
        """For Stage.run: a line that is a record goes to the file."""
        if line.startswith("{"):
            with contextlib.suppress(ValueError):  # cut off in the middle
                self.records.append(json.loads(line))
                self.write({**self.records[-1], "gate": True})

    def left_s(self) -> float:
        return self.deadline - time.monotonic()


@dataclass
class Stage:
    """Steps that share a limit. A step that the limit cuts off failed; one that had no time was not run."""

    name: str
    log: Log
    limit_s: float | None = None  # other than the one above
    until: float = 0.0

    def __post_init__(self) -> None:
        limit_s = LIMITS_S[self.name] if self.limit_s is None else self.limit_s
        self.until = min(time.monotonic() + limit_s, self.log.deadline)

    def run(self, step: str, command: list[str], environment: dict[str, str] | None = None,
            on_line: Callable[[str], None] | None = None, may_be_cut: bool = False, step_s: float = math.inf,
            silence_s: float = math.inf) -> bool:
        """Runs a command.

        Args:
            on_line: gets each line of its output.
            may_be_cut: a part of it is worth having: it has not failed when its time is over.
            step_s: what it may take, if the stage has more.
            silence_s: it hangs when it has printed nothing for so long: it has failed, and others get its time.
        """
        left = min(self.left_s(), step_s)
        if left < 1:
            self.log.add(self.name, step, NOT_RUN, 0.0, reason="no time left")
            return False
        begin = time.monotonic()
        try:
            code, output, hangs = run_command(
                command, left, {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}, on_line, silence_s)
        except (KeyboardInterrupt, SystemExit):
            self.log.add(self.name, step, NOT_RUN, time.monotonic() - begin, reason="the gate was ended")
            raise
        seconds = time.monotonic() - begin
        if code is None:
            status = FAILED if hangs or not may_be_cut and begin + left < self.log.deadline else NOT_RUN
            reason = f"hangs: nothing printed for {silence_s:g} s" if hangs else f"cut off after {left:.0f} s"
            self.log.add(self.name, step, status, seconds, reason=reason, output=output[-4000:])
            return False
        status = PASSED if code == 0 else FAILED
        more = {"output": output[-4000:], "exit_code": code, "command": command} if code else {}
        self.log.add(self.name, step, status, seconds, **more)
        return code == 0

    def left_s(self) -> float:
        return self.until - time.monotonic()


def run_command(command: list[str], limit_s: float, environment: dict[str, str],
                on_line: Callable[[str], None] | None, silence_s: float = math.inf) -> tuple[int | None, str, bool]:
    """Exit code (None: cut off, with everything that the command had started), output, and whether silence ended it."""
    try:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   stdin=subprocess.DEVNULL, start_new_session=True, text=True, errors="replace")
    except OSError as error:
        return 127, str(error), False
    lines: list[str] = []
    until = time.monotonic() + limit_s
    heard = [time.monotonic()]

    def read() -> None:  # as they come: what a stop leaves is in the file already
        for line in process.stdout:
            heard[0] = time.monotonic()
            lines.append(line)
            if on_line:
                on_line(line)

    reader = threading.Thread(target=read, daemon=True)
    code: int | None = None
    hangs = False
    try:
        reader.start()
        while code is None and (left := min(until, heard[0] + silence_s) - time.monotonic()) > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=left)
        hangs = code is None and time.monotonic() < until  # before the kill, which may take long
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for the driver may never end
                process.wait(timeout=KILL_S)
        reader.join(timeout=10)  # a process that left the group may hold the pipe
    return code, "".join(lines), hangs
