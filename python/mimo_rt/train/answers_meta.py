"""``meta.json`` of a directory of answers: what made them, by which later calls know them again.

A draft learns from its own target's answers only, and ``checkpoint_digest`` says whose they are: a
draft is not trained on a directory without it. ``mimo-rt train generate`` takes answers without any
meta.json as those of the model and the options that it is given, on the word of whoever calls it,
and records these.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import _C
from ..checkpoints.writer import write_json
from ..params import read_json_object

if TYPE_CHECKING:
    from .generations import Prompt

META_FILE = "meta.json"
_NUM_SAMPLES = 128  # of a file, beside one of each tensor
_SAMPLE_BYTES = 4096  # what a disk reads for one byte as well


def checkpoint_digest(directory: Path) -> str:
    """Hex digits of config.json and of samples of all weights, which whole take minutes to read.

    Another tensor is seen, however small, and so is a change of a hundredth of a file in one piece;
    one that lies between the samples of a tensor is not.
    """
    digest = hashlib.sha256(_contents(directory, "config.json"))
    for path in sorted(directory.glob("*.safetensors")):
        digest.update(path.name.encode())
        try:
            for sample in _samples(path):
                digest.update(sample)
        except (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _C.BadFormatError(
                f"[{path}] expected a safetensors file, got something else."
            ) from None
    return digest.hexdigest()[:16]


def _samples(path: Path) -> Iterator[bytes]:
    """The header, and of every tensor the beginning and more at equal distances."""
    num_bytes = path.stat().st_size
    distance = max(num_bytes // _NUM_SAMPLES, _SAMPLE_BYTES)
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        if header_bytes > num_bytes:
            raise ValueError("a header that is longer than its file")
        header = file.read(header_bytes)
        yield header
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        for begin, end in sorted(tensor["data_offsets"] for tensor in tensors.values()):
            for place in range(max(begin, 0), min(end, num_bytes), distance):
                file.seek(8 + header_bytes + place)
                yield file.read(min(_SAMPLE_BYTES, end - place))


def end_tokens_digest(directory: Path) -> str:
    """Hex digits of the files that say, beside config.json, where answers end."""
    contents = _contents(directory, "generation_config.json", "tokenizer_config.json")
    return hashlib.sha256(contents).hexdigest()[:16]


def _contents(directory: Path, *names: str) -> bytes:
    paths = [directory / name for name in names]
    return b"".join(path.read_bytes() if path.is_file() else b"none" for path in paths)


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """Hex digits of names and token ids."""
    return hashlib.sha256(repr([(p.name, p.token_ids) for p in prompts]).encode()).hexdigest()[:16]


def check_meta(directory: Path, meta: dict[str, Any]) -> None:
    """Record what answers are made with; refuse a directory made otherwise."""
    meta = json.loads(json.dumps(meta))
    path = directory / META_FILE
    if not path.is_file():
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        write_json(temporary, meta)
        os.replace(temporary, path)
        return
    found = read_json_object(path)
    if missing := sorted(meta.keys() - found.keys()):
        raise _C.InvalidArgumentError(
            f"[train] {path} does not say with which {missing[0]} it was made: it is of an older "
            f"version. {_how_to_adopt(path)}"
        )
    for name in sorted(found):
        if found[name] != meta.get(name):
            raise _C.InvalidArgumentError(
                f"[train] {directory} was made with other options: {name} is {found[name]!r} "
                f"there, {meta.get(name)!r} now. Use another directory."
            )


def check_target(directory: Path, digest: str) -> None:
    """Refuse answers of other weights than those of ``digest``, or of nobody knows which."""
    path = directory / META_FILE
    found = read_json_object(path).get("checkpoint_digest") if path.is_file() else None
    if found is None:
        raise _C.InvalidArgumentError(
            f"[train] {path}: expected the checkpoint_digest of the model whose answers they are, "
            f"found none. {_how_to_adopt(path)}"
        )
    if found != digest:
        raise _C.InvalidArgumentError(
            f"[train] {directory} holds answers of another model: its checkpoint_digest is {found!r} "
            f"there, {digest!r} here. Make this model's own with 'mimo-rt train generate' in "
            "another directory."
        )


def _how_to_adopt(path: Path) -> str:
    """Advice for answers of which nobody has recorded what made them."""
    remove = f"remove {path.name} and " if path.is_file() else ""
    return (
        f"If the answers are this model's own, {remove}call 'mimo-rt train generate' with the "
        "options that made them, which it then records; else make new ones in another directory."
    )
