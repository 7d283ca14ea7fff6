"""A picture of arena.py's lines: how many times as long the other engines take.

  python bench/peers/plot.py RECORDS.jsonl [RECORDS.jsonl ...] --out PEERS.svg

One panel per file and model; bars are medians of the ratios of a round, with p10..p90. Needs
matplotlib.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_BASE = "mimo_rt"
_NAMES = {"mimo_rt_int8": "mimo_rt, INT8", "llama_cpp": "llama.cpp", "llama_sync": "llama.cpp",
          "xllamacpp": "llama.cpp", "llama_bench": "llama.cpp", "ik_llama": "ik_llama.cpp",
          "transformers": "transformers", "transformers_f32": "transformers, F32"}
_COLOURS = {"mimo_rt, INT8": "#7fa3c7", "llama.cpp": "#b5651d", "ik_llama.cpp": "#d9a441"}
_CASES = {"decode": "1 token", "rows8": "8 tokens", "prefill512": "prefill of 512"}


def read_panels(paths: Iterable[Path]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(title, records) for every model of every file; records of what others took, beside ours."""
    panels = []
    for path in paths:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        timed = [r for r in lines if "over_mimo_rt" in r and _case(r) in _CASES]
        for model in dict.fromkeys(r["model"] for r in timed):
            records = [r for r in timed if r["model"] == model]
            ours = next((r for r in records if r["engine"] == _BASE), None)
            if ours is None:
                continue
            title = f"{model}\n{ours['machine']}, {ours['backend']}, {ours['date']}"
            panels.append((title, records))
    return panels


def draw(panels: Sequence[tuple[str, list[dict[str, Any]]]], out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    num_rows = (len(panels) + 1) // 2
    figure, axes = pyplot.subplots(num_rows, 2, figsize=(10, 3.4 * num_rows), squeeze=False)
    for axis, (title, records) in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, title, records)
    for axis in axes.flat[len(panels):]:
        axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(out)
    pyplot.close(figure)


def _draw_panel(axis: Any, title: str, records: Sequence[dict[str, Any]]) -> None:
    y, places, labels = 0.0, [], []
    for case, name in _CASES.items():
        rows = [r for r in records if _case(r) == case]
        for r in rows:
            if r["engine"] == _BASE:
                name = f"{name}\n{_duration(r['median_us'])}"
                continue
            ratio = r["over_mimo_rt"]
            spread = [[max(0.0, ratio - r["over_mimo_rt_p10"])],
                      [max(0.0, r["over_mimo_rt_p90"] - ratio)]]
            engine = _NAMES[r["engine"]]
            axis.barh(y, ratio, xerr=spread, color=_COLOURS.get(engine, "#8a8a8a"), height=0.8)
            axis.text(r["over_mimo_rt_p90"], y, f"  {engine} {ratio:.2f} x",
                      va="center", fontsize=8)
            y -= 1
        if rows:
            places.append(y + len(rows) / 2)
            labels.append(name)
            y -= 0.6
    axis.axvline(1, color="#1f4e79")
    axis.text(1, 1.01, "mimo_rt", color="#1f4e79", fontsize=8, ha="center",
              transform=axis.get_xaxis_transform())
    axis.set(yticks=places, yticklabels=labels, xlabel="their time over mimo_rt's")
    axis.set_title(title, fontsize=9, pad=14)
    axis.margins(x=0.45)
    axis.set_xlim(left=0)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _duration(microseconds: float) -> str:
    return f"{microseconds / 1e6:.2f} s" if microseconds >= 1e6 else f"{microseconds / 1e3:.3g} ms"


def _case(record: dict[str, Any]) -> str:
    return record["case"].split("/")[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("records", type=Path, nargs="+", metavar="RECORDS.jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.{svg,png}")
    args = parser.parse_args()
    panels = read_panels(args.records)
    if not panels:
        parser.error("no line of the files has a time beside mimo_rt's")
    draw(panels, args.out)


if __name__ == "__main__":
    main()
