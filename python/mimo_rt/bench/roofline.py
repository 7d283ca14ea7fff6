"""A roofline picture: achieved operations per second over operations per byte.

Left of the ridge the read bandwidth bounds a case, right of it the vector units. The height of a
marker below the roof is what is left to gain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _C

_MARKERS = {"decode": "o", "verify": "s", "prefill": "D", "gemm": "^"}
_INK, _PALE, _ROOF, _KERNEL_ROOF = "#222222", "#bbbbbb", "#1f4e79", "#8c6d1f"


@dataclass(frozen=True)
class Point:
    """One case: operations per byte, GFLOP/s, and the fraction of its bound.

    ``bound``: what that is, where it is not both bandwidth and vector units.
    """

    label: str
    kind: str
    intensity: float
    gflops: float
    bound_fraction: float
    is_estimated: bool = False
    bound: str = "its bound"


@dataclass(frozen=True)
class Roof:
    """min(bandwidth x intensity, peak); without a peak only the slope."""

    label: str
    bandwidth_gbs: float
    peak_gflops: float | None

    def at(self, intensity: float) -> float:
        slope = self.bandwidth_gbs * intensity
        return slope if self.peak_gflops is None else min(slope, self.peak_gflops)


def step_roof(records: Sequence[dict[str, Any]]) -> Roof | None:
    """The best bandwidth and peak of records with bytes and operations; None without any."""
    used = [r for r in records if _is_step(r)]
    if not used:
        return None
    peaks = [r["peak_gflops"] for r in used if r.get("peak_gflops")]
    workers = used[0].get("num_workers")
    label = f"{workers} workers" if workers else "all workers"
    return Roof(label, max(r["bandwidth_gbs"] for r in used), max(peaks, default=None))


def kernel_roofs(lines: Sequence[dict[str, Any]]) -> dict[str | None, Roof]:
    """One thread's roof for each instruction that multiplies; None: kernels whose peak is not known."""
    used = [line for line in lines if _is_kernel(line)]
    sources = dict.fromkeys(line.get("peak_source") for line in used)
    return {source: _kernel_roof(source, used) for source in sources}


def _kernel_roof(source: str | None, lines: Sequence[dict[str, Any]]) -> Roof:
    peaks = [line["peak_gflops"] for line in lines if source and line.get("peak_source") == source]
    label = f"one thread, {source}" if source else "one thread"
    return Roof(label, max(line["read_gbs"] for line in lines), max(peaks, default=None))


def step_points(records: Iterable[dict[str, Any]], roof: Roof) -> list[Point]:
    """Markers of ``decode``, ``verify`` and ``prefill`` records; of equal ones the last."""
    points = []
    for r in {(_label(r), r.get("model")): r for r in records if _is_step(r)}.values():
        intensity = r["flops"] / r["bytes"]
        gflops = r["flops"] / r["median_us"] / 1e3
        fraction = r.get("bound_fraction") or gflops / roof.at(intensity)  # decode's: of its own reads
        points.append(Point(_label(r), r["case"].split("/")[0], intensity, gflops, fraction,
                            bool(r.get("bytes_estimated"))))
    return points


def kernel_points(lines: Iterable[dict[str, Any]], source: str | None, roof: Roof) -> list[Point]:
    """Markers of the cold lines of ``kbench --json`` with that instruction."""
    points = []
    for line in filter(_is_kernel, lines):
        if line.get("cache") == "hot" or line.get("peak_source") != source:
            continue
        intensity, gflops = line["gflops"] / line["gbs"], line["gflops"]
        fraction = line.get("bound_fraction") or gflops / roof.at(intensity)
        points.append(Point(line["case"], "gemm", intensity, gflops, fraction,
                            bound="its bound" if source else "the bandwidth"))
    return points


def require_matplotlib() -> Any:
    """matplotlib.figure, which is an extra; UnavailableError says how to get it."""
    try:
        import matplotlib.figure
    except ImportError as error:
        raise _C.UnavailableError(
            "[bench] drawing needs the package 'matplotlib': pip install 'mimo_rt[bench]'."
        ) from error
    return matplotlib.figure


def check_output(path: Path) -> None:
    """Raise what `draw` would after the measurements: no matplotlib, an ending of no format."""
    endings = require_matplotlib().Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in endings:
        raise _C.InvalidArgumentError(
            f"[bench] plot: expected a file name that ends in .{', .'.join(sorted(endings))}, "
            f"got '{path}'."
        )


