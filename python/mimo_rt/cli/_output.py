"""What the commands print: tables, sizes, a line of statistics. No colours."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from ..results import GenerationStats


def format_bytes(num_bytes: float) -> str:
    """Decimal units, as everywhere in mimo_rt: 1 GB = 1e9 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes:.0f} B"


def format_table(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> str:
    """Columns padded with two spaces between; numbers to the right."""
    cells = [list(map(str, header)), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_number = [
        all(cell.lstrip("~")[:1].isdigit() or cell in ("", "-") for cell in column[1:])
        for column in zip(*cells, strict=True)
    ]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, is_number, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def format_stats(stats: GenerationStats) -> str:
    """One line about a generation."""
    parts = [
        f"{stats.num_prompt_tokens} prompt tokens ({stats.num_cached_tokens} cached)",
        f"{stats.num_output_tokens} output tokens",
        f"TTFT {stats.ttft_ms:.0f} ms",
    ]
    if stats.decode_tokens_per_s > 0:
        parts.append(f"{stats.decode_tokens_per_s:.1f} tok/s")
    if stats.draft.num_drafted_rounds:
        parts.append(f"acceptance length {stats.draft.acceptance_length:.2f}")
    if stats.decode_gbs > 0:
        share = ""
        if stats.bandwidth_fraction > 0:
            share = f" = {100 * stats.bandwidth_fraction:.0f} % of measured bandwidth"
        parts.append(f"{stats.decode_gbs:.1f} GB/s{share}")
    return ", ".join(parts)


def escape_controls(text: str) -> str:
    """``text`` with control characters shown as escapes: foreign names cannot drive a terminal."""
    return "".join(c if _is_text(c) else c.encode("unicode_escape").decode() for c in text)


def _is_text(c: str) -> bool:
    """Also the spaces of other scripts, and what joins or parts letters and emoji: no str.isprintable."""
    return c.isprintable() or c in "\n\t\u200c\u200d" or unicodedata.category(c) == "Zs"


def write_text(text: str) -> None:
    """Model output to stdout at once; on a terminal without control sequences."""
    sys.stdout.write(escape_controls(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """A line for the person at the terminal, apart from the output proper."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON object on one line."""
    print(json.dumps(value, ensure_ascii=False, default=str))


def public_fields(value: Any) -> dict[str, Any]:
    """The plain attributes of an extension object, for JSON."""
    fields = {name: getattr(value, name) for name in dir(value) if not name.startswith("_")}
    fields = {name: field for name, field in fields.items() if not isinstance(field, type)}
    return {
        name: getattr(field, "name", field)
        for name, field in fields.items()
        if isinstance(field, (bool, int, float, str, list)) or hasattr(field, "name")
    }
