"""Busy processes beside the workers, and what a fair share of the machine would leave of them."""

from __future__ import annotations

import os
import subprocess
import sys
from types import TracebackType

_BUSY = "while True: pass"


def fair_slowdown(num_workers: int, num_competitors: int, num_cores: int) -> float:
    """How much longer a step takes when all threads get the same share of the cores."""
    num_busy = min(num_workers, num_cores)
    return max(1.0, (num_busy + num_competitors) / num_cores)


class Competitors:
    """Processes that compute without end, for the time of a ``with`` block."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Competitors:
        command = [sys.executable, "-I", "-S", "-c", _BUSY]
        try:
            for _ in range(self._count):
                self._processes.append(subprocess.Popen(command))
        except OSError:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def cpu_seconds(self) -> float:
        """Processor time of all of them so far."""
        return sum(_cpu_seconds(process.pid) for process in self._processes)

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()


def _cpu_seconds(pid: int) -> float:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rsplit(")", 1)[1].split()  # the name may hold anything
    ticks = int(fields[11]) + int(fields[12])  # user and system time
    return ticks / os.sysconf("SC_CLK_TCK")
