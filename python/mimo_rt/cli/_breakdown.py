"""The table of where the time of a step goes."""

from __future__ import annotations

from ..bench.breakdown import HEADER, Breakdown
from ..bench.measurement import Roofs
from ..bench.rates import TracedStep
from ._output import format_table


def breakdown_text(breakdown: Breakdown) -> str:
    return "\n".join([format_table(breakdown.rows(), HEADER), _mean_text(breakdown)])


def traced_step_text(step: TracedStep, roofs: Roofs) -> str:
    """The same with the rates of the matrix products."""
    header = [*HEADER, "GB/s", "GFLOP/s"]
    rates = {row[0]: step.rates(row[0]) for row in step.breakdown.rows()}
    rows = [[*row, *map(_number, rates[row[0]])] for row in step.breakdown.rows()]
    end = ""
    if peak := roofs.peak_gflops:
        header.append("%peak")
        for row in rows:
            gflops = rates[row[0]][1]
            row.append(_number(None if gflops is None else 100 * gflops / peak))
        end = f", {100 * step.products_gflops / peak:.1f} % of the vector peak"
    return "\n".join([
        f"a step of {step.num_rows} token{'' if step.num_rows == 1 else 's'}",
        format_table(rows, header),
        _mean_text(step.breakdown),
        f"matrix products: {100 * step.products_share:.1f} % of the step, "
        f"{step.products_gflops:.1f} GFLOP/s while at them{end}",
    ])


def _mean_text(breakdown: Breakdown) -> str:
    text = (
        f"mean of {len(breakdown.steps)} traced steps (the middle half): {breakdown.step_us:.1f} us"
    )
    if breakdown.host_us is not None:
        text += f", and {breakdown.host_us:.1f} us on the host between two steps"
    return text


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
