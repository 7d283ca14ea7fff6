"""``mimo-rt plan``: show, prove and trace the plan of a model."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from .. import _C
from ..bench.breakdown import Breakdown, measure_breakdown
from ..errors import MimoRtError
from ..loading import open_engine
from ..value_checks import as_int
from ._breakdown import breakdown_text
from ._options import add_engine_options, engine_arguments, require_writable
from ._output import format_bytes, format_table, note, print_json, public_fields

_TRACE_PROMPT_TOKENS = 8
_TRACED_STEPS = 16
_MAX_LOGIT_ROWS = 64  # as in the engine's plans: the hash covers it


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "plan", parents=[common], help="show and prove the task plan", allow_abbrev=False,
        description="Build the plan of a model's step and, when it has a draft, of a round "
        "(draft, verify, accept). A config.json alone is enough, except for --trace, which runs "
        "a real step. --device cuda: as that engine plans; with --workers no GPU is needed.",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint directory or config.json")
    parser.add_argument("--workers", type=int, metavar="N",
                        help="the same as --threads (default: all usable cores; on cuda: all "
                        "multiprocessors)")
    parser.add_argument("--max-tokens", type=int, default=8, metavar="T",
                        help="rows a step may have (default 8); 64 on cuda: the steps of a prompt")
    parser.add_argument("--verify", action="store_true", help="prove the plan sound")
    parser.add_argument("--dump", action="store_true", help="one task per line")
    parser.add_argument("--trace", metavar="FILE",
                        help="run a step and write a Chrome trace (Perfetto opens it)")
    parser.add_argument("--json", action="store_true", help="one JSON record")
    add_engine_options(parser)
    parser.set_defaults(run=run, refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    num_workers = _checked_workers(args)
    max_tokens = as_int("--max-tokens", args.max_tokens, 1, 4096, "plan")
    config = read_config(Path(args.model), args.window_tokens or 0)
    if args.trace:
        _check_trace(args)  # before any work
    args.threads = num_workers
    engine = _open_engine(args) if args.trace else None
    if engine is None:
        draft = read_draft(args, config)
        block_size = _block_size(args, draft)
        plan, round_plan = build_plans(
            config, draft, block_size, num_workers, max_tokens, args.device
        )
    else:  # made with the costs measured on this machine, or for a GPU's multiprocessors
        plan, round_plan = engine.decode_plan, engine.round_plan
    plans = [plan] if round_plan is None else [plan, round_plan]
    reports = [each.verify() if args.verify else None for each in plans]
    breakdown = None if engine is None else write_trace(args.trace, engine)
    if args.json:
        records = [_record(*each) for each in zip(plans, reports)]
        traced = {"breakdown": breakdown.record()} if breakdown else {}
        print_json(records[0] | {"round": records[1] if round_plan else None} | traced)
    else:
        for index, (each, report) in enumerate(zip(plans, reports)):
            print("\n" * bool(index), end="")
            _print_summary(args.model, config, each, report)
            if args.dump:
                print(each.dump(), end="")
        if breakdown:
            print(f"\n{breakdown_text(breakdown)}")
    return 0


def _block_size(args: argparse.Namespace, draft: Any) -> int:
    """Tokens of a round as an engine on the device has them; 0: it has none."""
    if draft:
        return draft.block_size
    is_cuda = _is_cuda(args.device)
    looks_up = args.draft == "auto" and (is_cuda or _C.resolve_backend(args.device).startswith("cpu"))
    if looks_up or args.draft == "ngram":
        return _C.NGRAM_BLOCK_SIZE
    return 1 if is_cuda else 0  # many tokens per launch, also without drafts


def _is_cuda(device: str) -> bool:
    """Whether an engine on the device would be the CUDA engine; asks for no GPU."""
    return "cuda" in (device, os.environ.get("MIMO_RT_BACKEND") if device == "auto" else None)


def build_plans(
    config: Any, draft: Any, block_size: int, num_workers: int, max_tokens: int,
    device: str = "auto",
) -> tuple[Any, Any]:
    """The plans of a step and of a round (None without a block size), as an engine builds them."""

    costs = _measured_costs(device, num_workers)
    longest_step = max(max_tokens, _C.EngineOptions().prefill_chunk_tokens)
    if _is_cuda(device):
        longest_step = _C.cuda_max_step_tokens(config)
        max_tokens = min(max_tokens, longest_step)

    def build(tokens: int, is_round: bool) -> Any:
        options = _C.cuda_plan_options() if _is_cuda(device) else _C.PlanOptions()
        options.num_workers = num_workers
        options.max_tokens = tokens
        options.max_logit_rows = min(tokens, options.max_logit_rows if _is_cuda(device) else _MAX_LOGIT_ROWS)
        options.max_context_rows = max(longest_step, draft.block_size) if draft else 0
        options.is_round = is_round
        options.costs = costs
        return _C.Plan.build(config, options, draft)

    return build(max_tokens, False), build(block_size, True) if block_size else None


def _measured_costs(device: str, num_workers: int) -> Any:
    """Those that an engine on the device would plan with."""
    try:
        key = _C.cost_key(device, num_workers)
        return _C.load_cost_table(key) or _C.CostTable()
    except MimoRtError:  # no such device here; or a file of which the engine says so when it opens
        return _C.CostTable()


def _checked_workers(args: argparse.Namespace) -> int | None:
    """The number of workers, after refusing options that would be ignored; None: the engine's."""
    if args.workers is not None and args.threads is not None:
        args.refuse("--workers and --threads are the same here: give one.")
    runs_only = (args.no_pin or args.no_mmap or args.activations != "bf16"
                 or args.packed_cache != "none")
    if runs_only and not args.trace:
        args.refuse("--activations, --no-pin, --no-mmap and --packed-cache need --trace: "
                    "without it nothing runs.")
    if args.trace == "":
        args.refuse("--trace: expected a file, got ''.")
    if not _is_cuda(args.device):
        _C.resolve_backend(args.device)
    if args.json and args.dump:
        args.refuse("--dump is text: not together with --json.")
    chosen = args.threads if args.workers is None else args.workers
    if chosen is None:
        if args.trace:
            return None
        return _C.cost_key("cuda").num_workers if _is_cuda(args.device) else _C.num_usable_cores()
    return as_int("--workers", chosen, 1, 4096, "plan")


