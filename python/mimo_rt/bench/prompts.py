"""Prompt files: JSON lines with one of "prompt" (or "text"), "messages" and "token_ids".

"category" defaults to the name of the file, "id" (or "name") to its line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _C

DEFAULT_FILE = Path(__file__).parent / "prompts.jsonl"
_CONTENTS = ("prompt", "text", "messages", "token_ids")
_MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class BenchPrompt:
    """``content``: text, chat messages or token ids, whatever the line had."""

    category: str
    id: str
    content: str | list[Any]

    @property
    def is_chat(self) -> bool:
        return isinstance(self.content, list) and isinstance(self.content[0], dict)


def read_prompts(paths: Iterable[Path], limit: int | None = None) -> list[BenchPrompt]:
    """All prompts of the files in order; ``limit``: at most this many per category.

    Raises:
        IoError: no such file.
        BadFormatError: a line that is no prompt; names file and line.
    """
    prompts: list[BenchPrompt] = []
    for path in paths:
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise _C.CapacityError(f"[{path}] expected at most {_MAX_BYTES >> 20} MiB.")
            lines = path.read_text(encoding="utf-8").split("\n")
        except OSError as error:
            raise _C.IoError(f"[{path}] cannot read prompts: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise _C.BadFormatError(f"[{path}] expected UTF-8 text.") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                prompts.append(_parse(line, path, number))
    if not prompts:
        raise _C.BadFormatError("[bench] prompts: expected at least one, found none.")
    return limit_per_category(prompts, limit)


def limit_per_category(prompts: Sequence[BenchPrompt], limit: int | None) -> list[BenchPrompt]:
    """The first ``limit`` of each category, in order; all of them for None."""
    taken: dict[str, int] = {}
    kept = []
    for prompt in prompts:
        taken[prompt.category] = taken.get(prompt.category, 0) + 1
        if limit is None or taken[prompt.category] <= limit:
            kept.append(prompt)
    return kept


def _parse(line: str, path: Path, number: int) -> BenchPrompt:
    where = f"{path}:{number}"
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise _C.BadFormatError(f"[{where}] expected a JSON object.") from None
    given = [name for name in _CONTENTS if isinstance(fields, dict) and fields.get(name)]
    if len(given) != 1:
        raise _C.BadFormatError(
            f"[{where}] expected a JSON object with one of {', '.join(_CONTENTS)}."
        )
    (kind,) = given
    if not _is_content(kind, fields[kind]):
        raise _C.BadFormatError(f"[{where}] {kind}: expected text, messages or token ids.")
    category = fields.get("category", path.stem.capitalize())
    if not isinstance(category, str):
        raise _C.BadFormatError(f"[{where}] category: expected a string.")
    id_ = fields.get("id", fields.get("name", f"{path.stem}-{number}"))
    return BenchPrompt(category, str(id_), fields[kind])


def _is_content(kind: str, value: Any) -> bool:
    if kind in ("prompt", "text"):
        return isinstance(value, str)
    if not isinstance(value, list):
        return False
    if kind == "messages":
        return all(map(_is_message, value))
    return all(type(token_id) is int for token_id in value)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and "content" in value
