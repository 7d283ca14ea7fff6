"""The tensors of a MiMo checkpoint as stored, mapped from the safetensors files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mimo_rt.checkpoints.formats import decode_bf16, decode_fp8_blocks, decode_mxfp4
from mimo_rt.checkpoints.layout import LayerShape, is_fused, qkv_chunks, qkv_modules

_STORAGE = {"F32": "<f4", "BF16": "<u2", "F8_E4M3": "u1", "U8": "u1"}


@dataclass(frozen=True)
class Linear:
    """A weight ``[rows, cols]``. MXFP4 keeps its codes; FP8 is expanded, exactly, to float32.

    Attributes:
        kind: "mxfp4", "fp8" or "bf16".
        data: packed codes, float32 values, or BF16 bits.
        scale: E8M0 bytes of MXFP4.
    """

    kind: str
    data: np.ndarray
    scale: np.ndarray | None = None

    def values(self) -> np.ndarray:
        """The weight as float32, exactly."""
        if self.kind == "mxfp4":
            return decode_mxfp4(self.data, self.scale)
        return decode_bf16(self.data) if self.kind == "bf16" else self.data

    def rows(self, chosen: Any) -> Linear:
        """Some of the rows."""
        scale = None if self.scale is None else self.scale[chosen]
        return Linear(self.kind, self.data[chosen], scale)


class StoredCheckpoint:
    """A checkpoint directory: ``config`` and tensors by name."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.config = json.loads((self.directory / "config.json").read_text(encoding="utf-8"))
        self._tensors: dict[str, tuple[str, np.ndarray]] = {}
        for path in sorted(self.directory.glob("*.safetensors")):
            self._map(path)

    def _map(self, path: Path) -> None:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        data_begin = 8 + int(raw[:8].view("<u8")[0])
        header = json.loads(bytes(raw[8:data_begin]))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = (data_begin + offset for offset in entry["data_offsets"])
            array = raw[begin:end].view(_STORAGE[entry["dtype"]]).reshape(entry["shape"])
            self._tensors[name] = entry["dtype"], array

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def plain(self, name: str) -> np.ndarray:
        """A tensor without scales, as float32."""
        dtype, array = self._tensors[name]
        return decode_bf16(array) if dtype == "BF16" else np.asarray(array, dtype=np.float32)

    def linear(self, module: str, chunks: int = 1) -> Linear:
        """The weight of a linear module; ``chunks``: runs of rows with FP8 grids of their own."""
        dtype, array = self._tensors[f"{module}.weight"]
        if dtype == "U8":
            return Linear("mxfp4", array, self._tensors[f"{module}.weight_scale"][1])
        if dtype == "F8_E4M3":
            scale = self._tensors[f"{module}.weight_scale_inv"][1]
            return Linear("fp8", decode_fp8_blocks(array, scale, chunks))
        return Linear("bf16", array)

    def qkv(self, prefix: str, shape: LayerShape) -> list[Linear]:
        """q, k and v of an attention, whether the file holds them fused or split."""
        weights = [self.linear(module, chunks)
                   for module, _, chunks in qkv_modules(self.config, prefix, shape)]
        if not is_fused(self.config):
            return weights
        (fused,) = weights
        chunks = qkv_chunks(self.config)
        # Runs of [Q_t | K_t | V_t]: the rows of each part, in order.
        places = np.arange(sum(shape.qkv_rows)).reshape(chunks, -1)
        edges = np.cumsum([rows // chunks for rows in shape.qkv_rows])[:-1]
        return [fused.rows(part.reshape(-1)) for part in np.split(places, edges, axis=1)]
