"""The sequences that a draft is trained or measured on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _C
from .generations import Generation


class TrainingData:
    """Sequences of prompt and answer, cut to a length, without those that have no block."""

    def __init__(self, generations: Sequence[Generation], max_tokens: int) -> None:
        usable = [g for g in generations if len(g.prompt_ids) + 2 <= max_tokens]
        usable = [g for g in usable if len(g.output_ids) >= 2]
        if not usable:
            raise _C.InvalidArgumentError(
                f"[train] expected answers of at least 2 tokens in sequences of at most "
                f"{max_tokens}, got none among {len(generations)}."
            )
        self.token_ids = [torch.tensor(g.token_ids[:max_tokens]) for g in usable]
        self.num_prompt_tokens = [len(g.prompt_ids) for g in usable]
        # The part of a prompt's name before the first slash: coding/0/17 is of the set "coding".
        self.set_names = [g.prompt.split("/")[0] for g in usable]

    def __len__(self) -> int:
        return len(self.token_ids)

    def frequent_ids(self, count: int) -> Tensor:
        """The ``count`` most frequent ids of the answers, ties by id; fewer if there are fewer."""
        order, num_distinct = self._ids_by_frequency()
        return order[: min(count, num_distinct)]

    def vocabulary(self, count: int, vocab_size: int) -> Tensor:
        """The ``count`` most frequent ids, filled up with the lowest other ones; ascending."""
        order, _ = self._ids_by_frequency(vocab_size)
        return order[:count].sort().values

    def _ids_by_frequency(self, min_size: int = 0) -> tuple[Tensor, int]:
        """Ids from the most frequent to the unused, ties by id; how many of them occur."""
        pairs = zip(self.token_ids, self.num_prompt_tokens, strict=True)
        counts = torch.cat([ids[begin:] for ids, begin in pairs]).bincount(minlength=min_size)
        order = counts.sort(descending=True, stable=True).indices
        return order, int((counts > 0).sum())


def answers_digest(training: TrainingData, held_out: TrainingData) -> str:
    """Hex digits by which a run knows what it trains on and what it holds out."""
    digest = hashlib.sha256()
    for data in (training, held_out):
        for ids, num_prompt_tokens in zip(data.token_ids, data.num_prompt_tokens, strict=True):
            digest.update(f"{num_prompt_tokens} {len(ids)} ".encode() + ids.numpy().tobytes())
        digest.update(b"end")
    return digest.hexdigest()[:16]
