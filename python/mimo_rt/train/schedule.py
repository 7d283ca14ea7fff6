"""What a step works on: a function of the seed and the step's number alone, so runs can resume."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def mix_seed(seed: int, number: int) -> int:
    """A generator seed for (seed, number); torch takes 63 bits."""
    return (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63


def sequences_of_step(seed: int, step_idx: int, count: int, num_sequences: int) -> list[int]:
    """Indices of the next ``count`` sequences; every epoch visits all once, in its own order."""
    chosen = []
    for visit in range(step_idx * count, (step_idx + 1) * count):
        epoch, place = divmod(visit, num_sequences)
        chosen.append(int(_epoch_order(seed, epoch, num_sequences)[place]))
    return chosen


@lru_cache(maxsize=2)  # a step may end one epoch and begin the next
def _epoch_order(seed: int, epoch: int, num_sequences: int) -> Tensor:
    generator = torch.Generator().manual_seed(mix_seed(seed, -1 - epoch))
    return torch.randperm(num_sequences, generator=generator)
