"""Text to token ids and back, by Hugging Face's `tokenizers` library (imported on first use)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import _C
from .model_files import is_there
from .value_checks import as_int

_MAX_FILE_BYTES = 256 << 20


class Tokenizer:
    """The tokenizer.json of a model directory. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._loaded: Any = None

    @classmethod
    def from_directory(cls, model_dir: Path) -> Tokenizer | None:
        """The tokenizer, or None when the directory has no tokenizer.json.

        Raises:
            BadFormatError: the file is too large to be one.
            IoError: a link that leads nowhere.
        """
        path = model_dir / "tokenizer.json"
        if not is_there(path):
            return None
        if (size := path.stat().st_size) > _MAX_FILE_BYTES:
            raise _C.BadFormatError(
                f"[{path}] expected at most {_MAX_FILE_BYTES} bytes, got {size}."
            )
        return cls(path)

    @property
    def _core(self) -> Any:
        with self._lock:
            if self._loaded is None:
                import tokenizers

                try:
                    loaded = tokenizers.Tokenizer.from_buffer(self.path.read_bytes())
                except Exception as error:  # the library raises bare Exception
                    raise _C.BadFormatError(f"[{self.path}] not a tokenizer: {error}") from None
                loaded.no_truncation()  # a prompt is what the caller gives, whatever the file asks for
                loaded.no_padding()
                self._loaded = loaded
            return self._loaded

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``.

        Raises:
            InvalidArgumentError: not a string, or not valid Unicode (a lone surrogate).
        """
        if not isinstance(text, str):
            raise _C.InvalidArgumentError(
                f"[Tokenizer.encode] text: expected a string, got {type(text).__name__}."
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _C.InvalidArgumentError(
                f"[Tokenizer.encode] text: expected valid Unicode, got {error.reason} "
                f"at character {error.start}."
            ) from None
        return list(self._core.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ``token_ids``; bytes that are no UTF-8 become U+FFFD."""
        ids = [as_int("token_ids", i, 0, 2**31 - 1, "Tokenizer.decode") for i in token_ids]
        return self._core.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int | None:
        """The id of a whole token; None when there is none."""
        try:
            return self._core.token_to_id(token)
        except UnicodeEncodeError:  # a lone surrogate
            return None

    def stream_decoder(self) -> Callable[[Sequence[int]], str]:
        """A function that takes the next ids and returns the text that has become certain."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        core = self._core
        return lambda token_ids: "".join(stream.step(core, int(i)) or "" for i in token_ids)
