"""``mimo-rt bench``: speed as a fraction of what the machine measured in the same run can do."""

from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path
from typing import Any

from .. import _C
from ..bench.cases import DECODE_ROWS, PREFILL_TOKENS, SESSION_COUNTS, VERIFY_ROWS, Bench
from ..bench.measurement import Measurement
from ..bench.prompt_beside import measure_prompt_beside
from ..bench.rates import DenseCost, TracedStep, dense_cost
from ..bench.rounding import compare_logits, prompt_logits
from ..bench.synthetic import synthetic_config, synthetic_draft_config, synthetic_engine
from ..loading import open_engine
from . import _bench_acceptance, _bench_costs, _bench_files, _bench_startup
from ._bench_report import print_measurements, records
from ._breakdown import traced_step_text
from ._options import add_backend_options, engine_arguments, window_width
from ._output import note, print_json

_HELP = {
    "bandwidth": "what all workers can read",
    "decode": f"one token per step, and {DECODE_ROWS} tokens per step, without a draft",
    "verify": "steps of 1 to 16 tokens, taking turns, and their cost in one-token steps",
    "prefill": f"a prompt of {PREFILL_TOKENS} tokens",
    "sessions": "a token for each of 1 to 16 sessions that decode at the same time",
    "prompt": "a prompt while another session decodes, and how long that one waits for a token",
    "contention": "one token per step while no, one, one per core other process computes",
}


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "bench", help="measure speed", allow_abbrev=False,
        description="Every case measures the read bandwidth beside its times. Without --model the "
        "weights are random, made in memory: hidden 2048, 16 layers, 64 experts, 4 per token.",
    )
    cases = parser.add_subparsers(dest="case", metavar="CASE", required=True)
    for name, text in _HELP.items():
        case = cases.add_parser(name, parents=[common], help=text, description=text,
                                allow_abbrev=False)
        _add_source(case)
        if name != "bandwidth":
            case.add_argument("--layers", type=int, metavar="N",
                              help="layers of the random model (default 16)")
            case.add_argument("--plot", type=Path, metavar="FILE.png",
                              help="draw a roofline of the results (needs matplotlib)")
            case.add_argument("--kernels", type=Path, metavar="FILE.jsonl",
                              help="lines of kbench --json to draw as well")
            case.add_argument("--window-tokens", type=window_width, metavar="N",
                              help="width of window layers instead of the config's")
            case.add_argument("--seconds", type=float, metavar="S",
                              help="time per case, and of the traces of verify (default 4)")
        if name in ("decode", "prefill", "sessions"):
            case.add_argument("--context", type=int, metavar="T",
                              help="tokens in the cache when decoding begins (default 16)")
        if name == "sessions":
            case.add_argument("--sessions", type=_number_list, metavar="LIST",
                              default=SESSION_COUNTS, help="how many (default 1,2,4,8,16)")
            case.add_argument("--draft", metavar="DIR",
                              help="by turns also with drafts: of the DFlash draft in DIR; ngram: "
                              "from the text; random: of a random draft of the random model "
                              "(default none)")
        if name in ("decode", "verify", "prefill"):
            case.add_argument("--breakdown", action="store_true",
                              help="also trace steps and say where their time goes")
        if name == "verify":
            case.add_argument("--rows", type=_number_list, metavar="LIST",
                              help="widths (default 1-8,16 of those that the device has)")
        case.add_argument("--json", action="store_true", help="one JSON object per case and line")
        add_backend_options(case)
        # These measure the target alone: a draft beside it would change what a step means.
        case.set_defaults(run=run, refuse=case.error, layers=None, context=None, draft="none",
                          packed_cache="none", plot=None, kernels=None, breakdown=False,
                          seconds=4.0, window_tokens=None)
    for module in (_bench_startup, _bench_acceptance, _bench_costs, _bench_files):
        module.add_parsers(cases, common)


def _add_source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", metavar="DIR", help="checkpoint directory")
    source.add_argument("--synthetic", action="store_true", help="random weights (the default)")


