"""Where the time of a step goes: tasks, waits, and what neither explains.

A worker's step is cut at the times of its trace, so that the parts add up to the step:

- busy: inside a task, but for
- weights: waiting inside a task for what streams in: weights, keys and values (cuda; a CPU's caches
  hide such waits from a program, so there they are part of busy);
- waiting, others busy: until the last task of the stage waited for had ended (imbalance);
- waiting, seen late: from then on (signal, wake-up, cache lines on their way);
- fetch: the next task itself was not there yet (cuda);
- start, between, end: before the first task, between tasks, after the last; no task explains it.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .. import _C
from ..errors import MimoRtError
from .work import spread_prompt

_Sample = TypeVar("_Sample")
_WAITS = ("wait", "fetch")  # categories; of other slices the kind of task
_MEASURED = 1  # the trace's process of measured times
_WARM_UP_STEPS = 4
_MIN_TRACES = 4
_STEPS_PER_TRACE = 4  # a step after a trace was read starts with workers that sleep
PARTS = ("busy", "weights", "others_busy", "seen_late")
GAPS = ("start", "between", "end")
_GAP_TEXTS = {
    "fetch": "waiting: for the next task",
    "start": "unexplained: before the first task",
    "between": "unexplained: between tasks",
    "end": "unexplained: after the last task",
}


@dataclass
class WorkerTimes:
    """Microseconds of one worker in one step, by kind of task, of stage waited for, of gap."""

    busy: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    others_busy: dict[str, float] = field(default_factory=dict)
    seen_late: dict[str, float] = field(default_factory=dict)
    gaps: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_GAP_TEXTS, 0.0))

    def total(self) -> float:
        return sum(sum(getattr(self, part).values()) for part in (*PARTS, "gaps"))


@dataclass(frozen=True)
class StepTimes:
    step_us: float
    workers: list[WorkerTimes]


@dataclass(frozen=True)
class Breakdown:
    """Means over steps of one plan. ``host_us``: between two steps, None when not measured."""

    steps: list[StepTimes]
    host_us: float | None = None

    @property
    def step_us(self) -> float:
        return statistics.fmean(step.step_us for step in self.steps)

    def mean(self, part: str, name: str, worker: int) -> float:
        """Mean over the steps of one number of one worker."""
        return statistics.fmean(
            getattr(step.workers[worker], part).get(name, 0.0) for step in self.steps
        )

    def names(self) -> list[str]:
        """Kinds of tasks in the order in which a step meets them."""
        seen: dict[str, None] = {}
        for step in self.steps:
            for worker in step.workers:
                for part in PARTS:
                    seen.update(dict.fromkeys(getattr(worker, part)))
        return list(seen)

    def record(self) -> dict[str, Any]:
        """Per worker, microseconds; every worker's numbers add up to ``step_us``."""
        num_workers = len(self.steps[0].workers)

        def of(part: str, names: Iterable[str]) -> list[dict[str, float]]:
            return [
                {name: round(self.mean(part, name, w), 3) for name in names}
                for w in range(num_workers)
            ]

        names = self.names()
        return {
            "num_steps": len(self.steps),
            "step_us": round(self.step_us, 3),
            "host_us": None if self.host_us is None else round(self.host_us, 3),
            **{f"{part}_us": of(part, names) for part in PARTS},
            "fetch_us": [parts["fetch"] for parts in of("gaps", ["fetch"])],
            "unexplained_us": of("gaps", GAPS),
        }

    def rows(self) -> list[list[str]]:
        """A table: means over the workers; a kind's last column counts its work and its waits."""
        workers = range(len(self.steps[0].workers))

        def means(part: str, name: str) -> list[float]:
            return [self.mean(part, name, w) for w in workers]

        def percent(us: float) -> str:
            return f"{100 * us / self.step_us:.1f}"

        rows, sums = [], [0.0] * len(PARTS)
        for name in self.names():
            busy = means("busy", name)
            parts = [statistics.fmean(means(part, name)) for part in PARTS]
            sums = [total + part for total, part in zip(sums, parts, strict=True)]
            rows.append(
                [
                    name,
                    f"{parts[0]:.1f}",
                    f"{max(busy):.1f}",
                    *(f"{part:.1f}" for part in parts[1:]),
                    percent(sum(parts)),
                ]
            )
        rows.append(
            [
                "tasks and waits",
                f"{sums[0]:.1f}",
                "",
                *(f"{part:.1f}" for part in sums[1:]),
                percent(sum(sums)),
            ]
        )
        for name, text in _GAP_TEXTS.items():
            us = statistics.fmean(means("gaps", name))
            rows.append([text, f"{us:.1f}", *[""] * len(PARTS), percent(us)])
        return rows


HEADER = (
    "mean of workers, us",
    "busy",
    "busiest",
    "waiting: weights",
    "others busy",
    "seen late",
    "% of step",
)


