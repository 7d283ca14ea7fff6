"""The loss curve of a run as a PNG (matplotlib; nothing is drawn when it is missing)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Evaluation numbers that are worth a curve of their own.
_EVALUATIONS = {
    "mean_acceptance_length": "mean acceptance length (held-out answers)",
    "divergence": "divergence from the teacher (held-out, nat/token)",
}


def draw_curve(history: list[dict[str, Any]], path: Path) -> bool:
    """Loss over steps, and the evaluation beside it; False without matplotlib or history."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    if not losses:
        return False
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, values = zip(*losses, strict=True)
    axes.plot(steps, values, color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot(steps, _smooth(values), color="tab:blue", linewidth=1.6)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nat), running mean in bold", color="tab:blue")
    axes.grid(alpha=0.3)
    for name, label in _EVALUATIONS.items():
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        if points:
            other = axes.twinx()
            other.plot(*zip(*points, strict=True), color="tab:orange", marker="o", markersize=3)
            other.set_ylabel(label, color="tab:orange")
    temporary = path.with_name(path.name + ".tmp")
    canvas.print_png(temporary)
    temporary.replace(path)
    return True


def _smooth(values: tuple[float, ...]) -> list[float]:
    """Exponential running mean over about 20 steps."""
    mean, out = values[0], []
    for value in values:
        mean += 0.05 * (value - mean)
        out.append(mean)
    return out
