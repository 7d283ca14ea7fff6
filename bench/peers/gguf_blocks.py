"""Weights in the tensor types of GGUF.

MXFP4 is a change of order only: GGUF keeps a block's scale byte in front of its codes, and puts
element j beside element j + 16 in a byte where the checkpoint pairs neighbours. BF16 and F32 are
exact too. FP8 with block scales has no GGUF type: F32 holds its values exactly, Q8_0 and BF16
round them.
"""

from __future__ import annotations

import numpy as np
from mimo_rt.checkpoints.formats import MXFP4_BLOCK, encode_bf16
from stored import Linear

DENSE_TYPES = ("q8_0", "bf16", "f32")
_Q8_BLOCK = 32


def mxfp4_blocks(packed: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Codes ``[..., cols/2]`` and scales ``[..., cols/32]`` as rows of 17-byte blocks."""
    *lead, num_bytes = packed.shape
    pairs = packed.reshape(*lead, num_bytes * 2 // MXFP4_BLOCK, MXFP4_BLOCK // 2)
    codes = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(*pairs.shape[:-1], MXFP4_BLOCK)
    half = MXFP4_BLOCK // 2
    halves = codes[..., :half] | (codes[..., half:] << 4)
    blocks = np.concatenate([scale[..., None], halves], axis=-1)
    return blocks.reshape(*lead, -1)


def q8_0_blocks(values: np.ndarray) -> np.ndarray:
    """Rows of 34-byte blocks: a float16 scale and 32 signed bytes."""
    blocks = values.reshape(-1, _Q8_BLOCK)
    scale = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float32)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    codes = np.rint(blocks * inverse).astype(np.int8)
    packed = np.concatenate([scale.astype("<f2").view(np.uint8), codes.view(np.uint8)], axis=1)
    return packed.reshape(*values.shape[:-1], -1)


def encode(weight: Linear, dense: str, plain: str) -> tuple[str, np.ndarray]:
    """(GGUF type name, bytes or float32). ``dense``, ``plain``: types for FP8 and for BF16."""
    if weight.kind == "mxfp4":
        return "MXFP4", mxfp4_blocks(weight.data, weight.scale)
    kind = dense if weight.kind == "fp8" else plain
    if kind == "q8_0" and weight.data.shape[-1] % _Q8_BLOCK:
        kind = "bf16"  # rows that blocks do not fill
    if kind == "q8_0":
        return "Q8_0", q8_0_blocks(weight.values())
    if kind == "f32":
        return "F32", np.ascontiguousarray(weight.values(), dtype=np.float32)
    bits = weight.data if weight.kind == "bf16" else encode_bf16(weight.values())
    return "BF16", np.ascontiguousarray(bits).view(np.uint8)
