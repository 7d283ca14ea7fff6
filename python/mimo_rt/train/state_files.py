"""Checkpoints of a training run: written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from .. import _C


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Replace ``path``; the old file stays until the new one is on the disk.

    Raises:
        OSError: the new one cannot be written, e.g. on a full disk; nothing is left of it.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        # What the file has said, torch buries under an error of its archive.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):  # e.g. of the GPU that the state comes from
            raise
        raise OSError(f"[train] cannot write {path}: {reason}.") from error


def load_state(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The saved state on the CPU; InvalidArgumentError when it was made with other ``options``.

    Not where it was saved from: another machine may lack that device, and optimisers keep their
    counts of steps on the CPU.
    """
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    for name, value in options.items():
        if name not in state["options"]:
            raise _C.InvalidArgumentError(
                f"[train] {path} does not say with which {name} it was made: it is of an older "
                "version. Begin anew in another directory."
            )
        if state["options"][name] != value:
            raise _C.InvalidArgumentError(
                f"[train] {path} was made with {name} = {state['options'][name]}, "
                f"got {value}. Use the same options or another directory."
            )
    return state
