"""``mimo-rt cache``: what lies in the packed cache, and emptying it."""

from __future__ import annotations

import argparse
import os
from typing import Any

from .. import _C
from ._output import escape_controls, format_bytes, format_table, print_json


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "cache", help="list or clear the packed cache", allow_abbrev=False,
        description="Packed weights that --packed-cache keeps. Clearing costs the next start of a "
        "model the time to pack its weights again; running engines are not disturbed.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for action, text in (("list", "show every file"), ("clear", "remove every file")):
        command = actions.add_parser(action, parents=[common], help=text, description=text,
                                     allow_abbrev=False)
        command.add_argument("--packed-cache", default="auto", metavar="DIR",
                             help="a directory (default: auto, $MIMO_RT_CACHE/packed)")
        if action == "list":
            command.add_argument("--json", action="store_true", help="one JSON record")
        command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.packed_cache in ("", "none"):
        raise ValueError("--packed-cache: expected auto or a directory, got none.")
    directory = _C.packed_cache_directory(os.fsencode(args.packed_cache))
    if args.action == "clear":
        print(f"{format_bytes(_C.clear_packed_cache(directory))} freed in {directory}")
        return 0
    entries = _C.list_packed_cache(directory)
    if args.json:
        print_json({"directory": str(directory), "files": [_record(entry) for entry in entries]})
        return 0
    print(f"{directory}: {cache_summary(entries)}")
    if entries:
        rows = [(entry.file.name, format_bytes(entry.num_bytes), state(entry), entry.part,
                 escape_controls(str(entry.source_dir))) for entry in entries]
        print(format_table(rows, ("file", "size", "state", "part", "made from")))
    return 0


def cache_summary(entries: list[Any]) -> str:
    """Number and size of the files of a packed cache, in words."""
    if not entries:
        return "empty"
    num_useless = sum(not entry.is_usable for entry in entries)
    size = format_bytes(sum(entry.num_bytes for entry in entries))
    files = "1 file" if len(entries) == 1 else f"{len(entries)} files"
    useless = f", {num_useless} of no use to this version" if num_useless else ""
    return f"{files}, {size}{useless}"


def state(entry: Any) -> str:
    """What a file is worth: usable, of another version, or broken."""
    if entry.is_usable:
        return "usable"
    return "other version" if entry.library_version else "broken"


def _record(entry: Any) -> dict[str, Any]:
    return {"file": str(entry.file), "num_bytes": entry.num_bytes, "state": state(entry),
            "part": entry.part, "source_dir": str(entry.source_dir),
            "library_version": entry.library_version}
