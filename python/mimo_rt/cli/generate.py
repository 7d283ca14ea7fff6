"""``mimo-rt generate``: continue a text; the output streams to stdout."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any, BinaryIO

from ..results import GenerationResult
from ..session import Session
from ._options import (
    add_sampling_options,
    add_session_options,
    checked_prompt,
    open_session,
    sampling_arguments,
    with_bandwidth,
)
from ._output import format_stats, note, print_json, write_text

_MAX_PROMPT_BYTES = 64 << 20  # far more than any context holds


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "generate", parents=[common], help="continue a text", allow_abbrev=False,
        description="Continue a prompt. Text goes to stdout, everything else to stderr.",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint directory")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("-p", "--prompt", metavar="TEXT")
    source.add_argument("-f", "--file", metavar="FILE", help="read the prompt; '-' is stdin")
    source.add_argument("--prompt-ids", metavar="IDS", help="token ids, e.g. '1,2,3'")
    parser.add_argument("--chat", action="store_true",
                        help="the prompt is a user's message for the chat template")
    parser.add_argument("--system", metavar="TEXT", help="system message, with --chat")
    parser.add_argument("--json", action="store_true",
                        help="print one JSON record at the end instead of the text")
    parser.add_argument("--logprobs", type=int, metavar="N",
                        help="report this many alternatives per token, with --json")
    add_sampling_options(parser)
    add_session_options(parser)
    parser.set_defaults(run=run, refuse=parser.error)


def run(args: argparse.Namespace) -> int:
    if args.system is not None and not args.chat:
        args.refuse("--system needs --chat.")
    if args.logprobs is not None and not args.json:
        args.refuse("--logprobs needs --json.")
    arguments = sampling_arguments(args)
    prompt = _read_prompt(args)
    if args.chat:
        prompt = _chat_messages(prompt, args.system)
    prompt = checked_prompt(args, args.model, prompt)
    with open_session(args, args.model) as session:
        if args.json:
            result = session.generate(prompt, **arguments)
            if not args.quiet:
                result = with_bandwidth(session, result)
            print_json({"model": args.model, "backend": session.backend, **result.to_dict()})
        else:
            result = stream_text(session, prompt, arguments)
            write_text("\n")
        if not args.quiet:
            stats = with_bandwidth(session, result).stats
            note(f"[{result.finish_reason}; {format_stats(stats)}; seed {result.seed}]")
    return 0


def stream_text(session: Session, prompt: Any, arguments: dict[str, Any]) -> GenerationResult:
    """Write the text (or, without a tokenizer, the ids) of a generation while it is made."""
    with session.stream(prompt, **arguments) as stream:
        for event in stream:
            if session.has_tokenizer:
                write_text(event.text)
            elif event.token_ids:
                write_text(" ".join(map(str, event.token_ids)) + " ")
    assert stream.result is not None
    return stream.result


def _chat_messages(prompt: Any, system: str | None) -> list[dict[str, str]]:
    if not isinstance(prompt, str):
        raise ValueError("--chat needs a text prompt, not --prompt-ids.")
    head = [{"role": "system", "content": system}] if system else []
    return [*head, {"role": "user", "content": prompt}]


def _read_prompt(args: argparse.Namespace) -> Any:
    if args.prompt_ids is not None:
        with contextlib.suppress(ValueError):
            return [int(part) for part in args.prompt_ids.replace(",", " ").split()]
        raise ValueError(f"--prompt-ids: expected integers, got '{args.prompt_ids}'.")
    if args.prompt is not None:
        return args.prompt
    if args.file is not None and args.file != "-":
        with Path(args.file).open("rb") as file:
            return _decode(_read_bounded(file, args.file), args.file)
    if sys.stdin.isatty():
        note("reading the prompt from the terminal; end with Ctrl-D")
    return _decode(_read_bounded(sys.stdin.buffer, "standard input"), "standard input")


def _read_bounded(file: BinaryIO, source_name: str) -> bytes:
    """All of a file, which may be a device without an end."""
    data = file.read(_MAX_PROMPT_BYTES + 1)
    if len(data) > _MAX_PROMPT_BYTES:
        raise ValueError(
            f"the prompt in {source_name}: expected at most {_MAX_PROMPT_BYTES} bytes, got more."
        )
    return data


def _decode(data: bytes, source_name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the prompt in {source_name}: expected UTF-8, got byte 0x{data[error.start]:02x} at "
            f"{error.start}."
        ) from None
