"""Features of all sequences in the device's memory, computed at once in large batches: for GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .batch_target import BatchTarget
from .ops import to_device
from .target import TargetModel

TOKENS_PER_BATCH = 1 << 15
# Attention scores of a batch, float32; a forward holds a few tensors of their size.
MAX_SCORES = 1 << 28


class FeatureTable:
    """What :class:`FeatureSource` gives, from a table ``[all tokens, F * hidden_size]`` of BF16.

    Args:
        target, layer_ids, sequences: as for FeatureSource.
    """

    def __init__(
        self, target: TargetModel, layer_ids: Sequence[int], sequences: Sequence[Tensor]
    ) -> None:
        self._lengths = [len(sequence) for sequence in sequences]
        self._begin = torch.tensor([0, *self._lengths]).cumsum(0)
        shape = (int(self._begin[-1]), len(layer_ids) * target.hidden_size)
        self._rows = torch.empty(shape, dtype=torch.bfloat16, device=target.device)
        with torch.no_grad():
            for seq_ids in self._batches(target.config["num_attention_heads"]):
                self._fill(target, layer_ids, sequences, seq_ids)

    def _batches(self, num_heads: int) -> list[list[int]]:
        """Sequences of about the same length, longest first."""
        order = sorted(range(len(self._lengths)), key=self._lengths.__getitem__, reverse=True)
        batches = []
        while order:
            longest = self._lengths[order[0]]
            count = min(TOKENS_PER_BATCH // longest, MAX_SCORES // (num_heads * longest**2))
            batches.append(order[: max(count, 1)])
            order = order[max(count, 1) :]
        return batches

    def _fill(
        self,
        target: TargetModel,
        layer_ids: Sequence[int],
        sequences: Sequence[Tensor],
        seq_ids: list[int],
    ) -> None:
        ids = pad_sequence([sequences[i] for i in seq_ids], batch_first=True).to(target.device)
        batch, num_tokens = ids.shape
        model = BatchTarget(target, batch, num_tokens)
        first = torch.zeros(batch, dtype=torch.long, device=target.device)
        _, captured = model.forward(ids, first, num_tokens, layer_ids=layer_ids)
        own = [torch.arange(self._lengths[i]) for i in seq_ids]
        place = torch.cat([self._begin[i] + k for i, k in zip(seq_ids, own, strict=True)])
        source = torch.cat([row * num_tokens + k for row, k in enumerate(own)])
        rows = torch.cat(captured, dim=-1).flatten(0, 1)[source.to(target.device)]
        self._rows[place.to(target.device)] = rows.bfloat16()

    def __call__(self, seq_idx: int) -> Tensor:
        """float32 ``[num_tokens, F * hidden_size]`` of one sequence."""
        begin, end = self._begin[seq_idx : seq_idx + 2].tolist()
        return self._rows[begin:end].float()

    def batch(self, seq_ids: Sequence[int], num_tokens: int) -> Tensor:
        """The first ``num_tokens`` of several; then rows that no block may look at."""
        begin = to_device(self._begin[torch.tensor(seq_ids)], self._rows.device)
        index = begin[:, None] + torch.arange(num_tokens, device=begin.device)
        return self._rows[index.clamp(max=len(self._rows) - 1)].float()