def draw(
    records: Sequence[dict[str, Any]], path: Path, kernels: Sequence[dict[str, Any]] = ()
) -> None:
    """Write the picture to ``path``; its ending chooses the format.

    Raises:
        InvalidArgumentError: nothing to draw.
        UnavailableError: matplotlib is missing.
    """
    figure_module = require_matplotlib()
    roof = step_roof(records)
    sets = [(roof, step_points(records, roof), _ROOF)] if roof else []
    sets += [(roof, kernel_points(kernels, source, roof), _KERNEL_ROOF)
             for source, roof in kernel_roofs(kernels).items()]
    if not any(points for _, points, _ in sets):
        raise _C.InvalidArgumentError(
            "[bench] plot: expected records of decode, verify or prefill, or lines of "
            "kbench --json; found none with bytes and operations."
        )
    figure = figure_module.Figure(figsize=(10, 6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    low, high = _x_range(sets)
    pairs = [(roof, point) for roof, points, _ in sets
             for point in sorted(points, key=lambda p: p.intensity)]
    for roof, _, colour in sets:
        _draw_roof(axes, roof, low, high, colour)
    for index, (roof, point) in enumerate(pairs):
        _draw_point(axes, point, roof, index / max(len(pairs) - 1, 1))
    _finish(axes, sets, low, high, _title(records or kernels))
    figure.draw_without_rendering()  # fixes the layout, and with it the angle of the slopes
    for colour, roof in {colour: roof for roof, _, colour in sets}.items():  # slopes are of one memory
        _label_slope(axes, roof, low * 1.1, colour)
    figure.savefig(path)


def _x_range(sets: list[tuple[Roof, list[Point], str]]) -> tuple[float, float]:
    edges = [point.intensity for _, points, _ in sets for point in points]
    edges += [roof.peak_gflops / roof.bandwidth_gbs for roof, _, _ in sets if roof.peak_gflops]
    return min(edges) / 2.5, max(edges) * 4


def _draw_roof(axes: Any, roof: Roof, low: float, high: float, colour: str) -> None:
    ridge = roof.peak_gflops / roof.bandwidth_gbs if roof.peak_gflops else high
    xs = [low, min(max(ridge, low), high), high]
    axes.plot(xs, [roof.at(x) for x in xs], color=colour, linewidth=2, zorder=2)
    if roof.peak_gflops:
        axes.annotate(
            f"vector peak {roof.peak_gflops:.0f} GFLOP/s, {roof.label}", (high, roof.peak_gflops),
            xytext=(-6, 5), textcoords="offset points", ha="right", va="bottom", color=colour,
            fontsize=9,
        )


def _label_slope(axes: Any, roof: Roof, start: float, colour: str) -> None:
    """Along the roof, a little above it."""
    begin, end = axes.transData.transform([(x, roof.at(x)) for x in (start, 1.01 * start)])
    angle = math.degrees(math.atan2(end[1] - begin[1], end[0] - begin[0]))
    axes.annotate(
        f"read {roof.bandwidth_gbs:.1f} GB/s, {roof.label.split(',')[0]}", (start, roof.at(start)),
        xytext=(-4, 4), textcoords="offset points", rotation=angle, rotation_mode="anchor",
        color=colour, fontsize=9,
    )


def _draw_point(axes: Any, point: Point, roof: Roof, shade: float) -> None:
    import matplotlib

    colour = matplotlib.colormaps["viridis"](0.05 + 0.8 * shade)
    axes.plot([point.intensity] * 2, [point.gflops, roof.at(point.intensity)], color=_PALE,
              linewidth=1, linestyle=":", zorder=1)
    mark = "~" if point.is_estimated else ""
    axes.plot([point.intensity], [point.gflops], linestyle="none", markersize=9, zorder=3,
              marker=_MARKERS.get(point.kind, "P"), color=colour, markeredgecolor=_INK,
              label=f"{point.label}: {mark}{100 * point.bound_fraction:.0f} % of {point.bound}")


def _finish(
    axes: Any, sets: list[tuple[Roof, list[Point], str]], low: float, high: float, title: str
) -> None:
    values = [point.gflops for _, points, _ in sets for point in points]
    tops = [roof.at(high) for roof, _, _ in sets]
    axes.set(xscale="log", yscale="log", xlim=(low, high),
             ylim=(min(values) / 2.5, max([*tops, *values]) * 2),
             xlabel="operations per byte of weights read [FLOP/B]",
             ylabel="achieved [GFLOP/s]")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.grid(which="major", color="#dddddd", linewidth=0.8)
    axes.grid(which="minor", color="#eeeeee", linewidth=0.4)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(loc="lower right", fontsize=8, frameon=True, framealpha=0.9)


def _title(records: Sequence[dict[str, Any]]) -> str:
    first = records[0]
    commit = first.get("commit")
    parts = [first.get("model"), first.get("backend"), first.get("machine"),
             f"commit {commit}{'+' if first.get('dirty') else ''}" if commit else None,
             first.get("date")]
    return ", ".join(str(part) for part in parts if part)


def _label(record: dict[str, Any]) -> str:
    activations = record.get("activations", "bf16")
    return record["case"] if activations == "bf16" else f"{record['case']} {activations}"


def _is_step(record: dict[str, Any]) -> bool:
    return all(record.get(name) for name in ("flops", "bytes", "median_us", "bandwidth_gbs"))


def _is_kernel(line: dict[str, Any]) -> bool:
    return all(line.get(name) for name in ("gflops", "gbs", "read_gbs"))
