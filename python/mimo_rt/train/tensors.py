"""Reads the tensors of a MiMo checkpoint as float32, whatever format they are stored in."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from .. import _C
from ..checkpoints.formats import decode_fp8_blocks, decode_mxfp4
from ..params import read_json_object


class CheckpointTensors:
    """The tensors behind ``model.safetensors`` or an index file, opened when asked for.

    Args:
        directory: holds ``model.safetensors``, or ``model.safetensors.index.json`` and its files.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = Path(directory)
        index = self._directory / "model.safetensors.index.json"
        if index.is_file():
            # The index of a trillion-parameter model has 160,000 entries: 16 MB.
            self._file_of = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        else:
            path = self._directory / "model.safetensors"
            if not path.is_file():
                raise _C.IoError(
                    f"[train] {self._directory}: expected model.safetensors or an index of it, "
                    "found none."
                )
            with safe_open(path, framework="pt") as file:
                self._file_of = dict.fromkeys(file.keys(), path.name)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def names(self) -> list[str]:
        return list(self._file_of)

    def raw(self, name: str) -> torch.Tensor:
        """The tensor as stored: BF16, F32, F8_E4M3 or U8."""
        if name not in self._file_of:
            raise _C.MissingTensorError(f"[train] {self._directory}: no tensor '{name}'.")
        with safe_open(self._directory / self._file_of[name], framework="pt") as file:
            return file.get_tensor(name)

    def plain(self, name: str) -> torch.Tensor:
        """A tensor without scales, as float32."""
        return self.raw(name).float()

    def linear(self, module: str, chunks: int = 1) -> torch.Tensor:
        """The weight ``[rows, cols]`` of a linear module as float32.

        ``chunks``: runs of rows with an FP8 scale grid of their own (the fused qkv tensor).
        """
        weight = self.raw(f"{module}.weight")
        if weight.dtype == torch.uint8:
            scale = self.raw(f"{module}.weight_scale")
            return torch.from_numpy(decode_mxfp4(weight.numpy(), scale.numpy()))
        if weight.dtype == torch.float8_e4m3fn:
            codes = weight.view(torch.uint8).numpy()
            scale = self.raw(f"{module}.weight_scale_inv").numpy()
            return torch.from_numpy(decode_fp8_blocks(codes, scale, chunks))
        return weight.float()


def read_config(directory: Path) -> dict:
    """config.json of a checkpoint directory."""
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise _C.IoError(f"[train] {directory}: expected config.json, found none.")
    return read_json_object(path)