def _check_trace(args: argparse.Namespace) -> None:
    """What would fail only after the minutes that loading may take."""
    if not Path(args.model).is_dir():
        raise ValueError(f"--trace needs the weights: expected a directory, got '{args.model}'.")
    require_writable("--trace", Path(args.trace))


def read_config(path: Path, window_tokens: int = 0) -> Any:
    """The config of a model directory, or of a config.json by itself."""
    if path.is_dir():
        return _C.ModelConfig.from_directory(str(path), window_tokens)
    text = path.read_text(encoding="utf-8")
    return _C.ModelConfig.from_json(text, str(path), window_tokens)


def read_draft(args: argparse.Namespace, config: Any) -> Any:
    """The draft's config, checked against the target's; None where an engine on the device has no draft model."""
    if args.draft in ("none", "ngram"):
        return None
    folder = Path(args.model) / "dflash" if args.draft == "auto" else Path(args.draft)
    if args.draft == "auto" and not folder.is_dir():
        return None
    draft = _C.DraftConfig.from_directory(str(folder))
    draft.check_target(config)
    limit = _C.cuda_plan_options().max_tokens
    if not _is_cuda(args.device) or draft.block_size <= limit:
        return draft
    if args.draft == "auto":
        note(f"the draft of this model is not used: its blocks have {draft.block_size} tokens, "
             f"the CUDA engine verifies {limit}; drafts come from the text instead")
        return None
    raise ValueError(f"draft block_size: expected at most {limit} on device 'cuda', got {draft.block_size}.")


def _open_engine(args: argparse.Namespace) -> Any:
    arguments = engine_arguments(args) | {"max_decode_tokens": args.max_tokens}
    return open_engine(Path(args.model), None, arguments)


def write_trace(path: str, engine: Any) -> Breakdown:
    """Run a short prompt and some steps; the trace is of the last step."""
    session = _C.Session(engine, max_context=min(1024, engine.config.max_position_embeddings))
    breakdown, trace = measure_breakdown(engine, session, _TRACE_PROMPT_TOKENS, _TRACED_STEPS)
    Path(path).write_text(trace, encoding="utf-8")
    note(f"trace of one decode step on {engine.backend}: {path}")
    return breakdown


def _record(plan: Any, report: Any) -> dict[str, Any]:
    return {
        "num_workers": plan.num_workers,
        "num_tasks": plan.num_tasks,
        "arena_bytes": plan.arena_bytes,
        "hash": f"{plan.hash():016x}",
        "buffers": [public_fields(buffer) for buffer in plan.buffers],
        "counters": [public_fields(counter) for counter in plan.counters],
        "verified": None if report is None else public_fields(report),
    }


def _print_summary(model: str, config: Any, plan: Any, report: Any) -> None:
    is_round = plan.options.is_round
    rows = [
        ("model", f"{config.model_type}, {config.num_layers} layers, hidden {config.hidden_size}"),
        ("workers", plan.num_workers),
        ("tokens per round" if is_round else "tokens per step", f"1 to {plan.options.max_tokens}"),
        ("tasks", plan.num_tasks),
        ("counters", len(plan.counters)),
        ("tag edges among them", sum(counter.kind.name == "tag" for counter in plan.counters)),
        ("buffers", len(plan.buffers)),
        ("activation arena", format_bytes(plan.arena_bytes)),
        ("hash", f"{plan.hash():016x}"),
    ]
    print(format_table(rows, ("round of" if is_round else "plan of", model)))
    if report is not None:
        print(f"\n{report}")
