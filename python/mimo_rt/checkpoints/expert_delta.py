"""Trained MXFP4 experts as a small file: their difference from plain rounding of the source weights.

Training moves most codes not at all and the others by one step, so what it adds to weights that
are at hand anyway is about one bit each. A file (numpy's .npz, deflated) holds, for every module,

    MODULE.scale  E8M0 bytes [rows, cols / 32], as in the checkpoint
    MODULE.delta  uint8 [rows, cols / 2], two values a byte, low nibble first:
                  (level - level of the source weight rounded with that scale) modulo 15

where a level -7..7 numbers the values 0, .5, 1, 1.5, 2, 3, 4, 6 with their sign. Rounding with a
given scale is exact arithmetic, so every machine expands a file to the same codes; -0 becomes 0.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .. import _C
from .formats import MXFP4_BLOCK, encode_e2m1

_NUM_LEVELS = 15


def _levels_of_codes(codes: np.ndarray) -> np.ndarray:
    magnitude = (codes & 7).astype(np.int8)
    return np.where(codes & 8, -magnitude, magnitude)


def _rounded_levels(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    blocks = np.ascontiguousarray(weight, dtype=np.float32).reshape(len(weight), -1, MXFP4_BLOCK)
    scaled = np.ldexp(blocks, 127 - scale.astype(np.int32)[:, :, None])
    return _levels_of_codes(encode_e2m1(scaled)).reshape(weight.shape)


def _unpack(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)


def _pack(nibbles: np.ndarray) -> np.ndarray:
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def encode_delta(weight: np.ndarray, packed: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """``MODULE.delta`` of trained codes ``[rows, cols / 2]`` against source weights ``[rows, cols]``."""
    levels = _levels_of_codes(_unpack(packed))
    return _pack(((levels - _rounded_levels(weight, scale)) % _NUM_LEVELS).astype(np.uint8))


def decode_delta(weight: np.ndarray, delta: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The trained codes ``[rows, cols / 2]``. BadFormatError when shapes or values are none."""
    rows, cols = weight.shape
    expected = {"delta": (rows, cols // 2), "scale": (rows, cols // MXFP4_BLOCK)}
    for name, value in (("delta", delta), ("scale", scale)):
        if value.dtype != np.uint8 or value.shape != expected[name]:
            raise _C.BadFormatError(
                f"[expert delta] {name}: expected uint8 {list(expected[name])}, got {value.dtype} "
                f"{list(value.shape)}."
            )
    difference = _unpack(delta)
    if difference.max(initial=0) >= _NUM_LEVELS or scale.max(initial=0) == 0xFF:
        raise _C.BadFormatError(
            "[expert delta] expected differences below 15 and scales below 255. The file is damaged."
        )
    half = _NUM_LEVELS // 2
    levels = (_rounded_levels(weight, scale) + difference.astype(np.int8) + half) % _NUM_LEVELS
    levels -= half
    codes = np.abs(levels).astype(np.uint8) | ((levels < 0).astype(np.uint8) << 3)
    return _pack(codes)


def write_expert_delta(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write ``MODULE.scale`` and ``MODULE.delta`` of all modules."""
    np.savez_compressed(path, **arrays)


class ExpertDelta:
    """An open file; see :func:`open_expert_delta`."""

    def __init__(self, archive: np.lib.npyio.NpzFile, path: Path) -> None:
        self._archive, self._path = archive, path

    def codes_and_scale(self, module: str, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the checkpoint stores for ``module``, given its source weight."""
        try:
            scale, delta = (self._archive[f"{module}.{part}"] for part in ("scale", "delta"))
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise _C.BadFormatError(
                f"[expert delta] '{self._path}' has no usable '{module}': {error}"
            ) from None
        return decode_delta(weight, delta, scale), scale


@contextmanager
def open_expert_delta(path: Path) -> Iterator[ExpertDelta]:
    """Open a file of :func:`write_expert_delta`. BadFormatError when it is none."""
    try:
        archive = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise _C.BadFormatError(f"[expert delta] '{path}' cannot be read: {error}") from None
    with archive:
        yield ExpertDelta(archive, path)
