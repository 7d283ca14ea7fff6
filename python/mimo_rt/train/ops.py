"""The operations that target and draft share. Shapes as in the functions; no batch dimension.

Source: the forward pass of MiMo-V2 (RMSNorm without offset, half-split rotary pairs, one sink logit
per query head in the softmax denominator).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C


def _widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x ``[..., size]`` over its last dimension, times ``weight``; in float32 at least."""
    x = _widen(x)
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + epsilon) * weight


def rotate(u: Tensor, positions: Tensor, rotary_dim: int, theta: float) -> Tensor:
    """Rotary embedding of the first ``rotary_dim`` elements, pairs (j, j + rotary_dim / 2).

    u ``[..., heads, head size]``; positions ``[...]`` (any integer type).
    """
    if rotary_dim == 0:
        return u
    half = rotary_dim // 2
    exponent = torch.arange(half, dtype=torch.float64, device=u.device) * (-2.0 / rotary_dim)
    angle = positions.double()[..., None, None] * theta**exponent
    cos, sin = angle.cos().to(u.dtype), angle.sin().to(u.dtype)
    a, b = u[..., :half], u[..., half:rotary_dim]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, u[..., rotary_dim:]], dim=-1)


def sink_softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over the last dimension; ``sinks`` (broadcast to one logit per row) only divide.

    Every row has at least one finite score.
    """
    scores = _widen(scores)
    if sinks is None:
        return scores.softmax(dim=-1)
    sinks = sinks.expand(*scores.shape[:-1], 1)
    return torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]


def training_device(name: str) -> torch.device:
    """The device of that name, e.g. "cpu", "cuda" or "cuda:1".

    Raises:
        InvalidArgumentError: no such kind. UnavailableError: no such GPU, or a torch without CUDA.
    """
    kind, _, idx = name.partition(":")
    if kind not in ("cpu", "cuda") or (":" in name and not (idx.isascii() and idx.isdigit())):
        raise _C.InvalidArgumentError(
            f"[train] torch device: expected cpu or cuda, got '{name}'."
        )
    if kind == "cuda" and int(idx or 0) >= (count := torch.cuda.device_count()):
        raise _C.UnavailableError(
            f"[train] torch device '{name}': torch {torch.__version__} finds {count} GPUs. "
            "Use cpu, or install a torch with CUDA for this machine's driver."
        )
    return torch.device(name)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A copy of CPU values that nobody waits for."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def matmul(h: Tensor, weight: Tensor) -> Tensor:
    """h ``[..., cols]`` times weight ``[rows, cols]``, in the weight's type; the result has h's."""
    return (h.to(weight.dtype) @ weight.T).to(h.dtype)


def swiglu(h: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """down(silu(gate h) * up h), weights ``[rows, cols]``."""
    return matmul(torch.nn.functional.silu(matmul(h, gate)) * matmul(h, up), down)
