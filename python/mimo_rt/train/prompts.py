"""Prompts for training: built-in sets, and files of one JSON object per line.

Built-in sets are made from text that is free to use and always at hand: function headers of the
Python standard library (PSF licence) and templates written for this project. Nothing comes from the
evaluation sets (HumanEval, MT-Bench, BFCL, reasoning-gym). Equal seeds give equal prompts on equal
Python versions; the answers file records the token ids in any case.

A line of a file has ``name`` and either ``text`` or ``messages`` (chat), and may have ``tools``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .. import _C
from ..text import ModelText
from .generations import Prompt
from .prompts_code import agent_prompts, coding_prompts
from .prompts_templates import chat_prompts, math_prompts

# A raw prompt: {"name": …, "text": …} or {"name": …, "messages": […]}.
Raw = dict[str, Any]

SETS: dict[str, Callable[[int, int], list[Raw]]] = {
    "coding": coding_prompts,
    "math": math_prompts,
    "agent": agent_prompts,
    "chat": chat_prompts,
}


def built_in_prompts(names: Sequence[str], count: int, seed: int) -> list[Raw]:
    """``count`` prompts of each named set, the sets taking turns: any beginning has all of them.

    Raises:
        InvalidArgumentError: an unknown set.
    """
    unknown = [name for name in names if name not in SETS]
    if unknown:
        raise _C.InvalidArgumentError(
            f"[train] prompt set: expected some of {', '.join(SETS)}, got '{unknown[0]}'."
        )
    sets = [SETS[name](count, seed) for name in names]
    return [raw for turn in zip_longest(*sets) for raw in turn if raw is not None]


def read_prompt_file(path: Path) -> list[Raw]:
    """The prompts of a file; BadFormatError names the line that is none, or the file that is no UTF-8 text."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise _C.BadFormatError(f"[train] {path}: expected UTF-8 text.") from None
    raws: list[Raw] = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines parts strings, at U+2028 and others
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
            is_good = isinstance(raw["name"], str) and ("text" in raw) != ("messages" in raw)
        except (ValueError, KeyError, TypeError):
            is_good = False
        if not is_good:
            raise _C.BadFormatError(
                f"[train] {path} line {number}: expected an object with 'name' and either 'text' "
                "or 'messages'."
            )
        raws.append(raw)
    return raws


def encode_prompts(
    model_dir: Path, raws: Iterable[Raw], *, max_tokens: int = 512
) -> tuple[list[Prompt], int]:
    """Token ids of the prompts, and how many were left out because they are longer.

    Raises:
        InvalidArgumentError: the model has no tokenizer or chat template, or a name comes twice.
    """
    text = ModelText(Path(model_dir))
    prompts: list[Prompt] = []
    names: set[str] = set()
    num_long = 0
    for raw in raws:
        if raw["name"] in names:
            raise _C.InvalidArgumentError(f"[train] prompt '{raw['name']}' comes twice.")
        names.add(raw["name"])
        if "messages" in raw:
            rendered = text.render_chat(raw["messages"], tools=raw.get("tools"))
            ids = text.encode(rendered, add_special_tokens=False)
        else:
            ids = text.encode(raw["text"])
        if 0 < len(ids) <= max_tokens:
            prompts.append(Prompt(raw["name"], tuple(ids)))
        else:
            num_long += 1
    return prompts, num_long
