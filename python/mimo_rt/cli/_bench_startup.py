"""``mimo-rt bench startup``: from the start of a process to its first token."""

from __future__ import annotations

import argparse
import shlex
import statistics
from pathlib import Path
from typing import Any

from ..bench.measurement import spread
from ..bench.startup import STAGES, StartupTimes, measure_startup
from ..loading import require_directory
from ..value_checks import as_int
from ._machine import machine_record
from ._options import add_engine_options, engine_arguments
from ._output import format_table, print_json


def add_parsers(cases: Any, common: argparse.ArgumentParser) -> None:
    text = "from process start over import and open to the first token, in fresh processes"
    parser = cases.add_parser(
        "startup", parents=[common], help=text, allow_abbrev=False,
        description=f"{text}. Cold: the model's files are dropped from the page cache, which is "
        "checked; where that does not work the case is skipped and says why. First (with "
        "--packed-cache): there is no packed cache yet, the start writes it.",
    )
    parser.add_argument("--model", metavar="DIR", required=True, help="checkpoint directory")
    parser.add_argument("--runs", type=int, default=5, metavar="N",
                        help="processes per case (default 5)")
    parser.add_argument("--warm-only", action="store_true",
                        help="leave the page cache alone (dropping pages slows other users of "
                        "the same files)")
    parser.add_argument("--json", action="store_true", help="one JSON object per stage and line")
    add_engine_options(parser)
    parser.set_defaults(run=run, refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    num_runs = as_int("--runs", args.runs, 1, 1000, "bench")
    directory = Path(require_directory(args.model))
    options = {name: value for name, value in engine_arguments(args).items() if value is not None}
    measured = measure_startup(directory, options, num_runs, is_cold=not args.warm_only)
    command = shlex.join(args.command_line)
    if args.json:
        common = {**machine_record(), "model": args.model, "device": args.device,
                  "num_workers": args.threads, "packed_cache": args.packed_cache, "clock": "wall",
                  "repeat": command}
        for case in measured:
            for record in case.records():
                print_json({**record, **common})
        return 0
    facts = machine_record()
    print(f"mimo_rt bench {facts['version']} ({facts['commit'] or 'no commit'}"
          f"{'+' if facts['dirty'] else ''})  {facts['machine']}  {facts['date']}")
    print(format_table([_row(case) for case in measured if case.runs],
                       ("page cache", "n", *(f"{stage} ms" for stage in STAGES), "total ms",
                        "p10..p90")))
    for case in measured:
        if case.skipped:
            print(f"{case.cache}: skipped ({case.skipped})")
    print(f"repeat: {command}")
    return 0


def _row(case: StartupTimes) -> list[str]:
    medians = [1e3 * statistics.median(case.stage_s(stage)) for stage in (*STAGES, "total")]
    low, high = spread(case.stage_s("total"))
    return [case.cache, str(len(case.runs)), *(f"{median:.0f}" for median in medians),
            f"{low * 1e3:.0f}..{high * 1e3:.0f}"]
