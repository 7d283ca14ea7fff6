"""The prompts of a category taken together, mode beside mode."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..results import DraftStats
from .acceptance import PLAIN, Generation, add_up
from .measurement import spread

ALL = "all"


@dataclass(frozen=True)
class Summary:
    """One mode over the prompts of one category.

    Attributes:
        num_compared, num_equal: outputs that should equal those of plain decoding, and that do.
        tokens_per_s: decoded tokens of all prompts over their time; first tokens not counted.
        ratios: per prompt, this mode's speed over that of plain decoding.
    """

    category: str
    mode: str
    num_prompts: int
    num_compared: int
    num_equal: int
    draft: DraftStats
    mean_acceptance_length: float
    tokens_per_s: float
    us_per_token: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float | None:
        """Speed over plain decoding: the median over the prompts."""
        return statistics.median(self.ratios) if self.ratios else None

    def record(self) -> dict[str, Any]:
        line: dict[str, Any] = {
            "case": f"acceptance/{self.category}/{self.mode}",
            "category": self.category,
            "mode": self.mode,
            "n": self.num_prompts,
            "num_compared": self.num_compared,
            "num_equal": self.num_equal,
            **self.draft.to_dict(),
            "tokens_per_s": round(self.tokens_per_s, 3),
        }
        # Of all steps together; above that, as aiperf has it, the mean over the prompts.
        line["token_weighted_acceptance_length"] = line["mean_acceptance_length"]
        line["mean_acceptance_length"] = round(self.mean_acceptance_length, 4)
        if self.us_per_token:
            low, high = spread(self.us_per_token)
            line |= {"median_us": round(statistics.median(self.us_per_token), 2),
                     "p10_us": round(low, 2), "p90_us": round(high, 2)}
        if self.ratios:
            low, high = spread(self.ratios)
            line |= {"over_plain": round(statistics.median(self.ratios), 4),
                     "over_plain_p10": round(low, 4), "over_plain_p90": round(high, 4)}
        return line


def summarize(generations: Sequence[Generation]) -> list[Summary]:
    """A summary for each category and mode, and for all categories together."""
    categories = list(dict.fromkeys(g.prompt.category for g in generations))
    modes = list(dict.fromkeys(g.mode for g in generations))
    summaries = []
    for category in [*categories, ALL] if len(categories) > 1 else categories:
        chosen = [g for g in generations if category in (ALL, g.prompt.category)]
        plain = [g for g in chosen if g.mode == PLAIN]
        for mode in modes:
            summaries.append(_summary(category, mode, [g for g in chosen if g.mode == mode], plain))
    return summaries


def _summary(
    category: str, mode: str, generations: list[Generation], plain: list[Generation]
) -> Summary:
    seconds = sum(g.decode_s for g in generations)
    lengths = [g.result.stats.draft.acceptance_length for g in generations
               if g.result.stats.draft.num_rounds]
    # A prompt that ends with its first token has no speed.
    timed = [(g, p) for g, p in zip(generations, plain, strict=True) if g.decode_s and p.decode_s]
    return Summary(
        category=category,
        mode=mode,
        num_prompts=len(generations),
        num_compared=sum(g.equals_plain is not None for g in generations),
        num_equal=sum(g.equals_plain is True for g in generations),
        draft=add_up(g.result.stats.draft for g in generations),
        mean_acceptance_length=statistics.fmean(lengths) if lengths else 0.0,
        tokens_per_s=sum(g.num_decoded for g in generations) / seconds if seconds else 0.0,
        us_per_token=tuple(1e6 * g.decode_s / g.num_decoded for g, _ in timed),
        ratios=tuple((g.num_decoded / g.decode_s) / (p.num_decoded / p.decode_s)
                     for g, p in timed),
    )
