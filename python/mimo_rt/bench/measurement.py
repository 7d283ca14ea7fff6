"""One timed case: its samples, what its step needs, and how far it is from what is possible."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, perf_counter_ns
from typing import Any

MIN_SAMPLES = 5


@dataclass(frozen=True)
class Roofs:
    """What the machine can do, measured in the same run. ``peak_gflops`` None: not measured.

    ``peak_source`` is the instruction that reaches it.
    """

    bandwidth_gbs: float
    peak_gflops: float | None = None
    peak_source: str | None = None


@dataclass(frozen=True)
class Measurement:
    """Times of one case.

    Attributes:
        num_bytes: packed weight bytes that one step has to read.
        num_flops: operations of its matrix products (2 per multiply-add); 0: not counted.
        facts: further numbers of the case, for its record.
        in_situ_fraction: of the bandwidth that was read between its samples. None: of the roof's.
    """

    case: str
    times_s: tuple[float, ...]
    num_tokens: int
    num_bytes: float
    num_flops: float = 0.0
    is_bytes_estimated: bool = False
    facts: Mapping[str, float] = field(default_factory=dict)
    in_situ_fraction: float | None = None

    @property
    def median_s(self) -> float:
        return statistics.median(self.times_s)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.median_s

    @property
    def gbs(self) -> float:
        return self.num_bytes / self.median_s / 1e9

    @property
    def in_situ_gbs(self) -> float | None:
        """What was read between the samples."""
        return None if self.in_situ_fraction is None else self.gbs / self.in_situ_fraction

    def bandwidth_fraction(self, roofs: Roofs) -> float:
        if self.in_situ_fraction is not None:
            return self.in_situ_fraction
        return self.gbs / roofs.bandwidth_gbs

    def quantiles_s(self) -> tuple[float, float]:
        """10th and 90th percentile."""
        return spread(self.times_s)

    def record(self, roofs: Roofs) -> dict[str, Any]:
        low, high = self.quantiles_s()
        fraction = self.bandwidth_fraction(roofs)
        record: dict[str, Any] = {
            "case": self.case,
            "median_us": round(self.median_s * 1e6, 2),
            "p10_us": round(low * 1e6, 2),
            "p90_us": round(high * 1e6, 2),
            "n": len(self.times_s),
            "tokens": self.num_tokens,
            "tokens_per_s": round(self.tokens_per_s, 3),
            "bytes": round(self.num_bytes),
            "bytes_estimated": self.is_bytes_estimated,
            "gbs": round(self.gbs, 3),
            "bound_us": round(self.median_s * fraction * 1e6, 2),
            "bandwidth_fraction": float(f"{fraction:.4g}"),  # of few bytes: not 0
            **self.facts,
        }
        if self.in_situ_gbs is not None:
            record["in_situ_gbs"] = round(self.in_situ_gbs, 3)
        if self.num_flops:
            record["flops"] = round(self.num_flops)
            record["gflops"] = round(self.num_flops / self.median_s / 1e9, 3)
        if self.num_flops and roofs.peak_gflops:
            compute_us = self.num_flops / roofs.peak_gflops / 1e3
            bound_us = max(record["bound_us"], compute_us)
            record["compute_bound_us"] = round(compute_us, 2)
            record["bound_by"] = "vector" if compute_us > record["bound_us"] else "bytes"
            record["bound_fraction"] = round(bound_us / self.median_s / 1e6, 4)
        return record

    def row(self, roofs: Roofs) -> tuple[str, ...]:
        low, high = self.quantiles_s()
        mark = "~" if self.is_bytes_estimated else ""
        return (
            self.case,
            f"{self.median_s * 1e3:.3f}",
            f"{low * 1e3:.3f}..{high * 1e3:.3f}",
            str(len(self.times_s)),
            f"{mark}{self.num_bytes / 1e9:.4f}",
            f"{mark}{self.gbs:.2f}",
            f"{mark}{100 * self.bandwidth_fraction(roofs):.1f}",
            f"{self.tokens_per_s:.2f}",
        )


def spread(samples: Sequence[float]) -> tuple[float, float]:
    """10th and 90th percentile."""
    if len(samples) < 2:
        return samples[0], samples[0]
    cuts = statistics.quantiles(samples, n=10, method="inclusive")
    return cuts[0], cuts[-1]


def median_bounds(samples: Sequence[float], risk: float = 0.05) -> tuple[float, float] | None:
    """Values that the median of what ``samples`` are drawn from lies above, and below, each with a probability of
    1 - ``risk``, whatever the distribution: how many of n samples are below it is binomial. None: too few samples."""
    n = len(samples)
    outside, tail = -1, 0.0  # samples on each side that may be left out
    while (tail := tail + math.comb(n, outside + 1) / 2**n) <= risk:
        outside += 1
    return None if outside < 0 else (sorted(samples)[outside], sorted(samples)[n - 1 - outside])


def time_call(call: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begin = perf_counter_ns()
    call()
    return (perf_counter_ns() - begin) / 1e9


def repeat(
    call: Callable[[], Any], seconds: float, min_samples: int = MIN_SAMPLES
) -> tuple[float, ...]:
    """Times of ``call``, warm, for about ``seconds``."""
    call()
    times: list[float] = []
    deadline = monotonic() + seconds
    while len(times) < min_samples or monotonic() < deadline:
        times.append(time_call(call))
    return tuple(times)


def take_turns(
    calls: Sequence[Callable[[], Any]], seconds: float, min_samples: int = MIN_SAMPLES
) -> list[tuple[float, ...]]:
    """Times of each call, one after the other in every round: all see the same machine.

    Every second round runs in reverse, so that none always follows the same neighbour.
    """
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    order = list(range(len(calls)))
    deadline = monotonic() + seconds
    while len(times[0]) < min_samples or monotonic() < deadline:
        for i in order:
            times[i].append(time_call(calls[i]))
        order.reverse()
    return [tuple(samples) for samples in times]
