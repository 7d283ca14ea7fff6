"""One kernel, checked, then timed by turns with a plain read and with PyTorch."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

from .. import _C
from .kernel_baseline import make_baseline
from .kernel_shapes import Shape
from .measurement import MIN_SAMPLES, Measurement, Roofs, spread

_MAX_SAMPLES = 2000
_TURN_S = 0.02  # calls of one turn take about this long


@dataclass(frozen=True)
class KernelResult:
    """A checked kernel and its times.

    Attributes:
        error_over_bound: largest error of the checked results over its bound; above 1 is wrong.
        relative_error: root mean square of the errors over that of the values; 0: not measured.
        measurement: None for a wrong result, which is not timed.
        read_gbs: the best of the plain reads between the calls; 0: there are none.
        floor_s: times of empty kernels on a GPU: no call takes less, one of two launches takes more.
        peak: (GFLOP/s, instruction) of a CPU kernel's multiply-adds in registers alone.
        num_hops: timed hops of a call, for an edge; else 0.
        baseline_s: times of the baseline; empty without one.
        baseline_note: what was left out of the baseline, and why.
    """

    case: str
    shape: Shape
    measured: Any
    backend: str
    device: str
    error_over_bound: float
    measurement: Measurement | None = None
    read_gbs: float = 0.0
    floor_s: tuple[float, ...] = ()
    peak: tuple[float, str] | None = None
    cache: str = "cold"
    activations: str = "bf16"
    baseline: str = ""
    baseline_s: tuple[float, ...] = ()
    num_active_experts: int = 0
    relative_error: float = 0.0
    baseline_note: str = ""
    num_hops: int = 0

    @property
    def is_correct(self) -> bool:
        return self.error_over_bound <= 1

    @property
    def times_baseline(self) -> float | None:
        """How many times faster than the baseline."""
        if not self.baseline_s or self.measurement is None:
            return None
        return statistics.median(self.baseline_s) / self.measurement.median_s

    @property
    def roofs(self) -> Roofs:
        return Roofs(self.read_gbs, *(self.peak or ()))

    @property
    def floor_us(self) -> float | None:
        """Of an empty kernel."""
        return round(statistics.median(self.floor_s) * 1e6, 2) if self.floor_s else None

    def record(self) -> dict[str, Any]:
        """One JSON line. An infinite error is null."""
        is_finite = math.isfinite(self.error_over_bound)
        line: dict[str, Any] = {"case": self.case}
        if self.num_hops and self.measurement is not None:
            line |= self._edge_record(self.measurement)
        elif self.measurement is not None:
            line |= self._bound_record(self.measurement)
        line |= {
            "correct": self.is_correct,
            "error_over_bound": round(self.error_over_bound, 6) if is_finite else None,
            "kernel_name": self.measured.kernel,
            "format": self.measured.format,
            "shape": self.shape.name,
            "measured": _given_fields(self.measured),
            "backend": self.backend,
            "device": self.device or None,
            "cache": self.cache,
            "activations": self.activations,
            "clock": "device" if self.backend == "cuda" else "wall",
            "num_workers": None if self.backend == "cuda" else 1,
        }
        if self.num_hops:
            line["num_workers"] = self.measured.num_workers
        if self.floor_us:
            line["floor_us"] = self.floor_us
        if self.relative_error and math.isfinite(self.relative_error):
            line["relative_error"] = float(f"{self.relative_error:.4g}")
        if self.num_active_experts:
            line["num_active_experts"] = self.num_active_experts
        if self.baseline_s:
            low, high = spread(self.baseline_s)
            line |= {
                "baseline": self.baseline,
                "baseline_median_us": round(statistics.median(self.baseline_s) * 1e6, 2),
                "baseline_p10_us": round(low * 1e6, 2),
                "baseline_p90_us": round(high * 1e6, 2),
                "times_baseline": round(self.times_baseline, 4),
            }
        if self.baseline_note:
            line["baseline_note"] = self.baseline_note
        return line

    def _bound_record(self, measurement: Measurement) -> dict[str, Any]:
        """Times, rates, and the fraction of what memory and vector units allow."""
        line = measurement.record(self.roofs)
        line["read_gbs"] = line["bandwidth_gbs"] = round(self.read_gbs, 3)
        if self.peak:
            line |= {"peak_gflops": round(self.peak[0], 2), "peak_source": self.peak[1]}
        if self.peak and self.cache == "hot":  # memory is no limit
            fraction = line["compute_bound_us"] / line["median_us"]
            line |= {"bound_by": "vector", "bound_fraction": round(fraction, 4)}
        return line

    def _edge_record(self, measurement: Measurement) -> dict[str, Any]:
        """An edge moves next to no bytes: only its time counts."""
        low, high = measurement.quantiles_s()
        return {
            "median_us": round(measurement.median_s * 1e6, 2),
            "p10_us": round(low * 1e6, 2),
            "p90_us": round(high * 1e6, 2),
            "n": len(measurement.times_s),
            "num_hops": self.num_hops,
            "ns_per_hop": round(measurement.median_s * 1e9 / self.num_hops, 2),
        }


def case_name(shape: Shape, num_tokens: int, options: Any) -> str:
    """As in records."""
    name = f"{shape.name}/{shape.format}/t{num_tokens}"
    name += "/int8" if options.activations == "int8" else ""
    return name + ("/hot" if options.is_hot else "")


def measure_kernel(
    shape: Shape, num_tokens: int, options: Any, seconds: float, *, with_baseline: bool = True
) -> KernelResult:
    """Check, then time for about ``seconds`` (twice that with a baseline)."""
    kernel_case = _C.KernelCase(**shape.kernel_case(options.backend, num_tokens))
    bench = _C.KernelBench.open(kernel_case, options)
    cache = "hot" if options.is_hot else "cold"
    case = case_name(shape, num_tokens, options)
    facts = {"case": case, "shape": shape, "measured": bench.measured, "backend": bench.backend,
             "device": bench.device, "error_over_bound": bench.worst_error(), "cache": cache,
             "relative_error": bench.relative_error, "activations": options.activations,
             "num_active_experts": bench.work.num_active_experts,
             "num_hops": bench.work.num_hops}
    if not facts["error_over_bound"] <= 1:
        return KernelResult(**facts)
    baseline, note = None, ""
    if with_baseline and not options.is_hot:
        baseline, note = make_baseline(bench.measured, bench.work, bench.backend)
    peaks = [bench.measure_peak()]
    calls, reads, floors, others = _take_turns(bench, baseline, seconds)
    peaks.append(bench.measure_peak())
    work = bench.work
    return KernelResult(
        **facts,
        measurement=Measurement(case, tuple(calls), num_tokens, work.bytes, work.flops),
        read_gbs=work.read_bytes / min(reads) / 1e9 if reads else 0.0,
        floor_s=tuple(floors),
        peak=max(filter(None, peaks), default=None),
        baseline=baseline.name if baseline else "",
        baseline_s=tuple(others),
        baseline_note=note,
    )


def _take_turns(
    bench: Any, baseline: Any, seconds: float
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Times of calls, plain reads, empty kernels and the baseline; the first of each are not counted."""
    first = bench.run(2)
    num_calls = _calls_per_turn(first.call_s[1])
    num_others = _calls_per_turn(baseline.run(2)[1]) if baseline else 0
    calls: list[float] = []
    reads: list[float] = first.read_s[1:]
    floors: list[float] = first.floor_s[1:]
    others: list[float] = []
    deadline = time.monotonic() + (2 * seconds if baseline else seconds)
    while len(calls) < MIN_SAMPLES or time.monotonic() < deadline and len(calls) < _MAX_SAMPLES:
        times = bench.run(num_calls)
        calls += times.call_s
        reads += times.read_s
        floors += times.floor_s
        if baseline:
            others += baseline.run(num_others)
    return calls, reads, floors, others


def _calls_per_turn(seconds: float) -> int:
    return min(max(round(_TURN_S / max(seconds, 1e-9)), 1), 64)


def _given_fields(kernel_case: Any) -> dict[str, int]:
    """The numbers of a case that are not 0."""
    names = [name for name in dir(kernel_case) if not name.startswith("_")]
    values = {name: getattr(kernel_case, name) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, int) and value}
