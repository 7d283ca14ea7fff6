"""Steps of one engine: decoding, alone or shared by sessions, verification of drafts, prefill."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from .. import _C
from ..errors import MimoRtError
from .breakdown import measure_breakdown, measure_step_breakdowns
from .contention import Competitors, fair_slowdown
from .measurement import MIN_SAMPLES, Measurement, Roofs, repeat, take_turns
from .rates import TracedStep
from .sessions import NUM_DRAFTED_TOKENS, NUM_TOKENS, ConcurrentSessions
from .work import active_experts, spread_prompt, step_bytes, step_flops, step_work

DECODE_ROWS = 8
PREFILL_TOKENS = 512
SESSION_COUNTS = (1, 2, 4, 8, 16)
VERIFY_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 16)
_WARM_UP_STEPS = 4
_STEPS_PER_PASS = 64
_WINDOW_S = 0.5  # a reading takes up to 0.15 s
_TRACED_STEPS = 32
_TRACED_PREFILLS = 4
_STEPS_PER_CALL = 4  # of `logits`: the first one has workers to wake
_CONTENTION_ROUNDS = 4
_SETTLE_S = 0.1  # a new process computes by then


class Bench:
    """Runs cases on one engine."""

    def __init__(self, engine: Any, num_context: int, seconds: float) -> None:
        self.engine = engine
        self._num_context = num_context
        self._seconds = seconds
        self.bandwidths: list[float] = []
        self._peak: tuple[float, str] | None = None
        longest = max(num_context + _STEPS_PER_PASS, PREFILL_TOKENS + 1)
        limit = min(longest, engine.config.max_position_embeddings)
        if num_context > limit - 2:  # a step is timed from one token to the next
            raise MimoRtError(
                f"[bench] --context: expected 1..{limit - 2} for this model, got {num_context}."
            )
        self._session = _C.Session(engine, max_context=limit)

    @property
    def bandwidth_gbs(self) -> float:
        """The best of all measurements: what the machine can do."""
        return max(self.bandwidths)

    @property
    def roofs(self) -> Roofs:
        return Roofs(self.bandwidth_gbs, *(self._peak or ()))

    def measure_bandwidth(self) -> None:
        self.bandwidths += [self.engine.measure_bandwidth_gbs(0.3) for _ in range(3)]

    def measure_peak(self) -> None:
        self._peak = self.engine.measure_vector_peak(0.4)

    def check_rows_agree(self, num_rows: int = DECODE_ROWS) -> str:
        """Logits of tokens one by one and several at a time must be the same bits; their hash."""
        ids = spread_prompt(self.engine.config, 2 * DECODE_ROWS)
        alone = self._session.logits(ids, 1).tobytes()
        if alone != self._session.logits(ids, num_rows).tobytes():
            raise MimoRtError(
                f"[bench] logits of 1 and of {num_rows} rows per step differ: nothing is timed."
            )
        return hashlib.sha256(alone).hexdigest()[:8]

    def decode(self) -> Measurement:
        """One token per step; a sample is the time between two tokens.

        Memory is read before and after every half second: a virtual machine's cores move between core
        complexes, and the best reading of all need not be of those that decoded.
        """
        windows: list[tuple[float, ...]] = []
        reads = [self._read_gbs()]
        deadline = time.monotonic() + self._seconds
        num_bytes = 0
        while sum(map(len, windows)) < MIN_SAMPLES or time.monotonic() < deadline:
            times, num_bytes = self._window_times(min(_WINDOW_S, self._seconds))
            windows.append(times)
            reads.append(self._read_gbs())
        fractions = [
            num_bytes / statistics.median(times) / 1e9 / statistics.fmean(beside)
            for times, beside in zip(windows, pairwise(reads), strict=True)
        ]
        return Measurement(
            f"decode/ctx{self._num_context}/1", sum(windows, ()), 1, num_bytes,
            step_flops(self.engine.config, 1, 1),
            in_situ_fraction=statistics.median(fractions),
        )

    def _read_gbs(self) -> float:
        self.bandwidths.append(self.engine.measure_bandwidth_gbs(0.05))
        return self.bandwidths[-1]

    def _window_times(self, seconds: float) -> tuple[tuple[float, ...], int]:
        """Times between tokens for about that long; weight bytes of such a step."""
        deadline = time.monotonic() + seconds
        window, num_bytes = self._pass_times(deadline)
        while time.monotonic() < deadline:
            times, num_bytes = self._pass_times(deadline)
            window += times
        return window, num_bytes

    def _pass_times(self, deadline: float) -> tuple[tuple[float, ...], int]:
        """The same, warm, from a new context on: a step takes longer behind more tokens."""
        stamps: list[int] = []

        def on_token(_ids: list[int], _text: str) -> bool:
            stamps.append(time.perf_counter_ns())
            is_enough = len(stamps) > _WARM_UP_STEPS + MIN_SAMPLES
            return not (is_enough and time.monotonic() > deadline)

        self._session.reset()
        prompt = spread_prompt(self.engine.config, self._num_context)
        result = self._session.generate(prompt, greedy(_STEPS_PER_PASS), on_token)
        times = tuple((b - a) / 1e9 for a, b in pairwise(stamps))
        return times[_WARM_UP_STEPS:] or times, result.stats.weight_bytes_per_step

    def trace_decode(self) -> TracedStep:
        """Where the time of one-token steps goes. Tracing reads the clock three times a task."""
        breakdown, _ = measure_breakdown(
            self.engine, self._session, self._num_context, _TRACED_STEPS
        )
        return TracedStep(1, breakdown, step_work(self.engine, 1, 1))

    def trace_rows(self, rows: Sequence[int]) -> list[TracedStep]:
        """The same of steps as in `verify`, widths taking turns, for as long as a case."""
        breakdowns = measure_step_breakdowns(
            self.engine, [self._row_steps(n) for n in rows], _TRACED_STEPS, self._seconds
        )
        return [TracedStep(n, breakdown, step_work(self.engine, n, n))
                for n, breakdown in zip(rows, breakdowns, strict=True)]

    def trace_prefill(self) -> TracedStep:
        """The same of the last chunk of `prefill`'s prompt."""
        chunk = self.engine.prefill_plan.options.max_tokens
        num_rows = (PREFILL_TOKENS - 1) % chunk + 1
        (breakdown,) = measure_step_breakdowns(
            self.engine, [self._prefill_once], _TRACED_PREFILLS, self._seconds
        )
        return TracedStep(num_rows, breakdown, step_work(self.engine, num_rows, 1))

    def _gather_workers(self) -> None:
        """Let all workers take part again, whatever the case before has taught the engine."""
        self.engine.set_tracing(True)  # a traced step runs on all of them
        self._session.logits(spread_prompt(self.engine.config, 1))
        self.engine.set_tracing(False)

    def contention(self, num_cores: int) -> list[Measurement]:
        """One token per step while 0, 1 or ``num_cores`` other processes compute, taking turns.

        What counts is the mean: others get whole slices of time, now in this step, now in that.
        """
        counts = sorted({0, 1, num_cores})
        times: dict[int, list[float]] = {count: [] for count in counts}
        used_s, wall_s = dict.fromkeys(counts, 0.0), dict.fromkeys(counts, 0.0)
        num_bytes = 0
        for _ in range(_CONTENTION_ROUNDS):
            for count in counts:
                self._gather_workers()
                with Competitors(count) as others:
                    time.sleep(_SETTLE_S)
                    used, begin = others.cpu_seconds(), time.monotonic()
                    window, num_bytes = self._window_times(self._seconds / _CONTENTION_ROUNDS)
                    used_s[count] += others.cpu_seconds() - used
                    wall_s[count] += time.monotonic() - begin
                times[count] += window
        alone_s = statistics.fmean(times[0])
        return [
            Measurement(
                f"contention/{count}", tuple(times[count]), 1, num_bytes,
                step_flops(self.engine.config, 1, 1),
                facts={
                    "competitors": count,
                    "competitor_cores": round(used_s[count] / wall_s[count], 3),
                    "mean_over_alone": round(statistics.fmean(times[count]) / alone_s, 4),
                    "fair_over_alone": fair_slowdown(self.engine.num_workers, count, num_cores),
                },
            )
            for count in counts
        ]

    def decode_rows(self) -> Measurement:
        """Eight tokens per step, as a verification of drafts would run."""
        return self._rows([DECODE_ROWS], "decode")[0]

    def verify(self, rows: Sequence[int]) -> list[Measurement]:
        """Steps of several widths taking turns. All rows give logits, which are copied out."""
        return self._rows(rows, "verify")

    def check_rows(self, rows: Sequence[int] | None) -> tuple[int, ...]:
        """Widths for `verify`: ``rows``, or the usual ones that are possible.

        Rows above those that a step has logits of would be timed as several steps.
        """
        num_logits = self.engine.decode_plan.options.max_logit_rows
        limit = min(num_logits, self._session.max_context // _STEPS_PER_CALL)
        chosen = tuple(rows or [n for n in VERIFY_ROWS if n <= limit] or [1])
        if max(chosen) > limit:
            raise MimoRtError(
                f"[bench] rows: expected 1..{limit} for this model on {self.engine.backend}, "
                f"got {max(chosen)}."
            )
        return chosen

    def _rows(self, rows: Sequence[int], case: str) -> list[Measurement]:
        config = self.engine.config
        self.check_rows(rows)
        all_times = take_turns([self._row_steps(num_rows) for num_rows in rows], self._seconds)
        # The core does not report the routing of this call: count as if routing were uniform.
        return [
            Measurement(
                f"{case}/ctx0/{num_rows}", tuple(t / _STEPS_PER_CALL for t in times), num_rows,
                step_bytes(self.engine, active_experts(config, num_rows)),
                step_flops(config, num_rows, num_rows), is_bytes_estimated=True,
            )
            for num_rows, times in zip(rows, all_times, strict=True)
        ]

    def _row_steps(self, num_rows: int) -> Callable[[], Any]:
        ids = spread_prompt(self.engine.config, _STEPS_PER_CALL * num_rows)
        return lambda: self._session.logits(ids, num_rows)

    def sessions(self, counts: Sequence[int]) -> list[Measurement]:
        """A token for each of several sessions that decode at the same time; counts take turns.

        Every session must get the tokens that it gets alone; else nothing is timed. An engine that
        drafts does both by turns, and the plain times come with what drafts make of them.
        """
        config, drafts = self.engine.config, self.engine.max_draft_tokens > 0
        prompts = [spread_prompt(config, self._num_context, i) for i in range(max(counts))]
        params = [greedy(NUM_DRAFTED_TOKENS if drafts else NUM_TOKENS) for _ in range(1 + drafts)]
        params[0].draft.mode = _C.DraftOptions.Mode.off
        groups = [[ConcurrentSessions(self.engine, prompts[:n], p) for p in params] for n in counts]
        alone = groups[counts.index(max(counts))][0].alone()
        times: list[list[list[float]]] = [[[] for _ in params] for _ in counts]
        deadline = time.monotonic() + self._seconds * len(counts)
        while len(times[0][0]) < MIN_SAMPLES or time.monotonic() < deadline:
            for modes, count, all_samples in zip(groups, counts, times, strict=True):
                for group, samples in zip(modes, all_samples, strict=True):
                    tokens, step_s = group.together()
                    if tokens != alone[:count]:
                        raise MimoRtError(
                            f"[bench] tokens of {count} sessions at the same time and of each "
                            "alone differ: nothing is timed."
                        )
                    samples.append(step_s)
        return [
            Measurement(
                f"sessions/ctx{self._num_context}/{count}", tuple(plain), count,
                step_bytes(self.engine, active_experts(config, count)),
                step_flops(config, count, count), is_bytes_estimated=True,
                facts={"drafts_over_plain": round(statistics.median(
                    p / d for p, d in zip(plain, *drafted, strict=True)), 4)} if drafts else {},
            )
            for count, (plain, *drafted) in zip(counts, times, strict=True)
        ]

    def prefill(self) -> Measurement:
        """A prompt of 512 tokens to its first output token."""
        config = self.engine.config
        times = repeat(self._prefill_once, self._seconds, min_samples=3)
        num_bytes = step_bytes(self.engine, config.num_experts)
        flops = step_flops(config, PREFILL_TOKENS, 1)
        return Measurement(f"prefill/{PREFILL_TOKENS}", times, PREFILL_TOKENS, num_bytes, flops)

    def _prefill_once(self) -> None:
        self._session.reset()
        self._session.generate(spread_prompt(self.engine.config, PREFILL_TOKENS), greedy(1))


def greedy(max_tokens: int) -> Any:
    """Options of a generation that only the number of tokens ends."""
    sampling = _C.SamplingParams(temperature=0.0)
    return _C.GenerateOptions(sampling=sampling, max_tokens=max_tokens, ignore_eos=True)
