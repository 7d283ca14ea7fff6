"""``mimo-rt bench compare`` and ``plot``: work on records that were measured before."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from ..bench import roofline
from ..bench.compare import (
    MISSING,
    SLOWER,
    TOLERANCE,
    Case,
    compare,
    missing,
    read_records,
    warnings,
)
from ..errors import MimoRtError
from ._options import require_writable
from ._output import format_table, note, print_json


def add_parsers(cases: Any, common: argparse.ArgumentParser) -> None:
    text = ("two files of --json lines: FASTER, SLOWER, SAME or UNDECIDED for each case, "
            "MISSING for one that the second lacks")
    parser = cases.add_parser("compare", parents=[common], help=text, description=text,
                              allow_abbrev=False)
    parser.add_argument("before", type=Path, metavar="A.jsonl")
    parser.add_argument("after", type=Path, metavar="B.jsonl")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, metavar="X",
                        help=f"smaller changes are the same (default {TOLERANCE})")
    parser.add_argument("--fail-on-slower", action="store_true",
                        help="exit code 1 if a case is SLOWER or MISSING")
    parser.add_argument("--json", action="store_true", help="one JSON object per case and line")
    parser.set_defaults(run=run_compare, refuse=parser.error)
    text = "a roofline picture of --json lines (needs matplotlib)"
    parser = cases.add_parser("plot", parents=[common], help=text, description=text,
                              allow_abbrev=False)
    parser.add_argument("records", type=Path, nargs="*", metavar="FILE.jsonl")
    parser.add_argument("--kernels", type=Path, metavar="FILE.jsonl",
                        help="lines of kbench --json")
    parser.add_argument("--output", "-o", type=Path, required=True, metavar="FILE.png")
    parser.set_defaults(run=run_plot, refuse=parser.error)


def run_compare(args: argparse.Namespace) -> int:
    if not (math.isfinite(args.tolerance) and 0 < args.tolerance < 1):
        raise ValueError(f"--tolerance: expected a number in (0, 1), got {args.tolerance}.")
    before, after = read_records(args.before), read_records(args.after)
    results = compare(before, after, args.tolerance)
    if not results:
        raise MimoRtError("[bench] compare: the files have no case in common.")
    gone = missing(before, after)
    if args.json:
        for r in results:
            print_json({"case": r.name, "before_us": r.before.median_us,
                        "after_us": r.after.median_us, "change": round(r.change, 4),
                        "verdict": r.verdict})
        for name, case in gone.items():
            print_json({"case": name, "before_us": case.median_us, "verdict": MISSING})
    else:
        header = ("case", "before ms", "after ms", "change", "%bandwidth", "verdict")
        print(format_table([
            (r.name, _shown(r.before), _shown(r.after), f"{100 * r.change:+.1f} %",
             f"{_share(r.before)} > {_share(r.after)}", r.verdict)
            for r in results
        ] + [(name, _shown(case), "-", "-", "-", MISSING) for name, case in gone.items()], header))
    for text in warnings(before, after):
        note(f"warning: {text}")
    if new := missing(after, before):
        note(f"only in {args.after}: {', '.join(new)}")
    is_worse = bool(gone) or any(r.verdict == SLOWER for r in results)
    return int(args.fail_on_slower and is_worse)


def _shown(case: Case) -> str:
    return (f"{case.median_us / 1e3:.3f} ({case.p10_us / 1e3:.3f}..{case.p90_us / 1e3:.3f}, "
            f"n={case.n})")


def _share(case: Case) -> str:
    """Achieved fraction of the read bandwidth, which does not depend on the memory's mood."""
    return f"{100 * case.bandwidth_fraction:.0f}" if case.bandwidth_fraction else "-"


def run_plot(args: argparse.Namespace) -> int:
    if not args.records and not args.kernels:
        args.refuse("expected files of records, --kernels, or both.")
    kernels = prepare_plot("--output", args.output, args.kernels)
    records = [record for path in args.records for record in read_records(path)]
    write_plot(records, args.output, kernels)
    return 0


def prepare_plot(flag: str, output: Path, kernels: Path | None) -> list[dict[str, Any]]:
    """The lines of ``kernels``; what drawing would fail of is told before anything is measured."""
    require_writable(flag, output)
    lines = read_records(kernels) if kernels else []
    roofline.check_output(output)
    return lines


def write_plot(records: list[dict[str, Any]], output: Path, kernels: list[dict[str, Any]]) -> None:
    roofline.draw(records, output, kernels)
    note(f"wrote {output}")
