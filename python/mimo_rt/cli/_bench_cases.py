"""The measurements behind ``mimo-rt bench``. Each says how many bytes its step must read."""

from __future__ import annotations

import hashlib
import statistics
import time
from dataclasses import dataclass
from typing import Any

from .. import _C
from ..errors import MimoRtError

DECODE_ROWS = 8
PREFILL_TOKENS = 512
_WARM_UP_STEPS = 4
_MIN_SAMPLES = 5
_MAX_STEPS = 4096


@dataclass(frozen=True)
class Measurement:
    """Times of one case. ``num_bytes``: packed weight bytes that one step has to read."""

    case: str
    times_s: tuple[float, ...]
    num_tokens: int
    num_bytes: float
    is_bytes_estimated: bool = False

    @property
    def median_s(self) -> float:
        return statistics.median(self.times_s)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.median_s

    def quantiles_s(self) -> tuple[float, float]:
        """10th and 90th percentile."""
        if len(self.times_s) < 2:
            return self.times_s[0], self.times_s[0]
        cuts = statistics.quantiles(self.times_s, n=10, method="inclusive")
        return cuts[0], cuts[-1]

    def record(self, bandwidth_gbs: float) -> dict[str, Any]:
        low, high = self.quantiles_s()
        gbs = self.num_bytes / self.median_s / 1e9
        return {
            "case": self.case,
            "median_us": round(self.median_s * 1e6, 2),
            "p10_us": round(low * 1e6, 2),
            "p90_us": round(high * 1e6, 2),
            "n": len(self.times_s),
            "tokens": self.num_tokens,
            "tokens_per_s": round(self.tokens_per_s, 3),
            "bytes": round(self.num_bytes),
            "bytes_estimated": self.is_bytes_estimated,
            "gbs": round(gbs, 3),
            "bound_us": round(self.num_bytes / bandwidth_gbs / 1e3, 2),
            "bandwidth_fraction": round(gbs / bandwidth_gbs, 4),
        }

    def row(self, bandwidth_gbs: float) -> tuple[str, ...]:
        low, high = self.quantiles_s()
        gbs = self.num_bytes / self.median_s / 1e9
        mark = "~" if self.is_bytes_estimated else ""
        return (
            self.case,
            f"{self.median_s * 1e3:.3f}",
            f"{low * 1e3:.3f}..{high * 1e3:.3f}",
            str(len(self.times_s)),
            f"{mark}{self.num_bytes / 1e9:.4f}",
            f"{mark}{gbs:.2f}",
            f"{mark}{100 * gbs / bandwidth_gbs:.1f}",
            f"{self.tokens_per_s:.2f}",
        )


class Bench:
    """Runs cases on one engine."""

    def __init__(self, engine: Any, num_context: int, seconds: float) -> None:
        self.engine = engine
        self._num_context = num_context
        self._seconds = seconds
        self.bandwidths: list[float] = []
        longest = max(num_context + _MAX_STEPS, PREFILL_TOKENS + 1)
        limit = min(longest, engine.config.max_position_embeddings)
        if num_context >= limit:
            raise MimoRtError(
                f"[bench] --context: expected 1..{limit - 1} for this model, got {num_context}."
            )
        self._session = _C.Session(engine, max_context=limit)

    @property
    def bandwidth_gbs(self) -> float:
        """The best of all measurements: what the machine can do."""
        return max(self.bandwidths)

    def measure_bandwidth(self) -> None:
        self.bandwidths += [self.engine.measure_bandwidth_gbs(0.3) for _ in range(3)]

    def check_rows_agree(self) -> str:
        """Logits of tokens one by one and eight at a time must be the same bits; their hash."""
        ids = _prompt(self.engine.config, 2 * DECODE_ROWS)
        alone = self._session.logits(ids, 1).tobytes()
        if alone != self._session.logits(ids, DECODE_ROWS).tobytes():
            raise MimoRtError(
                f"[bench] logits of 1 and of {DECODE_ROWS} rows per step differ: nothing is timed."
            )
        return hashlib.sha256(alone).hexdigest()[:8]

    def decode(self) -> Measurement:
        """One token per step; a sample is the time between two tokens."""
        stamps: list[int] = []
        deadline = time.monotonic() + self._seconds

        def on_token(_ids: list[int], _text: str) -> bool:
            stamps.append(time.perf_counter_ns())
            is_enough = len(stamps) > _WARM_UP_STEPS + _MIN_SAMPLES
            return not (is_enough and time.monotonic() > deadline)

        self._session.reset()
        prompt = _prompt(self.engine.config, self._num_context)
        result = self._session.generate(prompt, _greedy(_MAX_STEPS), on_token)
        times = [(b - a) / 1e9 for a, b in zip(stamps, stamps[1:], strict=False)]
        return Measurement(
            f"decode/ctx{self._num_context}/1", tuple(times[_WARM_UP_STEPS:] or times), 1,
            result.stats.weight_bytes_per_step,
        )

    def decode_rows(self) -> Measurement:
        """Eight tokens per step, as a verification of drafts would run."""
        num_steps = 4
        ids = _prompt(self.engine.config, num_steps * DECODE_ROWS)
        times = _repeat(lambda: self._session.logits(ids, DECODE_ROWS), self._seconds)
        config = self.engine.config
        # The core does not report the routing of this call: count as if routing were uniform.
        num_active = 0.0
        if config.num_experts:
            share = 1 - config.experts_per_token / config.num_experts
            num_active = config.num_experts * (1 - share**DECODE_ROWS)
        return Measurement(
            f"decode/ctx0/{DECODE_ROWS}", tuple(t / num_steps for t in times), DECODE_ROWS,
            self._step_bytes(num_active), is_bytes_estimated=True,
        )

    def prefill(self) -> Measurement:
        """A prompt of 512 tokens to its first output token."""
        ids = _prompt(self.engine.config, PREFILL_TOKENS)

        def once() -> None:
            self._session.reset()
            self._session.generate(ids, _greedy(1))

        times = _repeat(once, self._seconds, min_samples=3)
        num_bytes = self._step_bytes(self.engine.config.num_experts)
        return Measurement(f"prefill/{PREFILL_TOKENS}", times, PREFILL_TOKENS, num_bytes)

    def _step_bytes(self, num_active_experts: float) -> float:
        num_moe = sum(layer.is_moe for layer in self.engine.config.layers)
        experts = num_moe * num_active_experts * self.engine.expert_bytes
        return self.engine.dense_bytes_per_step + experts


def _repeat(call: Any, seconds: float, min_samples: int = _MIN_SAMPLES) -> tuple[float, ...]:
    """Times of ``call``, warm, for about ``seconds``."""
    call()
    times: list[float] = []
    deadline = time.monotonic() + seconds
    while len(times) < min_samples or time.monotonic() < deadline:
        begin = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - begin) / 1e9)
    return tuple(times)


def _greedy(max_tokens: int) -> Any:
    sampling = _C.SamplingParams(temperature=0.0)
    return _C.GenerateOptions(sampling=sampling, max_tokens=max_tokens, ignore_eos=True)


def _prompt(config: Any, num_tokens: int) -> list[int]:
    """Spread over the vocabulary, so that routing is spread too."""
    return [(7919 * i + 11) % config.vocab_size for i in range(num_tokens)]
