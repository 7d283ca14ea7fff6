"""The command `mimo-rt`: one module per subcommand, each with `add_parser` and `run`.

Exit codes: 0 success, 1 error (one line on stderr; --debug shows the traceback), 2 wrong usage,
130 Ctrl-C. `mimo-rt --cmake-dir`, `--include-dir`, `--lib-dir`, `--cflags` and `--ldflags` answer
with what a C++ build needs.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from typing import Any

from .. import MimoRtError, __version__, _paths
from . import bench, cache, chat, demo, doctor, generate, inspect, kbench, plan, train
from ._output import escape_controls

_COMMANDS = (generate, chat, demo, inspect, plan, bench, kbench, doctor, cache, train)


class _Parser(argparse.ArgumentParser):
    """argparse's own hides that help or version could not be written."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:
            sys.stdout.write(message)
        else:
            super()._print_message(message, file)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(
        prog="mimo-rt",
        description="Run MiMo-V2-class models with MXFP4 experts.",
        epilog="For C++ builds: --cmake-dir, --include-dir, --lib-dir, --cflags, --ldflags.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mimo-rt {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        module.add_parser(subparsers, common)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Wrong usage exits with 2 from inside argparse."""
    arguments = sys.argv[1:] if argv is None else argv
    args = argparse.Namespace(debug=False)
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without UTF-8 gets '?', not a traceback
            stream.reconfigure(errors="replace")
    try:
        try:
            code = _run(arguments, args)
        except SystemExit:  # argparse has printed help, or what is wrong with the usage
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("\nmimo-rt: interrupted", file=sys.stderr)
        _flush_output()
        return 130
    except BrokenPipeError:  # the reader (head, less) has what it wanted
        _drop_output()
        return 0
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        print(f"mimo-rt: error: {_one_line(error)}", file=sys.stderr)
        _flush_output()
        return 1


def _run(arguments: list[str], args: argparse.Namespace) -> int:
    """Parses into `args` and runs the command."""
    if (answer := _paths.build_answer(arguments)) is not None:
        print(answer)
        return 0
    build_parser().parse_args(arguments, args)
    args.command_line = ["mimo-rt", *arguments]
    if getattr(args, "model", None) == "":  # as a path it would be the current directory
        raise ValueError("model: expected a directory, got ''.")
    return args.run(args)


def _flush_output() -> None:
    """After an error: what stdout cannot write is none of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()


def _drop_output() -> None:
    """What stdout holds and cannot write goes to /dev/null: Python flushes once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed_streams() -> None:
    """Standard streams that the caller closed (`>&-`) become /dev/null.

    In this order each gets its own descriptor back, which no other file can then take.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _one_line(error: Exception) -> str:
    text = escape_controls(" ".join(str(error).split())) or type(error).__name__
    if isinstance(error, (MimoRtError, OSError, ValueError)):
        return text
    # Not foreseen: the class name helps whoever reads the report.
    return f"{type(error).__name__}: {text} (--debug shows where)"
