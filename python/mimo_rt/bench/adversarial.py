"""A draft that is never right: what it costs when the engine may choose not to draft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .measurement import median_bounds
from .prompts import BenchPrompt
from .synthetic import synthetic_config, synthetic_draft_config, synthetic_engine
from .work import spread_prompt

CATEGORY = "Adversarial"
LIMIT = 0.97  # of plain decoding's speed
PROMPT_TOKENS = 32


def random_engine(num_layers: int, options: dict[str, Any], drafts: str) -> Any:
    """The random benchmark model with ``drafts``: "model", a random one, which agrees with it by
    chance only; "ngram", lookups, for which a random text is as bad; "none"."""
    config = synthetic_config(num_layers)
    draft = synthetic_draft_config(config) if drafts == "model" else None
    of_text = "ngram" if drafts == "ngram" else None
    return synthetic_engine(config, {**options, "draft": of_text}, draft)


def random_prompts(config: Any, num_prompts: int) -> list[BenchPrompt]:
    """Token ids without meaning, each list another one."""
    return [
        BenchPrompt(CATEGORY, f"random-{i}", spread_prompt(config, PROMPT_TOKENS, salt=i))
        for i in range(num_prompts)
    ]


def verdict(ratios: Sequence[float], limit: float = LIMIT) -> str:
    """Of the median over all such prompts, of which ``ratios`` are some: "WITHIN" or "SLOWER" than
    ``limit`` times plain decoding with a certainty of 95 %, or "UNDECIDED"."""
    bounds = median_bounds(ratios)
    if bounds is None or bounds[0] < limit <= bounds[1]:
        return "UNDECIDED"
    return "WITHIN" if bounds[0] >= limit else "SLOWER"
