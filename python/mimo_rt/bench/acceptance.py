"""How much of a draft is accepted, and what that is worth: the same prompts in several modes.

The modes of a prompt run one after the other, and each prompt begins with another mode, so that
none always meets the machine in the same state. Records use the names of `DraftStats.to_dict`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import MimoRtError
from ..results import DraftStats, GenerationResult
from .prompts import BenchPrompt

PLAIN = "plain"
MODES = (PLAIN, "fixed", "adaptive")
Progress = Callable[[int, int], Any]


@dataclass(frozen=True)
class Generation:
    """One prompt in one mode. ``equals_plain``: the same tokens as plain decoding; None: the
    mode promises only the same distribution."""

    prompt: BenchPrompt
    mode: str
    result: GenerationResult
    equals_plain: bool | None

    @property
    def decode_s(self) -> float:
        """Time of all output tokens but the first."""
        stats = self.result.stats
        return self.num_decoded / stats.decode_tokens_per_s if stats.decode_tokens_per_s else 0.0

    @property
    def num_decoded(self) -> int:
        """Output tokens after the first."""
        return max(self.result.usage.completion_tokens - 1, 0)


def run_prompts(
    session: Any,
    prompts: Sequence[BenchPrompt],
    modes: Sequence[str],
    params: dict[str, Any],
    progress: Progress | None = None,
    plain: Any = None,
) -> list[Generation]:
    """Generate for every prompt in plain decoding and in each of ``modes``.

    Args:
        params: arguments of `Session.generate`; with a temperature above 0 they need a seed.
        plain: the session that decodes plainly; None: the same one, which then still makes the
            context of its draft.
    """
    modes = [PLAIN, *(mode for mode in modes if mode != PLAIN)]
    # Lookups, which have no draft model, propose tokens whatever draft_proposal says.
    is_exact = (params.get("temperature") == 0 or params.get("draft_proposal", "argmax") == "argmax"
                or session.engine.draft_config is None)
    sessions = {mode: session for mode in modes} | ({PLAIN: plain} if plain is not None else {})
    for mode in dict.fromkeys((PLAIN, modes[-1]) if plain is not None else (modes[-1],)):  # warm-up
        generate(sessions[mode], prompts[0], mode, {**params, "max_tokens": 8})
    done = []
    for number, prompt in enumerate(prompts):
        shift = number % len(modes)
        results = {
            mode: generate(sessions[mode], prompt, mode, params)
            for mode in modes[shift:] + modes[:shift]
        }
        expected = results[PLAIN].token_ids
        for mode in modes:
            equals = results[mode].token_ids == expected if is_exact else None
            done.append(Generation(prompt, mode, results[mode], equals))
        if progress is not None:
            progress(number + 1, len(prompts))
    return done


def generate(session: Any, prompt: BenchPrompt, mode: str, params: dict[str, Any]) -> Any:
    """One generation from an empty cache."""
    session.reset()
    params = {**params, "draft_mode": "off" if mode == PLAIN else mode}
    call = session.chat if prompt.is_chat else session.generate
    return call(prompt.content, **params)


def require_equal(generations: Iterable[Generation]) -> None:
    """Raise MimoRtError when a draft has changed an output."""
    bad = [g for g in generations if g.equals_plain is False]
    if bad:
        first = bad[0]
        raise MimoRtError(
            f"[bench] {len(bad)} outputs differ from plain decoding, the first with prompt "
            f"'{first.prompt.id}' in mode '{first.mode}': a draft must never change the text. "
            "Please report this."
        )


def record(generation: Generation) -> dict[str, Any]:
    """One line per prompt and mode."""
    stats = generation.result.stats
    return {
        "case": f"acceptance/{generation.prompt.category}/{generation.mode}/prompt",
        "category": generation.prompt.category,
        "id": generation.prompt.id,
        "mode": generation.mode,
        **stats.draft.to_dict(),
        "prompt_tokens": generation.result.usage.prompt_tokens,
        "finish_reason": generation.result.finish_reason,
        "ttft_ms": round(stats.ttft_ms, 3),
        "tokens_per_s": round(stats.decode_tokens_per_s, 3),
        "equals_plain": generation.equals_plain,
    }


def add_up(parts: Iterable[DraftStats]) -> DraftStats:
    """The statistics of several generations as of one."""
    parts = list(parts)
    num_rounds = sum(part.num_rounds for part in parts)
    num_drafts = sum(part.num_draft_tokens for part in parts)
    num_accepted = sum(part.num_accepted_tokens for part in parts)
    return DraftStats(
        num_spec_tokens=max((part.num_spec_tokens for part in parts), default=0),
        completion_tokens=sum(part.completion_tokens for part in parts),
        num_rounds=num_rounds,
        num_drafted_rounds=sum(part.num_drafted_rounds for part in parts),
        num_draft_tokens=num_drafts,
        num_accepted_tokens=num_accepted,
        acceptance_length=1 + num_accepted / num_rounds if num_rounds else 0.0,
        acceptance_rate=num_accepted / num_drafts if num_drafts else 0.0,
        accepted_at_pos=_columns([part.accepted_at_pos for part in parts]),
        drafted_at_pos=_columns([part.drafted_at_pos for part in parts]),
        accepted_histogram=_columns([part.accepted_histogram for part in parts]),
        width_histogram=_columns([part.width_histogram for part in parts]),
    )


def _columns(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Sums of the columns; shorter rows end in zeros."""
    length = max(map(len, rows), default=0)
    return tuple(sum(row[i] for row in rows if i < len(row)) for i in range(length))
