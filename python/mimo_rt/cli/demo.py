"""``mimo-rt demo``: fetch a small real model once and let it answer."""

from __future__ import annotations

import argparse
import time
from typing import Any

from ..loading import ProgressLine
from ._options import (
    add_sampling_options,
    add_session_options,
    checked_prompt,
    open_session,
    sampling_arguments,
    with_bandwidth,
)
from ._output import format_stats, note, write_text
from .generate import stream_text

_DEFAULT_PROMPT = "Write a haiku about the sea."
_DEFAULT_MAX_TOKENS = 256
_DEFAULT_REPETITION_PENALTY = 1.1  # a model of 135M parameters falls into loops without


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "demo", parents=[common], help="fetch a small model and let it answer", allow_abbrev=False,
        description="Answer a prompt with SmolLM2-135M-Instruct, stored like MiMo-V2.5-Pro-FP4. "
        "The first call fetches 93 MB and converts it (needs the extra: mimo_rt[demo]).",
    )
    parser.add_argument("prompt", nargs="?", default=_DEFAULT_PROMPT, metavar="PROMPT",
                        help=f"default: {_DEFAULT_PROMPT!r}")
    add_sampling_options(parser, str(_DEFAULT_MAX_TOKENS))
    add_session_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..checkpoints import ensure_demo_model

    defaults = {"max_tokens": _DEFAULT_MAX_TOKENS, "repetition_penalty": _DEFAULT_REPETITION_PENALTY}
    arguments = {**defaults, **sampling_arguments(args)}
    progress = _Stages(args.quiet)
    try:
        model_dir = ensure_demo_model(progress=progress)
    finally:
        progress.close()
    if progress.was_called:  # the model is new here: say once whose it is
        note((model_dir / "README.md").read_text(encoding="utf-8").strip())
        note(f"Kept in {model_dir}.\n")
    prompt = checked_prompt(args, model_dir, [{"role": "user", "content": args.prompt}])
    with open_session(args, model_dir) as session:
        result = stream_text(session, prompt, arguments)
        write_text("\n")
        if not args.quiet:
            stats = with_bandwidth(session, result).stats
            note(f"[{session.backend}; {format_stats(stats)}; seed {result.seed}]")
    return 0


class _Stages:
    """Progress of fetching and converting: a line each, moving on a terminal."""

    def __init__(self, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._stage = ""
        self._begin = 0.0
        self._line: ProgressLine | None = None
        self.was_called = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.was_called = True
        if self._is_quiet:
            return
        if stage != self._stage:
            self.close()
            self._begin = time.monotonic()
            note(f"demo model: {stage} …")
            self._stage, self._line = stage, ProgressLine(f"  {stage}", in_gb=False)
        if self._line is not None:
            self._line(done, total)
        if done == total:
            self.close()
            note(f"demo model: {stage} took {time.monotonic() - self._begin:.0f} s")

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