def run(args: argparse.Namespace) -> int:
    if args.layers is not None and args.model:
        args.refuse("--layers shapes the random model only.")
    if not args.model and (args.no_mmap or args.window_tokens is not None):
        args.refuse("--no-mmap and --window-tokens need --model.")
    if args.draft not in ("none", "ngram") and bool(args.model) == (args.draft == "random"):
        args.refuse("--draft: a directory needs --model, and random a random model.")
    if args.case == "bandwidth" and args.activations != "bf16":
        args.refuse("--activations means nothing here: nothing is multiplied.")
    if args.kernels and not args.plot:
        args.refuse("--kernels needs --plot.")
    args.layers = 16 if args.layers is None else args.layers
    args.context = 16 if args.context is None else args.context
    if not (math.isfinite(args.seconds) and 0 < args.seconds <= 3600):
        raise ValueError(f"--seconds: expected a number in (0, 3600], got {args.seconds}.")
    if not 1 <= args.context <= 1 << 20:
        raise ValueError(f"--context: expected 1..{1 << 20}, got {args.context}.")
    kernels = _bench_files.prepare_plot("--plot", args.plot, args.kernels) if args.plot else []
    exact_logits = None
    if args.activations != "bf16" and args.case != "bandwidth":
        exact_logits = prompt_logits(_open_engine(args, activations="bf16"))
    engine = _open_engine(args)
    for text in engine.notes():  # what makes the numbers worse than they need be
        note(text)
    bench = Bench(engine, args.context, args.seconds)
    if args.case == "verify":
        args.rows = bench.check_rows(args.rows)
    change = None
    if exact_logits is not None:
        change = compare_logits(exact_logits, prompt_logits(bench.engine))
    bench.measure_bandwidth()
    hash_, measured = _measure(args, bench)
    traced, dense = _trace(args, bench)
    bench.measure_bandwidth()  # again at the end: the machine may have changed its mind
    command = shlex.join(args.command_line)
    common = {**(change.record() if change else {}), "logits_hash": hash_ or None,
              "repeat": command}
    lines = [{**record, **common} for record in records(args, bench, measured)]
    if dense:
        _line_of(lines, dense.num_rows).update(dense.record())
    for step in traced:
        _line_of(lines, step.num_rows)["breakdown"] = step.record(bench.roofs)
    if args.json:
        for line in lines:
            print_json(line)
    else:
        print_measurements(args, bench, measured)
        if dense:
            print(dense.text())
        for step in traced:
            print(traced_step_text(step, bench.roofs))
        if change:
            print(change.text())
        print(f"{f'logits #{hash_}  ' if hash_ else ''}repeat: {command}")
    if args.plot:
        _bench_files.write_plot(lines, args.plot, kernels)
    return 0


def _measure(args: argparse.Namespace, bench: Bench) -> tuple[str, list[Measurement]]:
    """Hash of the checked logits, and the case's measurements."""
    if args.case == "bandwidth":
        return "", []
    # A wrong result is not timed.
    widest = max(args.rows) if args.case == "verify" else DECODE_ROWS
    hash_ = bench.check_rows_agree(widest)
    if args.plot or args.case != "decode":
        bench.measure_peak()
    if args.case == "verify":
        return hash_, bench.verify(args.rows)
    if args.case == "sessions":
        return hash_, bench.sessions(args.sessions)
    if args.case == "prompt":
        return hash_, [measure_prompt_beside(bench.engine)]
    if args.case == "contention":
        return hash_, bench.contention(_C.num_usable_cores())
    decode = bench.decode()
    if args.case == "prefill":
        return hash_, [bench.prefill(), decode]
    return hash_, [decode, bench.decode_rows()]


def _trace(args: argparse.Namespace, bench: Bench) -> tuple[list[TracedStep], DenseCost | None]:
    """The steps that --breakdown shows, and what `verify` always says of the dense products."""
    if args.case == "verify":
        widths = [n for n in args.rows if n == 1 or n == _traced_width(args.rows)]
        steps = bench.trace_rows(widths)
        dense = dense_cost(*steps) if len(steps) > 1 else None
        return (steps if args.breakdown else []), dense
    if not args.breakdown:
        return [], None
    return [bench.trace_prefill() if args.case == "prefill" else bench.trace_decode()], None


def _traced_width(rows: tuple[int, ...]) -> int:
    """The widest of those that rounds of a draft have."""
    return max(n for n in rows if n <= DECODE_ROWS)


def _line_of(lines: list[dict[str, Any]], num_rows: int) -> dict[str, Any]:
    """The record of a step that wide; of a prompt in several chunks, the prompt's."""
    return next((line for line in lines if line["tokens"] == num_rows), lines[0])


def _open_engine(args: argparse.Namespace, **changes: Any) -> Any:
    options = {**engine_arguments(args), **changes}
    options["yield_cores"] = args.case == "contention"  # elsewhere all workers are what is measured
    if args.case == "verify":  # all widths in one plan, as a round of a draft has them
        options["max_decode_tokens"] = max(DECODE_ROWS, *(args.rows or VERIFY_ROWS))
    if args.model:
        return open_engine(Path(args.model), None, options)
    if args.case == "bandwidth":
        args.layers = 2  # the weights are not read: only the workers are needed
    if not 1 <= args.layers <= 1024:
        raise ValueError(f"--layers: expected 1..1024, got {args.layers}.")
    note("making random weights …")
    config = synthetic_config(args.layers)
    if args.draft == "random":
        return synthetic_engine(config, {**options, "draft": None}, synthetic_draft_config(config))
    return synthetic_engine(config, options)


def _number_list(text: str) -> tuple[int, ...]:
    """"1-4,8" as (1, 2, 3, 4, 8); 1 is always among them, as the unit of the others."""
    numbers = {1}
    for part in text.split(","):
        low, _, high = part.partition("-")
        if not (low.isdigit() and (high.isdigit() or not _) and int(low) <= int(high or low)):
            raise argparse.ArgumentTypeError(f"expected numbers like 1-8,16, got '{text}'")
        numbers |= set(range(int(low), int(high or low) + 1))
    if not 1 <= min(numbers) <= max(numbers) <= 64:
        raise argparse.ArgumentTypeError(f"expected numbers in 1..64, got '{text}'")
    return tuple(sorted(numbers))
