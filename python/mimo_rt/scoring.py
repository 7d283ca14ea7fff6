"""Likelihood of a token sequence from its logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .results import ScoreResult

if TYPE_CHECKING:
    import numpy as np

_BLOCK_ROWS = 64  # float64 copies of that many rows at a time


def score_logits(token_ids: Sequence[int], logits: np.ndarray) -> ScoreResult:
    """Row t of ``logits`` [num_tokens, vocab_size] predicts token t + 1."""
    import numpy as np

    targets = np.asarray(token_ids[1:], dtype=np.int64)
    values = np.empty(len(targets), dtype=np.float64)
    for begin in range(0, len(targets), _BLOCK_ROWS):
        end = min(begin + _BLOCK_ROWS, len(targets))
        rows = logits[begin:end].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        chosen = rows[np.arange(end - begin), targets[begin:end]]
        values[begin:end] = chosen - np.log(np.exp(rows).sum(axis=1))
    return ScoreResult(
        token_ids=list(token_ids),
        logprobs=[None, *values.tolist()],
        loss=float(-values.mean()),
    )
