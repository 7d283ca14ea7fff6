"""MXFP4 rounding in torch: the values of ``checkpoints.formats.encode_mxfp4``, but fast.

A block of 32 columns shares a power of two (E8M0, stored as exponent + 127); its elements are E2M1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.formats import MXFP4_BLOCK


@dataclass(frozen=True)
class Mxfp4:
    """values ``[rows, cols]`` float32 and the exponent of each block ``[rows, cols / 32]``."""

    values: Tensor
    exponent: Tensor

    def encode(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes ``[rows, cols / 2]`` (low nibble first) and scales ``[rows, cols / 32]``, uint8."""
        rows, cols = self.values.shape
        blocks = self.values.reshape(rows, -1, MXFP4_BLOCK)
        element = torch.ldexp(blocks, -self.exponent[..., None]).reshape(rows, cols)
        magnitude = element.abs()
        # The inverse of the table 0, .5, 1, 1.5, 2, 3, 4, 6.
        code = torch.where(
            magnitude < 2,
            magnitude * 2,
            torch.where(magnitude < 4, magnitude + 2, magnitude / 2 + 4),
        ).to(torch.uint8)
        code |= torch.signbit(element).to(torch.uint8) << 3
        packed = code[:, 0::2] | (code[:, 1::2] << 4)
        return packed.cpu().numpy(), (self.exponent + 127).to(torch.uint8).cpu().numpy()


def quantize_mxfp4(weight: Tensor) -> Mxfp4:
    """Round ``[rows, cols]`` (cols a multiple of 32) to the nearest MXFP4 values.

    The exponent of a block is the one of e, e + 1, e - 1 with the least squared error, where
    e = floor(log2(largest magnitude)) - 2; ties take the first.
    """
    rows, cols = weight.shape
    blocks = weight.detach().float().reshape(rows, -1, MXFP4_BLOCK)
    amax = blocks.abs().amax(dim=-1)
    # frexp's mantissa is in [1/2, 1).
    base = torch.where(amax > 0, torch.frexp(amax).exponent - 3, 0)
    # In units of the largest magnitude, so that nothing underflows.
    unit = torch.where(amax > 0, amax, 1.0)[..., None]
    best = torch.empty_like(blocks)
    best_error = torch.full_like(amax, torch.inf)
    best_exponent = torch.empty_like(base)
    for offset in (0, 1, -1):
        exponent = (base + offset).clamp(-127, 127)
        step = torch.exp2(exponent.float())[..., None]
        values = round_e2m1(blocks / step).mul_(step)
        error = (values - blocks).div_(unit).square_().sum(dim=-1)
        is_better = error < best_error
        for old, new in ((best, values), (best_error, error), (best_exponent, exponent)):
            old[is_better] = new[is_better]
    return Mxfp4(best.reshape(rows, cols), best_exponent)


def round_e2m1(x: Tensor) -> Tensor:
    """The nearest of 0, .5, 1, 1.5, 2, 3, 4, 6 with the sign of x; ties to the even code."""
    magnitude = x.abs().clamp_(max=6)
    # Without its mantissa a magnitude is the power of two below it; there are two values from one
    # power to the next, and below 2 they are 1/2 apart.
    step = (magnitude.view(torch.int32) & 0x7F800000).view(torch.float32).clamp_(min=1).mul_(0.5)
    return magnitude.div_(step).round_().mul_(step).copysign_(x)
