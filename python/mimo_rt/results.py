"""What a generation returns: plain immutable values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DraftStats:
    """Speculative decoding of one generation; names and definitions as in vLLM and aiperf.

    The acceptance length counts the token that every round emits beyond the accepted drafts:
    1 + accepted / rounds; 0 without rounds. A block cut by a stop or a limit counts what it
    emitted.

    Attributes:
        num_spec_tokens: drafts that a round may verify; 0: drafting was off.
        completion_tokens: of the whole output, the first token included.
        num_rounds: verification steps, those without a draft included.
        num_drafted_rounds: those that verified drafts.
        accepted_at_pos, drafted_at_pos: rounds that accepted, or verified, draft i + 1.
        accepted_histogram, width_histogram: rounds that accepted, or verified, n drafts.
        per_step_accepted, per_step_drafted: of every round, when asked for with ``want_rounds``;
            their sums are num_accepted_tokens and num_draft_tokens.
    """

    num_spec_tokens: int = 0
    completion_tokens: int = 0
    num_rounds: int = 0
    num_drafted_rounds: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    acceptance_length: float = 0.0
    acceptance_rate: float = 0.0
    accepted_at_pos: tuple[int, ...] = ()
    drafted_at_pos: tuple[int, ...] = ()
    accepted_histogram: tuple[int, ...] = ()
    width_histogram: tuple[int, ...] = ()
    per_step_accepted: tuple[int, ...] | None = None
    per_step_drafted: tuple[int, ...] | None = None

    @classmethod
    def from_core(
        cls, result: Any, num_spec_tokens: int, wants_rounds: bool = False
    ) -> DraftStats:
        """The extension module's numbers as a plain value; lists end at the widest round."""
        stats = result.stats.draft
        names = [field.name for field in dataclasses.fields(cls) if hasattr(stats, field.name)]
        values: dict[str, Any] = {name: getattr(stats, name) for name in names}
        values["num_spec_tokens"] = num_spec_tokens
        values["completion_tokens"] = len(result.token_ids)
        if wants_rounds:
            values["per_step_accepted"] = tuple(step.num_tokens - 1 for step in result.rounds)
            values["per_step_drafted"] = tuple(step.num_drafts for step in result.rounds)
        widest = max((n for n, count in enumerate(stats.width_histogram) if count), default=0)
        for name in ("accepted_at_pos", "drafted_at_pos"):
            values[name] = tuple(values[name][:widest])
        for name in ("accepted_histogram", "width_histogram"):
            values[name] = tuple(values[name][: widest + 1])
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, under the names of aiperf's acceptance record and of vLLM, where they have one.

        ``acceptance_per_position``: of all drafted steps, how many accepted draft i + 1;
        ``acceptance_when_verified``: of those that verified it.
        """
        num_drafted = [self.num_drafted_rounds] * len(self.accepted_at_pos)
        steps = {} if self.per_step_accepted is None or self.per_step_drafted is None else {
            "per_step_accepted": list(self.per_step_accepted),
            "per_step_drafted": list(self.per_step_drafted),
        }
        return {
            "num_spec_tokens": self.num_spec_tokens,
            "completion_tokens": self.completion_tokens,
            "mean_acceptance_length": round(self.acceptance_length, 4),
            "draft_acceptance_rate": round(self.acceptance_rate, 4),
            "acceptance_histogram": _counts(self.accepted_histogram),
            "width_histogram": _counts(self.width_histogram),
            "num_accepted_draft_tokens": self.num_accepted_tokens,
            "num_draft_tokens": self.num_draft_tokens,
            "num_spec_steps": self.num_rounds,
            "num_drafted_steps": self.num_drafted_rounds,
            "accepted_at_pos": list(self.accepted_at_pos),
            "drafted_at_pos": list(self.drafted_at_pos),
            "acceptance_per_position": _shares(self.accepted_at_pos, num_drafted),
            "acceptance_when_verified": _shares(self.accepted_at_pos, self.drafted_at_pos),
            **steps,
        }


@dataclass(frozen=True)
class GenerationStats:
    """Times and rates of one generation; the definitions are in ``mimo_rt/stats.h``.

    TTFT is submit to first token; TPOT is (end to end - TTFT) / (output tokens - 1); GB is 1e9
    bytes.
    """

    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    num_steps: int = 0
    ttft_ms: float = 0.0
    tpot_ms: float = 0.0
    e2e_ms: float = 0.0
    prefill_tokens_per_s: float = 0.0
    decode_tokens_per_s: float = 0.0
    weight_bytes_per_step: float = 0.0
    decode_gbs: float = 0.0
    bandwidth_fraction: float = 0.0
    draft: DraftStats = DraftStats()

    @classmethod
    def from_core(cls, stats: Any, draft: DraftStats) -> GenerationStats:
        """The extension module's numbers as a plain value."""
        values = {field.name: getattr(stats, field.name) for field in dataclasses.fields(cls)}
        return cls(**{**values, "draft": draft})

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts and lists, ready for JSON; ``draft`` as `DraftStats.to_dict` has it."""
        return {**dataclasses.asdict(self), "draft": self.draft.to_dict()}


@dataclass(frozen=True)
class Usage:
    """Token counts under the names of the OpenAI API."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class TokenLogprob:
    """Log softmax of the raw logits, before penalties and temperature."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class TokenLogprobs:
    """The chosen token and the most likely ones, best first."""

    chosen: TokenLogprob
    alternatives: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class GenerationResult:
    """The outcome of one generation.

    Attributes:
        text: output without special tokens and (by default) without the stop string; empty when
            the model has no tokenizer.
        token_ids: output only; a stop token that ended it is included.
        finish_reason: ``"stop"``, ``"length"`` or ``"abort"`` (cancelled).
        stop_reason: the stop string or the id of ``stop_token_ids`` that ended it; None for the
            model's own end token.
        seed: the one that was used, also when none was given: pass it to repeat the output.
        logprobs: one entry per token when asked for, else None.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: str | int | None
    usage: Usage
    stats: GenerationStats
    seed: int
    logprobs: tuple[TokenLogprobs, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts and lists, ready for JSON."""
        fields = {**dataclasses.asdict(self), "stats": self.stats.to_dict()}
        return json.loads(json.dumps(fields))


@dataclass(frozen=True)
class StreamEvent:
    """A piece of a running generation; the texts of all events add up to the result's text.

    Text is held back while a character is incomplete or a stop string may be forming. The last
    event, and only that one, has ``result``.
    """

    text: str
    token_ids: list[int]
    result: GenerationResult | None = None

    @property
    def finished(self) -> bool:
        """Whether this is the last event, the one with the result."""
        return self.result is not None


@dataclass(frozen=True)
class ScoreResult:
    """How likely a text is under the model.

    Attributes:
        token_ids: the tokens of the text.
        logprobs: of each token given those before it; the first has none (None).
        loss: mean negative logprob, nat per token, over all tokens but the first.
    """

    token_ids: list[int]
    logprobs: list[float | None]
    loss: float

    @property
    def num_scored_tokens(self) -> int:
        """Tokens that have a logprob: all but the first."""
        return len(self.token_ids) - 1


@dataclass(frozen=True)
class SessionStats:
    """The state of a session and its engine; ``last`` is the most recent generation.

    ``packed_cache``: "off", "hit", "written" or "failed" for "target" and, if there is one,
    "draft"; the engine's `packed_cache` says which file, and why it failed.
    """

    backend: str
    activations: str
    num_workers: int
    weight_bytes: int
    dense_bytes_per_step: int
    expert_bytes: int
    kv_bytes: int
    max_context: int
    num_cached_tokens: int
    num_generations: int
    num_prompt_tokens: int
    num_output_tokens: int
    bandwidth_gbs: float | None
    packed_cache: dict[str, str]
    last: GenerationStats | None

    def to_dict(self) -> dict[str, Any]:
        """Nested dicts, ready for JSON."""
        return {**dataclasses.asdict(self), "last": self.last and self.last.to_dict()}


def result_from_core(
    result: Any, *, text: str, seed: int, stop_token_ids: tuple[int, ...], wants_logprobs: bool,
    draft: DraftStats,
) -> GenerationResult:
    """Turn the extension module's result into a `GenerationResult`."""
    stats = GenerationStats.from_core(result.stats, draft)
    stop_reason: str | int | None = result.stop_string or None
    if stop_reason is None and result.stop_token_id in stop_token_ids:
        stop_reason = result.stop_token_id
    num_output = len(result.token_ids)
    usage = Usage(
        prompt_tokens=stats.num_prompt_tokens,
        completion_tokens=num_output,
        total_tokens=stats.num_prompt_tokens + num_output,
        cached_tokens=stats.num_cached_tokens,
    )
    logprobs = None
    if wants_logprobs:
        logprobs = tuple(
            TokenLogprobs(_logprob(entry.chosen), tuple(map(_logprob, entry.alternatives)))
            for entry in result.logprobs
        )
    return GenerationResult(
        text=text,
        token_ids=list(result.token_ids),
        finish_reason=str(result.finish_reason),
        stop_reason=stop_reason,
        usage=usage,
        stats=stats,
        seed=seed,
        logprobs=logprobs,
    )


def _logprob(entry: Any) -> TokenLogprob:
    return TokenLogprob(entry.token_id, entry.logprob)


def _counts(histogram: Sequence[int]) -> dict[str, int]:
    return {str(n): count for n, count in enumerate(histogram)}


def _shares(parts: Sequence[int], wholes: Sequence[int]) -> list[float]:
    return [round(p / w, 4) if w else 0.0 for p, w in zip(parts, wholes, strict=True)]
