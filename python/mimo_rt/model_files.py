"""The small files of a model directory that may be missing."""

from __future__ import annotations

import os
from pathlib import Path

from . import _C


def is_there(path: Path) -> bool:
    """Whether a file that may be missing is there.

    Raises:
        IoError: something of that name is there and is no file: a link that leads nowhere, as a
            half-copied cache of a model hub leaves them, or a directory.
    """
    if path.is_file():
        return True
    if path.is_symlink():
        target = os.readlink(path)
        raise _C.IoError(f"[{path}] expected a file, got a link to '{target}', which is none.")
    if path.exists():
        raise _C.IoError(f"[{path}] expected a file, got something else.")
    return False
