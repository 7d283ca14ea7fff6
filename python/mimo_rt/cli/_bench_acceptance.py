"""``mimo-rt bench acceptance``: what a draft is worth, and that it never changes the text."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bench import adversarial
from ..bench.acceptance import (
    MODES,
    PLAIN,
    Generation,
    record,
    require_equal,
    run_prompts,
)
from ..bench.draft_share import measure_draft_share
from ..bench.measurement import median_bounds
from ..bench.prompts import DEFAULT_FILE, BenchPrompt, read_prompts
from ..bench.summary import Summary, summarize
from ..errors import MimoRtError
from ..loading import ProgressLine
from ..session import Session
from ..value_checks import as_int
from ._bench_report import engine_record, print_head
from ._options import (
    add_sampling_options,
    add_session_options,
    engine_arguments,
    open_session,
    sampling_arguments,
)
from ._output import format_table, note, print_json

_MAX_TOKENS = 128
_ADVERSARIAL_MAX_TOKENS = 256  # what finding out costs is spread over the stream
_RANDOM_PROMPTS = 12  # a verdict at 95 % needs five; of twelve, two may be disturbed


def add_parsers(cases: Any, common: argparse.ArgumentParser) -> None:
    text = "tokens accepted per round and the speed they bring, plain and drafted by turns"
    parser = cases.add_parser(
        "acceptance", parents=[common], help=text, allow_abbrev=False,
        description=f"{text}. Every output is compared with that of plain decoding; a difference "
        "ends with exit code 1. Greedy unless --temperature is given.",
    )
    parser.add_argument("--model", metavar="DIR", help="checkpoint directory; drafts as --draft says")
    parser.add_argument("--adversarial", action="store_true",
                        help="a useless draft: without --model a random one on random weights; "
                        "plain is an engine without a draft (memory for both is needed); exit code 1 "
                        f"unless adaptive reaches {adversarial.LIMIT} of it with a certainty of 95 %%")
    parser.add_argument("--layers", type=int, metavar="N",
                        help="layers of the random model (default 16)")
    parser.add_argument("--prompts", type=Path, action="append", metavar="FILE.jsonl",
                        help="lines with prompt, messages or token_ids, and category and id (may be "
                        "repeated; default: a small set of our own)")
    parser.add_argument("--limit", type=int, metavar="N", help="prompts per category")
    parser.add_argument("--modes", type=_mode_list, default=MODES, metavar="LIST",
                        help="beside plain: fixed, adaptive or both (default: fixed,adaptive)")
    parser.add_argument("--per-step", action="store_true",
                        help="with --json: what every step drafted and accepted")
    parser.add_argument("--json", action="store_true",
                        help="one JSON object per prompt and mode, then per category and mode")
    add_session_options(parser)
    add_sampling_options(parser, max_tokens_default=f"{_MAX_TOKENS}, with "
                         f"--adversarial {_ADVERSARIAL_MAX_TOKENS}")
    parser.set_defaults(run=run, refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    params = _params(args)
    with contextlib.ExitStack() as opened:
        session, plain, prompts = _open_all(args, opened)
        bandwidth_gbs = session.measure_bandwidth()
        line = None if args.quiet else ProgressLine("generating", in_gb=False)
        try:
            generations = run_prompts(session, prompts, args.modes, params, line, plain)
        finally:
            if line is not None:
                line.close()
        summaries = summarize(generations)
        share = measure_draft_share(session) if session.engine.draft_config else None
        common = {
            **engine_record(args, session.engine), **params,
            "bandwidth_gbs": round(bandwidth_gbs, 3), "clock": "wall",
            "draft_bytes_per_round": session.engine.draft_bytes_per_round,
            **(share.record() if share else {}),
            "repeat": shlex.join(args.command_line),
        }
        if args.json:
            _print_records(generations, summaries, common)
        else:
            print_head(args, session.engine, bandwidth_gbs)
            _print_report(generations, summaries, params)
            if share:
                print(share.to_text())
            print(f"repeat: {common['repeat']}")
    require_equal(generations)
    return _adversarial_code(summaries) if args.adversarial else 0


def _params(args: argparse.Namespace) -> dict[str, Any]:
    if args.draft_mode is not None:
        args.refuse("--draft-mode: use --modes.")
    if not (args.model or args.adversarial):
        args.refuse("expected --model DIR or --adversarial.")
    if args.layers is not None and args.model:
        args.refuse("--layers shapes the random model only.")
    of_model = (args.draft not in ("auto", "ngram") or args.packed_cache != "none" or args.no_mmap
                or args.window_tokens is not None)
    if of_model and not args.model:
        args.refuse("--draft (but ngram), --packed-cache, --no-mmap and --window-tokens need "
                    "--model.")
    if args.prompts and args.adversarial:
        args.refuse("--adversarial has prompts of its own.")
    if args.per_step and not args.json:
        args.refuse("--per-step needs --json.")
    args.layers = 16 if args.layers is None else as_int("--layers", args.layers, 1, 1024, "bench")
    if args.limit is not None:
        as_int("--limit", args.limit, 1, 1 << 20, "bench")
    max_tokens = _ADVERSARIAL_MAX_TOKENS if args.adversarial else _MAX_TOKENS
    params = {"temperature": 0.0, "max_tokens": max_tokens, **sampling_arguments(args)}
    if params["temperature"]:
        params.setdefault("seed", 0)  # all modes draw the same numbers
    if args.adversarial:
        params["ignore_eos"] = True
    if args.per_step:
        params["want_rounds"] = True
    return params


def _open_all(
    args: argparse.Namespace, opened: contextlib.ExitStack
) -> tuple[Session, Session | None, list[BenchPrompt]]:
    """The session that drafts; with --adversarial another that cannot; and prompts."""
    prompts = []
    if not args.adversarial:  # a bad file is told before the model is loaded
        prompts = read_prompts(args.prompts or [DEFAULT_FILE], args.limit)
    session = opened.enter_context(_open(args, args.draft))
    _require_drafts(session)
    if not args.adversarial:
        return session, None, prompts
    prompts = adversarial.random_prompts(session.config, args.limit or _RANDOM_PROMPTS)
    return session, opened.enter_context(_open(args, "none")), prompts


def _open(args: argparse.Namespace, draft: Any) -> Session:
    if args.model:
        return open_session(argparse.Namespace(**{**vars(args), "draft": draft}), args.model)
    note("making random weights …")
    drafts = draft if draft in ("ngram", "none") else "model"
    engine = adversarial.random_engine(args.layers, engine_arguments(args), drafts)
    return Session.from_engine(engine, max_context=args.max_context)


def _require_drafts(session: Session) -> None:
    if session.engine.max_draft_tokens == 0:
        raise MimoRtError(
            "[bench] the model has no draft: expected MODEL/dflash. Give one with --draft DIR, or "
            "take drafts from the text with --draft ngram."
        )


def _print_records(
    generations: Sequence[Generation], summaries: Sequence[Summary], common: dict[str, Any]
) -> None:
    for generation in generations:
        print_json({**record(generation), **common})
    for summary in summaries:
        print_json({**summary.record(), **common})


def _print_report(
    generations: Sequence[Generation], summaries: Sequence[Summary], params: dict[str, Any]
) -> None:
    header = ("category", "n", "mode", "acceptance length", "rate", "tok/s", "x plain",
              "p10..p90", "mean width")
    print(format_table([_row(summary) for summary in summaries], header))
    for s in summaries:
        if s.mode == PLAIN or not s.draft.num_rounds:
            continue
        line = s.record()
        print(f"{s.category} {s.mode}: per position "
              f"{' '.join(f'{x:.2f}' for x in line['acceptance_per_position']) or '-'}; "
              f"accepted {_histogram(s.draft.accepted_histogram)}; "
              f"widths {_histogram(s.draft.width_histogram)}")
    checked = [g for g in generations if g.mode != PLAIN and g.equals_plain is not None]
    num_equal = sum(g.equals_plain is True for g in checked)
    if checked:
        print(f"equal to plain decoding, token for token: {num_equal} of {len(checked)} outputs")
    else:
        print("outputs not compared: --draft-proposal sampled promises the distribution only")
    print(f"temperature {params['temperature']:g}, at most {params['max_tokens']} tokens"
          + (f", seed {params['seed']}" if "seed" in params else ""))


def _row(summary: Summary) -> tuple[str, ...]:
    line = summary.record()
    if summary.mode == PLAIN:
        drafted = ("-", "-")
        width = "-"
    else:
        drafted = (f"{summary.mean_acceptance_length:.2f}",
                   f"{100 * summary.draft.acceptance_rate:.0f} %")
        rounds = summary.draft.num_rounds
        width = f"{summary.draft.num_draft_tokens / rounds:.2f}" if rounds else "-"
    ratio = "-" if summary.ratio is None else f"{summary.ratio:.2f}"
    ends = f"{line['over_plain_p10']:.2f}..{line['over_plain_p90']:.2f}" if summary.ratios else "-"
    return (summary.category, str(summary.num_prompts), summary.mode, *drafted,
            f"{summary.tokens_per_s:.1f}", ratio, ends, width)


def _histogram(counts: Sequence[int]) -> str:
    return " ".join(f"{n}:{count}" for n, count in enumerate(counts) if count) or "-"


def _adversarial_code(summaries: Sequence[Summary]) -> int:
    """0 if adaptive decoding is shown to reach the limit."""
    for summary in summaries:
        if summary.mode == "adaptive":
            verdict = adversarial.verdict(summary.ratios)
            shown = "-" if summary.ratio is None else f"{summary.ratio:.3f}"
            bounds = median_bounds(summary.ratios)
            certain = f", the median in {bounds[0]:.3f}..{bounds[1]:.3f}" if bounds else ""
            note(f"adaptive with a useless draft: {shown} x an engine without a draft{certain}, limit "
                 f"{adversarial.LIMIT}: {verdict}"
                 + (" (more prompts, --limit, or a quieter machine)" if verdict == "UNDECIDED" else ""))
            return int(verdict != "WITHIN")
    return 0


def _mode_list(text: str) -> tuple[str, ...]:
    modes = tuple(text.split(","))
    if not set(modes) <= set(MODES):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(MODES)}, got '{text}'")
    return tuple(dict.fromkeys((PLAIN, *modes)))
