"""Facts about the machine and the build, for records that others should be able to repeat."""

from __future__ import annotations

import datetime
import functools
import os
import platform
from pathlib import Path
from typing import Any

from .. import __version__, _C


_PROBED_BYTES = 64 << 20


@functools.cache
def machine_record() -> dict[str, Any]:
    """Processor, cores, memory, commit, date: goes into every benchmark record."""
    commit, is_dirty = built_commit()
    return {
        "version": __version__,
        "commit": commit,
        "dirty": is_dirty,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": processor_name(),
        "num_usable_cores": _C.num_usable_cores(),
        "memory_bytes": memory_bytes(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def processor_name() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory_bytes() -> int | None:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def usable_memory_bytes() -> int | None:
    """What a program may still take: available memory, within the control group's limit."""
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    bounds = [available_memory_bytes()]
    if limit.isdigit():  # all of it: what the group uses now is mostly page cache
        bounds.append(int(limit))
    return min((bound for bound in bounds if bound is not None), default=None)


def cgroup_cpu_limit() -> str:
    """The quota of the control group as text, e.g. "2.0 cores"."""
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        return f"{int(quota[0]) / int(quota[1]):.1f} cores"
    return "none"


def cgroup_memory_limit() -> str:
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return f"{int(limit) / 1e9:.1f} GB" if limit.isdigit() else "none"


def huge_pages() -> str:
    """The transparent huge page setting, and what asking for such pages brought."""
    words = _read("/sys/kernel/mm/transparent_hugepage/enabled").split()
    chosen = [word.strip("[]") for word in words if word.startswith("[")]
    text = chosen[0] if chosen else "unknown"
    try:
        granted = _C.probe_huge_pages(_PROBED_BYTES)
    except _C.MimoRtError as error:
        return f"{text}: not probed: {error}"
    text += f": {granted >> 20} of {_PROBED_BYTES >> 20} MiB granted"
    if granted < _PROBED_BYTES // 2:
        text += " (reading weights may take a quarter longer)"
    return text


def built_commit() -> tuple[str | None, bool | None]:
    """Commit when the build was configured (pip does that anew every time), and whether the tree
    had uncommitted changes then.

    None when it was not built in a git working tree, as from a source archive.
    """
    commit = _C.__commit__
    return (commit.rstrip("+"), commit.endswith("+")) if commit else (None, None)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
