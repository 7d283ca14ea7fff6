"""The text side of a model directory: tokenizer and chat templates, both read when first needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from . import _C
from .chat_template import ChatTemplate, special_tokens
from .model_files import is_there
from .params import read_json_object
from .value_checks import as_int
from .tokenizer import Tokenizer

# Text, token ids in [0, vocab_size), or chat messages.
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


class ModelText:
    """Turns prompts into token ids and ids into text; without a directory, ids only."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self.tokenizer = None if directory is None else Tokenizer.from_directory(directory)
        self._templates: dict[bool, ChatTemplate] = {}

    def eos_token(self) -> str:
        """`eos_token` of tokenizer_config.json, "" without one.

        Raises:
            BadFormatError, IoError: as read_json_object and is_there; names the file.
        """
        path = None if self.directory is None else self.directory / "tokenizer_config.json"
        config = {} if path is None or not is_there(path) else read_json_object(path)
        return special_tokens(config)["eos_token"]

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The id of `eos_token`, where there is one. Loads the tokenizer; () when that fails.

        Prompts of token ids do not need the tokenizer; those of text say what is wrong with it.
        """
        token = "" if self.tokenizer is None else self.eos_token()
        try:
            token_id = self.tokenizer.token_id(token) if self.tokenizer and token else None
        except (ImportError, OSError, _C.MimoRtError):
            return ()
        return () if token_id is None else (token_id,)

    def end_token_ids(self, config: Any) -> list[int]:
        """The ids that end a text, ascending: those of ``config``, a `ModelConfig`, and `eos_token_ids`."""
        return sorted({*config.eos_token_ids, *self.eos_token_ids})

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return self._require_tokenizer().encode(text, add_special_tokens=add_special_tokens)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._require_tokenizer().decode(
            token_ids, skip_special_tokens=skip_special_tokens
        )

    def render_chat(
        self, messages: Any, *, tools: Sequence[Any] | None = None, **variables: Any
    ) -> str:
        return self._template(bool(tools)).render(messages, tools=tools, **variables)

    def prompt_ids(self, prompt: Any) -> list[int]:
        """Token ids of any kind of prompt; a chat template brings its own special tokens."""
        if isinstance(prompt, str):
            ids = self.encode(prompt)
        elif _is_messages(prompt):
            ids = self.encode(self.render_chat(prompt), add_special_tokens=False)
        else:
            ids = _checked_ids(prompt)
        if not ids:
            raise _C.InvalidArgumentError("[Session] prompt: expected at least one token, got 0.")
        return ids

    def _require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise _C.InvalidArgumentError(
                f"[Session] text needs a tokenizer: expected tokenizer.json in "
                f"{self.directory or 'a model directory'}, found none. Pass token ids instead."
            )
        return self.tokenizer

    def _template(self, has_tools: bool) -> ChatTemplate:
        if has_tools not in self._templates:
            found = None
            if self.directory is not None:
                found = ChatTemplate.from_directory(self.directory, has_tools=has_tools)
            if found is None:
                raise _C.InvalidArgumentError(
                    "[Session] chat needs a chat template: expected chat_template.jinja, or "
                    "'chat_template' in tokenizer_config.json, found none. "
                    "Use generate() with plain text instead."
                )
            self._templates[has_tools] = found
        return self._templates[has_tools]


def _is_messages(prompt: Any) -> bool:
    is_list = isinstance(prompt, Sequence) and not isinstance(prompt, (bytes, bytearray))
    return is_list and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def _checked_ids(prompt: Any) -> list[int]:
    values = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if isinstance(values, (bytes, bytearray, Mapping)) or not hasattr(values, "__iter__"):
        raise _C.InvalidArgumentError(
            "[Session] prompt: expected text, token ids or chat messages, "
            f"got {type(prompt).__name__}."
        )
    return [as_int("prompt", token_id, 0, 2**31 - 1, "Session") for token_id in values]
