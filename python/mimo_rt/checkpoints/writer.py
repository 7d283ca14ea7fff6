"""Write safetensors checkpoints tensor by tensor.

The header of a safetensors file comes first, so the names, types and shapes are given up front
(:class:`TensorSpec`); the data may then arrive in any order and goes straight to its place in the
file. Peak memory is one tensor.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .. import _C

# Name in a safetensors header -> the numpy type whose bytes are stored.
STORAGE_TYPES = {
    "F32": np.dtype("<f4"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "U8": np.dtype("u1"),
    "I64": np.dtype("<i8"),
}
STALE_PARTIAL_SECONDS = 3600.0
_BEFORE = "-before"


@dataclass(frozen=True)
class TensorSpec:
    """Type (safetensors name) and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * STORAGE_TYPES[self.dtype].itemsize


@contextmanager
def atomic_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory that becomes ``path`` when the block ends without an error.

    ``path`` therefore never exists half-written. An interrupted block removes its temporary
    directory; those of killed processes are removed after an hour. Of one that was killed while it
    replaced ``path``, ``.NAME.partial-…-before`` is the old directory: it stays while there is no
    new one.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not overwrite:
        raise _C.InvalidArgumentError(
            f"[checkpoints] '{path}' exists already. Remove it, or pass overwrite=True."
        )
    _remove_stale(path)
    partial = Path(tempfile.mkdtemp(prefix=_partial_prefix(path), dir=path.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp makes it private
        if overwrite and path.exists():
            _replace(path, partial)
        else:
            os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _replace(path: Path, partial: Path) -> None:
    """What was at ``path`` goes only when the new directory is in its place."""
    before = partial.with_name(f"{partial.name}{_BEFORE}")
    os.rename(path, before)
    try:
        with suppress(PermissionError):  # of another user
            os.utime(before)  # an hour from now
        os.rename(partial, path)
    except BaseException:
        os.rename(before, path)
        raise
    shutil.rmtree(before, ignore_errors=True)


def _partial_prefix(path: Path) -> str:
    return f".{path.name}.partial-"


def _remove_stale(path: Path) -> None:
    for other in path.parent.glob(_partial_prefix(path) + "*"):
        if other.name.endswith(_BEFORE) and not path.exists():
            continue  # of a process that was killed while it replaced `path`: the only one left
        try:
            is_stale = time.time() - other.stat().st_mtime > STALE_PARTIAL_SECONDS
        except FileNotFoundError:  # its owner has just finished
            continue
        if is_stale:
            shutil.rmtree(other, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def encode_header(specs: Mapping[str, TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """The header bytes of a safetensors file, and where the data of each tensor begins in it.

    Tensors lie in the order of ``specs`` without gaps; the data begins at a multiple of 8 bytes.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for name, spec in specs.items():
        begin, end = end, end + spec.num_bytes
        offsets[name] = begin
        header[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data_begin = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {n: data_begin + o for n, o in offsets.items()}


class CheckpointWriter:
    """Writes the tensors of ``specs`` into ``directory``: one file, or shards with an index.

    Args:
        directory: existing directory (see :func:`atomic_directory`).
        specs: every tensor of the checkpoint.
        max_shard_bytes: start a new shard when the current one would grow beyond this; ``None``
            writes a single file.
        stem: what the file names begin with. Names other than ``model`` are always numbered, so
            they can only be found through the index.

    Use as a context manager; leaving it without an error checks that every tensor was written.
    """

    def __init__(
        self,
        directory: Path,
        specs: Mapping[str, TensorSpec],
        *,
        max_shard_bytes: int | None = None,
        stem: str = "model",
    ) -> None:
        self._directory = Path(directory)
        self._specs = dict(specs)
        self._pending = set(self._specs)
        self._files: list[BinaryIO] = []
        self._place: dict[str, tuple[BinaryIO, int]] = {}
        shards = _split(self._specs, max_shard_bytes)
        names = _file_names(stem, len(shards))
        try:
            for name, shard in zip(names, shards, strict=True):
                self._create(name, shard)
        except BaseException:
            self._close()
            raise
        if max_shard_bytes is not None or stem != "model":
            self._write_index(names, shards)

    def _create(self, file_name: str, shard: dict[str, TensorSpec]) -> None:
        file = open(self._directory / file_name, "wb")  # noqa: SIM115 - closed by _close
        self._files.append(file)
        header, offsets = encode_header(shard)
        file.write(header)
        file.truncate(len(header) + sum(spec.num_bytes for spec in shard.values()))
        for name, offset in offsets.items():
            self._place[name] = (file, offset)

    def _write_index(self, names: list[str], shards: list[dict[str, TensorSpec]]) -> None:
        weight_map = {t: f for f, shard in zip(names, shards, strict=True) for t in shard}
        total = sum(spec.num_bytes for spec in self._specs.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(self._directory / "model.safetensors.index.json", index)

    def write(self, name: str, data: np.ndarray) -> None:
        """Store one tensor; InvalidArgumentError if its type or shape is not as announced."""
        if name not in self._pending:
            state = "written twice" if name in self._specs else "not announced"
            raise _C.InvalidArgumentError(f"[CheckpointWriter] tensor '{name}' is {state}.")
        spec = self._specs[name]
        storage = STORAGE_TYPES[spec.dtype]
        if data.dtype != storage or data.shape != spec.shape:
            raise _C.InvalidArgumentError(
                f"[CheckpointWriter] tensor '{name}': expected {storage} "
                f"{list(spec.shape)} for {spec.dtype}, got {data.dtype} {list(data.shape)}."
            )
        file, offset = self._place[name]
        file.seek(offset)
        file.write(np.ascontiguousarray(data).reshape(-1).view(np.uint8).data)
        self._pending.remove(name)

    def _close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close()
        if kind is None and self._pending:
            examples = ", ".join(sorted(self._pending)[:3])
            raise _C.InvalidArgumentError(
                f"[CheckpointWriter] {len(self._pending)} tensors not written, e.g. {examples}."
            )


def _split(
    specs: Mapping[str, TensorSpec], max_shard_bytes: int | None
) -> list[dict[str, TensorSpec]]:
    shards: list[dict[str, TensorSpec]] = [{}]
    shard_bytes = 0
    for name, spec in specs.items():
        is_full = max_shard_bytes is not None and shard_bytes + spec.num_bytes > max_shard_bytes
        if is_full and shards[-1]:
            shards.append({})
            shard_bytes = 0
        shards[-1][name] = spec
        shard_bytes += spec.num_bytes
    return shards


def _file_names(stem: str, num_shards: int) -> list[str]:
    if num_shards == 1 and stem == "model":
        return ["model.safetensors"]
    return [f"{stem}-{i + 1:05d}-of-{num_shards:05d}.safetensors" for i in range(num_shards)]
