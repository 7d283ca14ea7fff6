"""The table of where the time of a step goes."""

from __future__ import annotations

from ..bench.breakdown import HEADER, Breakdown
from ._output import format_table


def breakdown_text(breakdown: Breakdown) -> str:
    lines = [format_table(breakdown.rows(), HEADER)]
    text = (
        f"mean of {len(breakdown.steps)} traced steps (the middle half): {breakdown.step_us:.1f} us"
    )
    if breakdown.host_us is not None:
        text += f", and {breakdown.host_us:.1f} us on the host between two steps"
    lines.append(text)
    return "\n".join(lines)