def read_step(trace: str) -> StepTimes:
    """The measured step of a Chrome trace as the engine writes it."""
    slices = [
        event
        for event in json.loads(trace)["traceEvents"]
        if event["ph"] == "X" and event["pid"] == _MEASURED
    ]
    ended: dict[str, float] = {}
    for task in slices:
        if task["cat"] not in _WAITS:
            end = task["ts"] + task["dur"]
            ended[task["name"]] = max(ended.get(task["name"], 0.0), end)
    step_us = max(ended.values())
    workers = []
    for worker in sorted({task["tid"] for task in slices}):
        own = sorted((task for task in slices if task["tid"] == worker), key=lambda s: s["ts"])
        workers.append(_worker_times(own, ended, step_us))
    return StepTimes(step_us, workers)


def _worker_times(
    slices: list[Mapping[str, Any]], ended: Mapping[str, float], step_us: float
) -> WorkerTimes:
    times = WorkerTimes()
    now, gap = 0.0, "start"

    def add(part: dict[str, float], name: str, us: float) -> None:
        part[name] = part.get(name, 0.0) + us

    for piece in slices:
        begin, end = piece["ts"], piece["ts"] + piece["dur"]
        add(times.gaps, gap, begin - now)
        now, gap = end, "between"
        if piece["cat"] == "fetch":
            add(times.gaps, "fetch", end - begin)
            continue
        if piece["cat"] != "wait":
            weights_us = piece.get("args", {}).get("weights_us", 0.0)
            add(times.busy, piece["cat"], end - begin - weights_us)
            add(times.weights, piece["cat"], weights_us)
            continue
        if piece["name"] == "wait":  # the task waits for nobody: two readings of the clock
            add(times.gaps, gap, end - begin)
            continue
        stages = piece["name"].removeprefix("wait: ").split(", ")
        last = max(stages, key=lambda stage: ended.get(stage, 0.0))
        ready = min(max(ended.get(last, 0.0), begin), end)
        kind = last.rsplit(" ", 1)[-1]
        add(times.others_busy, kind, ready - begin)
        add(times.seen_late, kind, end - ready)
    add(times.gaps, "end", step_us - now)
    return times


def measure_breakdown(
    engine: Any, session: Any, num_context: int, num_steps: int
) -> tuple[Breakdown, str]:
    """Of ``num_steps`` decoding steps (or rounds) the middle half, and the trace of the last."""
    traces: list[str] = []
    intervals_us: list[float] = []
    count, stamp = 0, 0.0

    def on_token(_ids: list[int], _text: str) -> bool:
        nonlocal count, stamp
        count += 1
        interval_us = (time.perf_counter() - stamp) * 1e6
        if count > _WARM_UP_STEPS and count % _STEPS_PER_TRACE == 0:
            trace = engine.trace_json()
            if traces[-1:] != [trace]:  # several tokens of one round have one trace
                traces.append(trace)
                intervals_us.append(interval_us)
        stamp = time.perf_counter()
        return len(traces) < num_steps

    session.reset()
    engine.set_tracing(True)
    try:
        _generate(engine, session, num_context, on_token)
    finally:
        engine.set_tracing(False)
    if not traces:
        raise MimoRtError(
            f"[breakdown] expected room for {num_context + _WARM_UP_STEPS + _STEPS_PER_TRACE} tokens "
            f"or more, got {session.max_context}."
        )
    timed = list(zip(map(read_step, traces), intervals_us, strict=True))
    middle = _middle_half(timed, lambda t: t[0].step_us)
    host_us = None  # a round may give several tokens
    if engine.draft_config is None:
        host_us = statistics.fmean(interval - step.step_us for step, interval in middle)
    return Breakdown([step for step, _ in middle], host_us), traces[-1]


def measure_step_breakdowns(
    engine: Any, runs: Sequence[Callable[[], Any]], num_steps: int, seconds: float
) -> list[Breakdown]:
    """Of each run's last step some traces, the middle half of them; runs take turns.

    As many traces as ``seconds`` allow, from 4 to ``num_steps``. A run should have steps before its
    last, where they are short: the first one after a trace was read starts with workers that sleep.
    """
    found: list[list[StepTimes]] = [[] for _ in runs]
    engine.set_tracing(True)
    try:
        for run in runs:
            run()  # warm-up
        deadline = time.monotonic() + seconds
        for number in range(num_steps):
            if number >= _MIN_TRACES and time.monotonic() >= deadline:
                break
            for run, steps in zip(runs, found, strict=True):
                run()
                steps.append(read_step(engine.trace_json()))
    finally:
        engine.set_tracing(False)
    return [Breakdown(_middle_half(steps, lambda step: step.step_us)) for steps in found]


def _middle_half(samples: Sequence[_Sample], step_us: Callable[[_Sample], float]) -> list[_Sample]:
    """Without the quickest and the slowest quarter."""
    quarter = len(samples) // 4
    return sorted(samples, key=step_us)[quarter : len(samples) - quarter]


def _generate(engine: Any, session: Any, num_context: int, on_token: Callable[..., bool]) -> None:
    options = _C.GenerateOptions(sampling=_C.SamplingParams(temperature=0.0), ignore_eos=True)
    if engine.draft_config is None:  # one token per step; drafts of the text would make some of them wider
        options.draft = _C.DraftOptions(mode=_C.DraftOptions.Mode.off)
    session.generate(spread_prompt(engine.config, num_context), options, on_token)
