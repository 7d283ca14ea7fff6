"""``mimo-rt chat``: a conversation in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from ..errors import MimoRtError
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
from ._output import format_stats, note, write_text

_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C cancels an answer."


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "chat", parents=[common], help="talk to a model", allow_abbrev=False,
        description=f"A conversation in the terminal. {_HELP}",
    )
    parser.add_argument("model", metavar="MODEL", help="checkpoint directory")
    parser.add_argument("--system", metavar="TEXT", help="system message")
    add_sampling_options(parser)
    add_session_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    arguments = sampling_arguments(args)
    checked_prompt(args, args.model, [{"role": "user", "content": "?"}])
    with open_session(args, args.model) as session:
        Conversation(session, arguments, args.system, args.quiet).run()
    return 0


class Conversation:
    """The read-answer loop. Every turn extends the messages; the KV cache is reused."""

    def __init__(
        self, session: Session, arguments: dict[str, Any], system: str | None, is_quiet: bool
    ) -> None:
        self._session = session
        self._arguments = arguments
        self._head = [{"role": "system", "content": system}] if system else []
        self._messages: list[dict[str, str]] = list(self._head)
        self._is_quiet = is_quiet
        self._is_terminal = sys.stdin.isatty()

    def run(self) -> None:
        session = self._session
        if self._is_terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  (input() then has line editing and history)
            note(f"{session!r}. {_HELP}")
        while (line := self._read_line()) is not None:
            if line in ("/exit", "/quit"):
                break
            if line == "/reset":
                self._messages = list(self._head)
                session.reset()
                note("[conversation forgotten]")
            elif line in ("/help", "/?"):
                note(_HELP)
            elif line:
                self._answer(line)

    def _read_line(self) -> str | None:
        """The next line; None at the end of input."""
        while True:
            try:
                return input("> " if self._is_terminal else "").strip()
            except EOFError:
                return None
            except KeyboardInterrupt:
                if not self._is_terminal:
                    raise
                note("\n[Ctrl-D leaves]")

    def _answer(self, text: str) -> None:
        self._messages.append({"role": "user", "content": text})
        try:
            result = self._stream()
        except MimoRtError as error:  # e.g. the context is full: the conversation can go on
            self._messages.pop()
            note(f"[error: {error}]")
            return
        if result is None:
            self._messages.pop()
            return
        self._messages.append({"role": "assistant", "content": result.text})
        if not self._is_quiet:
            stats = result.stats
            with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C: without the share
                stats = with_bandwidth(self._session, result).stats
            note(f"[{result.finish_reason}; {format_stats(stats)}]")

    def _stream(self) -> GenerationResult | None:
        stream = self._session.stream(self._messages, **self._arguments)
        try:
            with stream:
                for event in stream:
                    write_text(event.text)
        except KeyboardInterrupt:
            note("\n[cancelled]")
        else:
            write_text("\n")
        return stream.result
