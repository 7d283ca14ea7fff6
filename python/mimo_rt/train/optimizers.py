"""Muon for matrices, AdamW for the rest, and the learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` with the type of its iteration as a choice, the same on all devices.

    torch's own iterates in BF16, over which CPUs without BF16 arithmetic take about thirty times as
    long as over float32, and its saved state is none that another class can go on from. The update
    is the same: Nesterov momentum, orthogonalised, scaled to the size of an AdamW step
    (``adjust_lr_fn="match_rms_adamw"``), decoupled weight decay.

    Args:
        params: matrices ``[rows, cols]``.
        lr: learning rate, as for AdamW.
        dtype: of the iteration.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, defaults)
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(param)
                buffer = state["momentum_buffer"]
                buffer.lerp_(param.grad, 1 - group["momentum"])
                update = orthogonalize(
                    param.grad.lerp(buffer, group["momentum"]), self._dtype
                )
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(param.shape)))


def orthogonalize(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Newton-Schulz towards the nearest matrix whose singular values are all (about) one."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = (x / x.norm().clamp(min=1e-7)).to(dtype)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if is_tall else x).to(matrix.dtype)


def make_optimizers(
    params: Iterable[Tensor], *, lr: float, weight_decay: float, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """Muon, which iterates in ``dtype``, for the matrices among ``params``, AdamW without decay for vectors."""
    params = list(params)
    matrices = [p for p in params if p.ndim == 2]
    vectors = [p for p in params if p.ndim != 2]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=lr, weight_decay=weight_decay, dtype=dtype))
    if vectors:
        optimizers.append(torch.optim.AdamW(vectors, lr=lr, weight_decay=0.0, betas=(0.9, 0.95)))
    return optimizers


def learning_rate_factor(step: int, num_steps: int, warmup_fraction: float) -> float:
    """Linear from 0 to 1 over the warm-up, then half a cosine down to 0 after the last step."""
    warmup = max(round(warmup_fraction * num_steps), 1)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(num_steps - warmup, 1)))


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], lr: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
