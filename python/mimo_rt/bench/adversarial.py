"""A draft that is never right: what it costs when the engine may choose not to draft."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from .measurement import spread
from .prompts import BenchPrompt
from .synthetic import synthetic_config, synthetic_draft_config, synthetic_engine
from .work import spread_prompt

CATEGORY = "Adversarial"
LIMIT = 0.97  # of plain decoding's speed
PROMPT_TOKENS = 32


def random_engine(num_layers: int, options: dict[str, Any]) -> Any:
    """The random benchmark model with a random draft, which agrees with it by chance only; with
    "ngram" among the options with lookups, for which a random text is as bad."""
    config = synthetic_config(num_layers)
    draft = None if options["draft"] == "ngram" else synthetic_draft_config(config)
    return synthetic_engine(config, options, draft)


def random_prompts(config: Any, num_prompts: int) -> list[BenchPrompt]:
    """Token ids without meaning, each list another one."""
    return [
        BenchPrompt(CATEGORY, f"random-{i}", spread_prompt(config, PROMPT_TOKENS, salt=i))
        for i in range(num_prompts)
    ]


def verdict(ratios: Sequence[float], limit: float = LIMIT) -> str:
    """"WITHIN" or "SLOWER" than ``limit`` times plain decoding, or "UNDECIDED".

    SLOWER needs nine in ten prompts below the limit; one slow moment of the machine is no verdict.
    """
    if len(ratios) < 3:
        return "UNDECIDED"
    if statistics.median(ratios) >= limit:
        return "WITHIN"
    return "SLOWER" if spread(ratios)[1] < limit else "UNDECIDED"
