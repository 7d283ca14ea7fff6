"""Whole rounds of one rank's slice of MiMo-V2.5-Pro-FP4, and what they promise of a node of eight GPUs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .. import _C
from ..streaming import call_interruptibly
from .measurement import MIN_SAMPLES, Measurement, spread
from .work import active_experts, spread_prompt

NUM_RANKS = 8
ACCEPTED = (6.30, 5.56, 4.29, 3.18)  # tokens per round of the published draft: WebDev, Math500, SWE-Bench, MT-Bench
NOT_COUNTED = "the embeddings and the two lm_heads, which the ranks share by vocabulary"
_ROUNDS = 128  # of a generation
_WARM_UP_ROUNDS = 4  # of each


@dataclass(frozen=True)
class Projection:
    """Tokens per second of the node, when a round emits ``accepted`` of them.

    ``without_allreduce``: if all-reduces took no time, which is what one GPU can measure.
    """

    accepted: float
    tokens_per_s: float
    without_allreduce: float


def count_allreduces(num_layers: int, num_draft_layers: int) -> int:
    """Of a round: after attention and after the MLP of every layer, the draft's included.

    ``NOT_COUNTED`` names what ranks exchange besides, once each per round.
    """
    return 2 * (num_layers + num_draft_layers)


def project(round_s: float, allreduce_s: float, accepted: Sequence[float] = ACCEPTED) -> list[Projection]:
    """What a node emits whose ranks take ``round_s`` each and ``allreduce_s`` for all all-reduces of a round.

    Tokens per second are those of many rounds together: ``round_s`` is their mean.
    """
    return [Projection(a, a / (round_s + allreduce_s), a / round_s) for a in accepted]


@dataclass(frozen=True)
class SliceRounds:
    """Full rounds of one engine, each with its time, its experts and its bytes.

    Attributes:
        times_s: of every round.
        num_bytes: packed weight bytes that it had to read: the target's without experts, active experts, the draft's.
        active: distinct experts per layer that has experts.
        uniform: the same, if the tokens of a round were routed evenly and independently.
        num_rows: tokens that a round verifies.
        num_others: rounds that are not counted: warm-up, and narrower ones at the end of a generation.
    """

    times_s: tuple[float, ...]
    num_bytes: tuple[float, ...]
    active: tuple[float, ...]
    uniform: float
    num_rows: int
    num_others: int

    def measurement(self, case: str) -> Measurement:
        """Medians of time and bytes; what else is known goes to ``facts``."""
        low, high = spread(self.active)
        facts = {
            "mean_us": round(statistics.fmean(self.times_s) * 1e6, 2),
            "active_experts": round(statistics.fmean(self.active), 3),
            "active_experts_p10": round(low, 3),
            "active_experts_p90": round(high, 3),
            "active_experts_min": round(min(self.active), 3),
            "active_experts_max": round(max(self.active), 3),
            "active_experts_uniform": round(self.uniform, 3),
        }
        return Measurement(case, self.times_s, self.num_rows, statistics.median(self.num_bytes), facts=facts)


def round_bytes(engine: Any, num_active_experts: float) -> float:
    """Packed weight bytes of a round with a draft; the experts are those of all layers together."""
    fixed = engine.dense_bytes_per_step + engine.draft_bytes_per_round
    return fixed + num_active_experts * engine.expert_bytes


def measure_rounds(engine: Any, num_context: int, seconds: float) -> SliceRounds:
    """Greedy generations for about ``seconds`` whose rounds all verify a whole block.

    No callback is given, so that rounds run many to a launch, as they do when nobody has to see every token at once.
    """
    config, num_rows = engine.config, engine.max_draft_tokens + 1
    session = _C.Session(engine, max_context=num_context + _ROUNDS + num_rows)
    options = _C.GenerateOptions(
        sampling=_C.SamplingParams(temperature=0.0), max_tokens=_ROUNDS, ignore_eos=True, want_rounds=True,
        draft=_C.DraftOptions(mode=_C.DraftOptions.Mode.fixed),
    )
    rounds: list[Any] = []
    num_all, deadline = 0, time.monotonic() + seconds
    while len(rounds) < MIN_SAMPLES or time.monotonic() < deadline:
        generate = partial(session.generate, spread_prompt(config, num_context, num_all), options)
        result = call_interruptibly(generate, session.cancel)
        num_all += len(result.rounds)
        rounds += [r for r in result.rounds[_WARM_UP_ROUNDS:] if r.num_rows == num_rows]
    num_moe = sum(layer.is_moe for layer in config.layers)
    return SliceRounds(
        tuple(r.ns / 1e9 for r in rounds),
        tuple(round_bytes(engine, r.num_active_experts) for r in rounds),
        tuple(r.num_active_experts / max(num_moe, 1) for r in rounds),
        active_experts(config, num_rows), num_rows, num_all - len(rounds),
    )
