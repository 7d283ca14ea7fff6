"""From the start of a process to its first token, in fresh processes, page cache cold and warm.

Cold means that no page of the model's files is in the page cache, which `drop_pages` brings about
and checks; Python, the libraries and the extension stay cached in both cases.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _C
from ..errors import MimoRtError
from .measurement import spread

STAGES = ("process", "import", "open", "first_token")
PROMPT_TOKENS = 16
_TIMEOUT_S = 600
# Stamps of CLOCK_MONOTONIC, which all processes share.
_SCRIPT = """
import time
stamps = [time.monotonic_ns()]
import json, sys
sys.path[:0] = json.loads(sys.argv[3])
import mimo_rt
stamps.append(time.monotonic_ns())
session = mimo_rt.Session(sys.argv[1], **json.loads(sys.argv[2]))
stamps.append(time.monotonic_ns())
vocab_size = session.config.vocab_size
prompt = [(7919 * i + 11) % vocab_size for i in range(int(sys.argv[4]))]
session.generate(prompt, max_tokens=1, temperature=0.0, ignore_eos=True)
stamps.append(time.monotonic_ns())
print(json.dumps(stamps))
"""


@dataclass(frozen=True)
class StartupTimes:
    """Seconds of each stage, one tuple per run. ``skipped``: why there are no runs."""

    cache: str
    runs: tuple[tuple[float, ...], ...] = ()
    skipped: str | None = None

    def stage_s(self, stage: str) -> list[float]:
        """Times of one stage in all runs; "total" adds the stages up."""
        if stage == "total":
            return [sum(run) for run in self.runs]
        return [run[STAGES.index(stage)] for run in self.runs]

    def records(self) -> list[dict[str, Any]]:
        if not self.runs:
            return [{"case": f"startup/{self.cache}", "cache": self.cache, "skipped": self.skipped}]
        records = []
        for stage in (*STAGES, "total"):
            times = self.stage_s(stage)
            low, high = spread(times)
            records.append({
                "case": f"startup/{self.cache}/{stage}",
                "cache": self.cache,
                "median_us": round(statistics.median(times) * 1e6, 1),
                "p10_us": round(low * 1e6, 1),
                "p90_us": round(high * 1e6, 1),
                "n": len(times),
            })
        return records


def measure_startup(
    model_dir: Path, options: dict[str, Any], num_runs: int, *, is_cold: bool = True
) -> list[StartupTimes]:
    """Cold, warm and, with a packed cache, first runs by turns.

    First: there is no packed cache yet, the start writes it (a new one each time, beside the one
    that the other runs map); the model's files are in the page cache.

    Args:
        options: arguments of `mimo_rt.Session`, as JSON can carry them.
        is_cold: also with the model's files dropped from the page cache, where that works.
    """
    cold: list[tuple[float, ...]] = []
    warm: list[tuple[float, ...]] = []
    reason = None if is_cold else "not asked for"
    first: list[tuple[float, ...]] = []
    dropped = [model_dir]
    packed_cache = None
    if options.get("packed_cache", "none") != "none":
        packed_cache = _C.packed_cache_directory(os.fsencode(options["packed_cache"]))
        dropped.append(packed_cache)
    start_once(model_dir, options)  # libraries into the page cache, weights into the packed cache
    for _ in range(num_runs):
        if reason is None:
            reason = drop_pages(*dropped)
        if reason is None:
            cold.append(start_once(model_dir, options))
        warm.append(start_once(model_dir, options))
        if packed_cache:
            first.append(_first_start(model_dir, options, packed_cache))
    runs = [StartupTimes("warm", tuple(warm))]
    if first:
        runs.append(StartupTimes("first", tuple(first)))
    if is_cold:
        runs.insert(0, StartupTimes("cold", tuple(cold), reason))
    return runs


def _first_start(
    model_dir: Path, options: dict[str, Any], packed_cache: Path
) -> tuple[float, ...]:
    with tempfile.TemporaryDirectory(prefix="startup-", dir=packed_cache) as unused:
        times = start_once(model_dir, options | {"packed_cache": unused})
        if not _C.list_packed_cache(unused):
            raise MimoRtError(
                f"[bench] startup: no packed cache could be written below {packed_cache}."
            )
    return times


def start_once(model_dir: Path, options: dict[str, Any]) -> tuple[float, ...]:
    """Seconds of `STAGES` in a new process."""
    package_path = [str(Path(__file__).absolute().parents[2])]
    command = [sys.executable, "-c", _SCRIPT, str(model_dir), json.dumps(options)]
    command += [json.dumps(package_path), str(PROMPT_TOKENS)]
    begin = time.monotonic_ns()
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MimoRtError(f"[bench] startup: the new process failed: {last}")
    return stage_times(begin, json.loads(done.stdout))


def stage_times(begin_ns: int, stamps_ns: Sequence[int]) -> tuple[float, ...]:
    """Seconds between neighbouring stamps."""
    edges = [begin_ns, *stamps_ns]
    return tuple((b - a) / 1e9 for a, b in zip(edges, edges[1:], strict=False))


def drop_pages(*directories: Path) -> str | None:
    """Drop all files below from the page cache; returns why that did not work, or None."""
    if not hasattr(os, "posix_fadvise"):
        return "this system has no posix_fadvise"
    files = [path for directory in directories for path in directory.rglob("*")
             if path.is_file() and path.stat().st_size]
    for path in files:
        with path.open("rb") as file:
            try:
                os.fdatasync(file.fileno())  # only clean pages can be dropped
            except OSError:
                pass  # a read-only file system has no dirty ones
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    num_resident = num_pages = 0
    for path in files:
        resident, pages = resident_pages(path)
        num_resident, num_pages = num_resident + resident, num_pages + pages
    if num_resident > 0.01 * num_pages:
        return f"{num_resident} of {num_pages} pages stayed in the page cache"
    return None


def resident_pages(path: Path) -> tuple[int, int]:
    """Pages of a file in the page cache, and all its pages."""
    num_bytes = path.stat().st_size
    if not num_bytes:
        return 0, 0
    num_pages = -(-num_bytes // mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    flags = (ctypes.c_ubyte * num_pages)()
    with path.open("rb") as file:
        address = libc.mmap(None, num_bytes, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address in (None, ctypes.c_void_p(-1).value):
        return num_pages, num_pages  # unknown counts as not dropped
    try:
        if libc.mincore(address, num_bytes, flags):
            return num_pages, num_pages
    finally:
        libc.munmap(address, num_bytes)
    return sum(flag & 1 for flag in flags), num_pages
