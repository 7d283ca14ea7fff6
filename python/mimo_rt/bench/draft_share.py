"""The draft's share of a round's time, by the traces of rounds that draft and verify a whole block."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .work import spread_prompt

_NUM_ROUNDS = 8


@dataclass(frozen=True)
class DraftShare:
    """Medians over the rounds. The draft's time ends with its last proposal: context of the tokens
    before, the block, the heads."""

    draft_us: float
    round_us: float

    def record(self) -> dict[str, float]:
        return {
            "draft_step_us": round(self.draft_us, 1),
            "round_us": round(self.round_us, 1),
            "draft_share_of_round": round(self.draft_us / self.round_us, 4),
        }

    def to_text(self) -> str:
        return (f"a round that drafts a whole block takes {self.round_us:.0f} us, its draft "
                f"{self.draft_us:.0f}: {100 * self.draft_us / self.round_us:.1f} %")


def measure_draft_share(session: Any) -> DraftShare:
    """Runs a few rounds, each after a step of half a block: what a usual round has accepted."""
    engine = session.engine
    num_tokens = engine.draft_config.block_size // 2 + 1
    chunk_tokens = engine.options.prefill_chunk_tokens
    if chunk_tokens + num_tokens < session.max_context:  # with text before it, where there is room
        num_tokens += chunk_tokens
    ids = spread_prompt(session.config, num_tokens)
    times = []
    engine.set_tracing(True)
    try:
        for _ in range(1 + _NUM_ROUNDS):  # the first is the warm-up
            session.draft_logits(ids)
            times.append(_times_us(json.loads(engine.trace_json())["traceEvents"]))
    finally:
        engine.set_tracing(False)
    draft_us, round_us = zip(*times[1:], strict=True)
    return DraftShare(statistics.median(draft_us), statistics.median(round_us))


def _times_us(events: Iterable[dict[str, Any]]) -> tuple[float, float]:
    """(draft, round) of a trace: from the first task to the last proposal, and to the end."""
    events = list(events)
    (measured,) = (e["pid"] for e in events if e["args"].get("name") == "measured")
    tasks = [e for e in events if e["ph"] == "X" and e["pid"] == measured]
    begin = min(e["ts"] for e in tasks)
    proposed = max(e["ts"] + e["dur"] for e in tasks if e["cat"] == "draft_sample")
    return proposed - begin, max(e["ts"] + e["dur"] for e in tasks) - begin
