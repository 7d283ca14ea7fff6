"""What rounded activations change: the logits of two engines of one model on the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import _C
from .work import spread_prompt

if TYPE_CHECKING:
    import numpy as np

NUM_TOKENS = 64


@dataclass(frozen=True)
class LogitChange:
    """How far logits are from the exact ones.

    Attributes:
        relative_error: L2 norm of the difference over that of the exact logits.
        kl: mean Kullback-Leibler divergence from the exact distributions, nat per token.
        top1_agreement: share of the tokens whose most likely successor is the same.
    """

    num_tokens: int
    relative_error: float
    kl: float
    top1_agreement: float

    def record(self) -> dict[str, Any]:
        return {
            "logits_relative_error": float(f"{self.relative_error:.4g}"),
            "logits_kl": float(f"{self.kl:.4g}"),
            "top1_agreement": round(self.top1_agreement, 4),
            "compared_tokens": self.num_tokens,
        }

    def text(self) -> str:
        return (
            f"logits against bf16 activations: relative error {self.relative_error:.2e}, "
            f"KL {self.kl:.2e} nat per token, the same best token for "
            f"{100 * self.top1_agreement:.0f} % of {self.num_tokens} tokens"
        )


def prompt_logits(engine: Any) -> np.ndarray:
    """Logits of a fixed prompt, float32 [NUM_TOKENS, vocab_size]."""
    ids = spread_prompt(engine.config, NUM_TOKENS)
    return _C.Session(engine, max_context=NUM_TOKENS + 1).logits(ids)


def compare_logits(exact: np.ndarray, rounded: np.ndarray) -> LogitChange:
    """Rows of both belong to the same tokens."""
    import numpy as np

    p, q = (_log_softmax(logits.astype(np.float64)) for logits in (exact, rounded))
    return LogitChange(
        num_tokens=len(exact),
        relative_error=float(np.linalg.norm(rounded - exact) / np.linalg.norm(exact)),
        kl=float(np.mean(np.sum(np.exp(p) * (p - q), axis=1))),
        top1_agreement=float(np.mean(exact.argmax(axis=1) == rounded.argmax(axis=1))),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    import numpy as np

    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
