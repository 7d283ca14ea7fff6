"""Text to distil over that needs no generation: pieces of the Python standard library's sources.

They are written as a part of an answers directory (see ``generations``), each piece an "answer" to
its first tokens. Licence: PSF. For experts only: a draft learns from answers of its target.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

from ..text import ModelText
from .generations import Generation
from .prompts_code import library_paths

PART_FILE = "part-library.jsonl"
NUM_PROMPT_TOKENS = 8


def write_library_texts(
    model_dir: Path, directory: Path, count: int, *, num_tokens: int = 384, seed: int = 0
) -> int:
    """Write up to ``count`` pieces of ``num_tokens`` tokens, one per file; returns how many."""
    text = ModelText(Path(model_dir))
    rng = random.Random(seed)
    paths = list(library_paths())
    rng.shuffle(paths)
    lines: list[str] = []
    for path in paths:
        if len(lines) == count:
            break
        try:
            ids = text.encode(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            continue
        if len(ids) < num_tokens:
            continue
        begin = rng.randrange(len(ids) - num_tokens + 1)
        piece = ids[begin : begin + num_tokens]
        prompt, rest = piece[:NUM_PROMPT_TOKENS], piece[NUM_PROMPT_TOKENS:]
        generation = Generation(f"library/{path.name}/{begin}", seed, 1.0, prompt, rest)
        lines.append(json.dumps(asdict(generation)) + "\n")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / PART_FILE).write_text("".join(lines), encoding="utf-8")
    return len(lines)
