"""What can be wrong with a model's small files, found before its weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import _C
from .text import ModelText

DEFAULT_MAX_CONTEXT = 8192  # the core's, where max_position_embeddings allows it


def check_model_files(
    directory: Path,
    text: ModelText,
    *,
    max_context: int,
    window_tokens: int | None,
) -> None:
    """Raise what opening the session would raise after the minutes that loading may take.

    Raises:
        InvalidArgumentError: ``max_context`` (0: the default) is more than the model has.
        BadFormatError: config.json, generation_config.json, tokenizer.json or
            tokenizer_config.json; names the file.
    """
    config = _C.ModelConfig.from_directory(str(directory), int(window_tokens or 0))
    longest = config.max_position_embeddings
    if max_context and not 2 <= max_context <= longest:
        raise _C.InvalidArgumentError(
            f"[Session] max_context: expected 2..{longest} (the model's max_position_embeddings), "
            f"got {max_context}."
        )
    if text.tokenizer is not None:
        _check_tokenizer(text.tokenizer.path)
        text.eos_token()  # for its errors


def _check_tokenizer(path: Path) -> None:
    """Enough to tell a broken file; the whole of it is read by those who use it."""
    try:
        content: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _C.BadFormatError(f"[{path}] not JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise _C.BadFormatError(f"[{path}] not a tokenizer: expected an object 'model'.")
