"""Options that several commands share, and how they become a session."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from .. import _C
from ..loading import ProgressLine
from ..params import SamplingParams
from ..preflight import DEFAULT_MAX_CONTEXT
from ..results import GenerationResult
from ..session import Session
from ..session_state import Limits
from ..text import ModelText
from ._output import note

# flag, field of SamplingParams, type, help. Ranges are checked by SamplingParams.
_SAMPLING_FLAGS: tuple[tuple[str, str, Any, str], ...] = (
    ("--max-tokens", "max_tokens", int, "upper limit (default: {max_tokens_default})"),
    ("--min-tokens", "min_tokens", int, "no stop before this many tokens"),
    ("--temperature", "temperature", float, "0 takes the most likely token"),
    ("--top-k", "top_k", int, "keep this many tokens; 0: all"),
    ("--top-p", "top_p", float, "keep the smallest set of this probability"),
    ("--min-p", "min_p", float, "keep tokens of at least this fraction of the best one's"),
    ("--repetition-penalty", "repetition_penalty", float, "1 is off"),
    ("--seed", "seed", int, "repeat an earlier output (default: a fresh one)"),
    ("--num-draft-tokens", "num_draft_tokens", int, "drafts per round (default: a whole block)"),
)


def require_writable(flag: str, path: Path) -> None:
    """Say that a file cannot be written before the minutes that lead up to it."""
    place = path if path.exists() else path.parent
    if path.is_dir() or not path.parent.is_dir() or not os.access(place, os.W_OK):
        raise OSError(f"{flag}: expected a file that can be written, got '{path}'.")


def window_width(text: str) -> int:
    """The value of --window-tokens."""
    if not text.isdecimal() or not 1 <= int(text) < 2**30:
        raise argparse.ArgumentTypeError(f"expected a whole number of tokens from 1, got '{text}'.")
    return int(text)


def add_backend_options(parser: argparse.ArgumentParser) -> Any:
    """Where and how wide to run; returns the group of options."""
    group = parser.add_argument_group("engine")
    group.add_argument("--device", "--backend", default="auto", metavar="NAME",
                       help="auto, cpu, ref, cuda or a backend of 'mimo-rt doctor'")
    group.add_argument("--threads", type=int, metavar="N", help="workers (default: all cores)")
    group.add_argument("--no-pin", action="store_true", help="do not bind workers to cores")
    group.add_argument("--activations", choices=("bf16", "int8"), default="bf16",
                       help="what MXFP4 weights are multiplied with; int8 is faster and gives other "
                       "logits (default: bf16)")
    group.add_argument("--no-mmap", action="store_true",
                       help="read the weight files into memory instead of mapping them")
    return group


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Where to run, and as what."""
    group = add_backend_options(parser)
    group.add_argument("--window-tokens", type=window_width, metavar="N",
                       help="width of window layers instead of the config's")
    group.add_argument("--draft", default="auto", metavar="DIR",
                       help="directory of a DFlash draft; ngram: drafts from the text so far, no "
                       "model; none; auto (default): MODEL/dflash if it exists, else ngram")
    group.add_argument("--packed-cache", default="none", metavar="DIR",
                       help="keep packed weights in files that later starts map: none (the "
                       "default), auto (see 'mimo-rt cache list'), or a directory")


def add_session_options(parser: argparse.ArgumentParser) -> None:
    """Engine options and those of a conversation."""
    add_engine_options(parser)
    group = parser.add_argument_group("session")
    group.add_argument("--max-context", type=int, metavar="N", help="tokens of prompt and output")
    group.add_argument("--generation-config", choices=("auto", "none"), default="auto",
                       help="none: ignore the sampling defaults of the model")
    group.add_argument("--quiet", action="store_true", help="no progress, no statistics")


