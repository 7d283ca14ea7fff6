"""How many tokens a round of decoding would emit, measured on finished answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .blocks import block_labels
from .data import TrainingData
from .draft import DraftModel
from .loss import accepted_lengths, count_rounds
from .precision import autocast
from .target import TargetModel

EVAL_BLOCKS = 64  # blocks per forward when all anchors of a sequence are tried


def evaluate_draft(
    target: TargetModel,
    draft: DraftModel,
    data: TrainingData,
    features: Callable[[int], Tensor],
    *,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Offline acceptance on held-out answers, without sampling noise.

    Every anchor of every answer is drafted greedily; a walk through each answer then counts the
    rounds that decoding would take. For greedy answers, and for sampled ones when a draft token is
    accepted only if it is the token that was drawn, this is the acceptance length itself.

    Args:
        features: of an answer's number: ``[num_tokens, feature_size]``.
        dtype: in which the draft's matrices are multiplied (see precision.py).

    Returns:
        mean_acceptance_length: tokens per round, over all answers and per set of prompts;
        acceptance_rate_at: per slot, over all anchors.
    """
    block_size, head = draft.shape.block_size, draft.head(target.lm_head)
    rounds_of: Counter[str] = Counter()
    tokens_of: Counter[str] = Counter()
    num_right, num_labels = torch.zeros(block_size - 1), torch.zeros(block_size - 1)
    with torch.no_grad(), autocast(target.device, dtype):
        for seq_idx, ids in enumerate(data.token_ids):
            ids = ids.to(target.device)
            context = draft.context(features(seq_idx)[None])
            accepted: list[int] = []
            begin, end = data.num_prompt_tokens[seq_idx], len(ids) - 1
            for anchors in torch.arange(begin, end, device=target.device).split(EVAL_BLOCKS):
                z = draft(context, target.embed[ids[anchors]][None], anchors[None])[0]
                labels, is_inside = block_labels(ids, anchors, block_size)
                with autocast(target.device, torch.float32):  # logits as the engine's
                    draft_ids = (z.float() @ head.T).argmax(dim=-1)
                proposed = draft.target_ids(draft_ids)
                lengths = accepted_lengths(proposed, labels, is_inside)
                accepted += lengths.tolist()
                reached = torch.arange(block_size - 1) < lengths[:, None].cpu()
                num_right += reached.sum(dim=0)
                num_labels += is_inside.sum(dim=0).cpu()
            rounds, tokens = count_rounds(accepted)
            rounds_of[data.set_names[seq_idx]] += rounds
            tokens_of[data.set_names[seq_idx]] += tokens
    num_rounds, num_tokens = rounds_of.total(), tokens_of.total()
    return {
        "mean_acceptance_length": num_tokens / num_rounds,
        "acceptance_length_of_set": {n: tokens_of[n] / rounds_of[n] for n in sorted(rounds_of)},
        "acceptance_rate_at": (num_right / num_labels.clamp(min=1)).tolist(),
        "num_rounds": num_rounds,
        "num_tokens": num_tokens,
    }
