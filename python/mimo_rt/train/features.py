"""Features of the training sequences: computed when first asked for, kept as BF16 in one file.

Why a file: the target's forward of a token costs about as much as one anchor's block in training,
and every sequence is visited several times.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from ..checkpoints.formats import decode_bf16
from ..checkpoints.writer import write_json
from .precision import autocast
from .target import TargetModel


class FeatureSource:
    """Features ``[num_tokens, F * hidden_size]`` of numbered sequences, rounded to BF16.

    Args:
        target: makes the features.
        layer_ids: captured layers.
        sequences: token ids ``[num_tokens]`` of every sequence.
        cache: directory of the cache (2 bytes per value), opened when first needed: a run that is
            refused before leaves that of earlier ones alone; None keeps nothing.
    """

    def __init__(
        self,
        target: TargetModel,
        layer_ids: Sequence[int],
        sequences: Sequence[Tensor],
        cache: Path | None = None,
    ) -> None:
        self._target = target
        self._layer_ids = tuple(layer_ids)
        self._sequences = sequences
        self._begin = np.cumsum([0, *(len(s) for s in sequences)])
        self._rows: np.ndarray | None = None
        self._cache = cache

    def _open_cache(self, cache: Path) -> np.ndarray:
        """Map the files of ``cache``; files of other sequences or layers are started anew."""
        cache.mkdir(parents=True, exist_ok=True)
        shape = (int(self._begin[-1]), len(self._layer_ids) * self._target.hidden_size)
        key = {"fingerprint": self._fingerprint(), "shape": list(shape)}
        meta = cache / "features.json"
        is_same = meta.is_file() and json.loads(meta.read_text(encoding="utf-8")) == key
        # A row of flags beside the data: set only after the data, so a killed run leaves no lie.
        if not is_same:
            meta.unlink(missing_ok=True)  # what it says is no longer there, even without room for the new
        is_done, rows = cache / "done.u8", cache / "features.bf16"
        _allocate(is_done, len(self._sequences), keep=is_same)
        _allocate(rows, 2 * shape[0] * shape[1], keep=is_same)
        self._is_done = np.memmap(is_done, np.uint8, "r+", shape=(len(self._sequences),))
        if not is_same:
            write_json(meta, key)
        return np.memmap(rows, np.uint16, "r+", shape=shape)

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(
            repr((self._layer_ids, str(self._target.directory), self._target.matmul_dtype)).encode()
        )
        digest.update((self._target.directory / "config.json").read_bytes())
        for path in sorted(self._target.directory.glob("*.safetensors")):
            digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
        for sequence in self._sequences:
            digest.update(sequence.numpy().tobytes())
        return digest.hexdigest()

    def __call__(self, seq_idx: int) -> Tensor:
        """float32 on the target's device; equal bits whether computed or read."""
        if self._cache is None:
            return self._compute(seq_idx).float()
        if self._rows is None:
            self._rows = self._open_cache(self._cache)
        rows = slice(int(self._begin[seq_idx]), int(self._begin[seq_idx + 1]))
        if not self._is_done[seq_idx]:
            values = self._compute(seq_idx).cpu()
            self._rows[rows] = values.view(torch.uint16).numpy()
            self._rows.flush()
            self._is_done[seq_idx] = 1
        return torch.from_numpy(decode_bf16(self._rows[rows])).to(self._target.device)

    def batch(self, seq_ids: Sequence[int], num_tokens: int) -> Tensor:
        """The first ``num_tokens`` of several: ``[len(seq_ids), num_tokens, …]``, then zeros."""
        rows = pad_sequence([self(i)[:num_tokens] for i in seq_ids], batch_first=True)
        return pad(rows, (0, 0, 0, num_tokens - rows.shape[1]))

    def _compute(self, seq_idx: int) -> Tensor:
        token_ids = self._sequences[seq_idx].to(self._target.device)
        # Whoever trains with smaller products: those of the target are the target's to choose, and who
        # routes must not be rounded.
        with torch.no_grad(), autocast(token_ids.device, torch.float32):
            out = self._target.forward(token_ids, layer_ids=self._layer_ids, wants_logits=False)
        assert out.features is not None
        return out.features.bfloat16()


def _allocate(path: Path, num_bytes: int, *, keep: bool) -> None:
    """A file with room on the disk: to write where a mapped one has none ends the process (SIGBUS)."""
    with path.open("r+b" if keep else "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            if not keep:
                path.unlink()
            raise OSError(error.errno, f"no room for {num_bytes} bytes: {error.strerror}", str(path)) from None