def add_sampling_options(
    parser: argparse.ArgumentParser, max_tokens_default: str = "until a stop or full context"
) -> None:
    """The flags of `SamplingParams`."""
    group = parser.add_argument_group("sampling")
    for flag, field, kind, text in _SAMPLING_FLAGS:
        text = text.format(max_tokens_default=max_tokens_default)
        extra = ("-n",) if field == "max_tokens" else ()
        group.add_argument(flag, *extra, dest=field, type=kind, help=text,
                           metavar="N" if kind is int else "X")
    group.add_argument("--stop", action="append", metavar="TEXT",
                       help="end before this text (may be repeated)")
    group.add_argument("--stop-token-id", dest="stop_token_ids", action="append", type=int,
                       metavar="ID", help="end at this token (may be repeated)")
    group.add_argument("--draft-mode", choices=("off", "fixed", "adaptive"),
                       help="how many drafts a round verifies (default: adaptive)")
    group.add_argument("--draft-proposal", choices=("argmax", "sampled"),
                       help="how the draft proposes when temperature > 0 (default: argmax)")
    group.add_argument("--ignore-eos", action="store_true", default=None,
                       help="the model's end token does not stop")


def sampling_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `Session.generate`: only what was given, and already checked."""
    names = [field for _, field, _, _ in _SAMPLING_FLAGS]
    names += ["stop", "stop_token_ids", "ignore_eos", "logprobs", "draft_mode", "draft_proposal"]
    values = {name: getattr(args, name, None) for name in names}
    given = {name: value for name, value in values.items() if value is not None}
    SamplingParams(**given)  # a bad value is told before the model is loaded
    return given


def open_session(args: argparse.Namespace, model_dir: Any) -> Session:
    """Load a model with a progress line."""
    line = None if args.quiet else ProgressLine("loading")
    try:
        session = Session(
            model_dir,
            **engine_arguments(args),
            max_context=args.max_context,
            generation_config=args.generation_config,
            progress=line,
        )
    finally:
        if line is not None:
            line.close()
    if not args.quiet:
        for report in session.engine.packed_cache:
            if report.state == "failed":
                note(f"packed cache: {report.message}")
        for text in session.notes:
            note(text)
    return session


def with_bandwidth(session: Session, result: GenerationResult) -> GenerationResult:
    """``result`` with the share of the read bandwidth that its decoding reached.

    The bandwidth is measured once per session, and only now: nobody waits for it before a text. A
    GPU that the model fills has no room for it, and the share stays unknown.
    """
    try:
        gbs = session.stats.bandwidth_gbs or session.measure_bandwidth()
    except _C.OutOfMemoryError:
        return result
    stats = dataclasses.replace(result.stats, bandwidth_fraction=result.stats.decode_gbs / gbs)
    return dataclasses.replace(result, stats=stats)


def checked_prompt(args: argparse.Namespace, model_dir: str | os.PathLike[str], prompt: Any) -> Any:
    """Token ids of ``prompt``: what is wrong with it is told before the model is loaded."""
    directory = Path(model_dir)
    if not directory.is_dir():
        return prompt  # loading says so
    config = _C.ModelConfig.from_directory(str(directory), args.window_tokens or 0)
    text = ModelText(directory)
    if args.stop and text.tokenizer is None:
        raise _C.InvalidArgumentError(
            "[Session] stop: stop strings need a tokenizer.json, got none. Use --stop-token-id."
        )
    ids = text.prompt_ids(prompt)
    for name, values in (("prompt", ids), ("stop_token_ids", args.stop_token_ids or [])):
        for token_id in values:
            if token_id >= config.vocab_size:
                raise _C.InvalidArgumentError(
                    f"[Session] {name}: expected ids in 0..{config.vocab_size - 1}, "
                    f"got {token_id}."
                )
    longest = Limits(args.max_context, None).max_context
    limit = longest or min(DEFAULT_MAX_CONTEXT, config.max_position_embeddings)
    if len(ids) >= limit:
        raise _C.CapacityError(
            f"[Session] prompt: expected at most {limit - 1} tokens, got {len(ids)}. "
            "Raise --max-context."
        )
    return ids


def engine_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of EngineOptions, for commands that need an engine without a session."""
    return {
        "device": args.device,
        "num_threads": args.threads,
        "pin_threads": not args.no_pin,
        "window_tokens": args.window_tokens,
        "draft": args.draft,
        "activations": args.activations,
        "packed_cache": args.packed_cache,
        "use_mmap": False if args.no_mmap else None,
    }
