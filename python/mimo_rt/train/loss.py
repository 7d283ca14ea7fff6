"""The weighted loss of a block, and how many of its tokens the target would accept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def slot_weights(num_slots: int, gamma: float) -> Tensor:
    """exp(-(k - 1) / gamma) of slots k = 1, 2, …: an early mistake costs all that follows."""
    return torch.exp(-torch.arange(num_slots, dtype=torch.float32) / gamma)


@dataclass(frozen=True)
class VocabSample:
    """A softmax over part of the vocabulary that estimates the one over all of it.

    The labels of the batch and the ``certain_ids`` always take part. Of all other ids
    ``num_random`` take part, each for (number of others / num_random) of them: the sum of
    exponentials is right in expectation. Cost falls with the number of ids; the estimate of the
    loss is a little low (the logarithm of an unbiased sum).
    """

    certain_ids: Tensor
    num_random: int

    def choose(
        self, labels: Tensor, vocab_size: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Ids in ascending order, and what to add to the logit of each; waits for the labels.

        Args:
            labels: those that weigh more than 0, in any shape.
        """
        certain = torch.cat([labels.flatten().cpu(), self.certain_ids]).unique()
        is_other = torch.ones(vocab_size, dtype=torch.bool)
        is_other[certain] = False
        others = is_other.nonzero()[:, 0]
        count = min(self.num_random, len(others))
        drawn = others[torch.randperm(len(others), generator=generator)[:count]]
        correction = torch.zeros(vocab_size)
        if count:
            correction[drawn] = torch.tensor(len(others) / count).log()
        ids = torch.cat([certain, drawn]).sort().values
        return ids.to(labels.device), correction[ids].to(labels.device)


def block_loss(
    z: Tensor,
    labels: Tensor,
    weight: Tensor,
    lm_head: Tensor,
    sample: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Sum of weighted cross-entropies.

    Args:
        z: ``[..., num_slots, hidden_size]``, output of the draft.
        labels: ``[..., num_slots]``; a valid id also where there is no label.
        weight: as ``labels``; 0 where there is no label.
        lm_head: ``[vocab_size, hidden_size]``, or the rows of the ids that labels count.
        sample: ids and corrections of :class:`VocabSample` for the labels that weigh more than 0;
            None: the whole vocabulary.
    """
    z, labels, weight = _used_rows(z.flatten(0, -2), labels.flatten(), weight.flatten())
    if sample is None:
        logits = z @ lm_head.T
    else:
        ids, correction = sample
        logits = z @ lm_head[ids].T + correction
        # A label that weighs 0 need not be among the ids.
        labels = torch.searchsorted(ids, labels).clamp(max=len(ids) - 1)
    return (cross_entropy(logits, labels, reduction="none") * weight).sum()


def _used_rows(z: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those that weigh something, on a CPU; a GPU would have to wait for their number."""
    if z.device.type != "cpu":
        return z, labels, weight
    is_used = weight > 0
    return z[is_used], labels[is_used], weight[is_used]


def accepted_lengths(proposed_ids: Tensor, labels: Tensor, is_inside: Tensor) -> Tensor:
    """Leading draft tokens that equal the labels, per block ``[num_blocks]``."""
    is_right = (proposed_ids == labels) & is_inside
    return is_right.long().cumprod(dim=1).sum(dim=1)


def count_rounds(accepted: list[int]) -> tuple[int, int]:
    """Decode the tokens after a first anchor: (rounds, tokens).

    ``accepted[i]`` is the accepted length of the block whose anchor is token i; there is one more
    token than anchors. A round emits its accepted tokens and one more, as long as there are any.
    """
    num_rounds = anchor = 0
    while anchor < len(accepted):
        num_rounds += 1
        anchor += accepted[anchor] + 1
    return num_rounds, len(accepted)
