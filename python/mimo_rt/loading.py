"""Opens an engine so that Ctrl-C works and exceptions of a progress callback come through."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from . import _C
from .errors import unknown_name
from .value_checks import as_flag, as_int
from .streaming import call_interruptibly

Progress = Callable[[int, int], "bool | None"]
_ENGINE_OPTIONS = {name for name in vars(_C.EngineOptions) if not name.startswith("_")}
_FLAGS = {"pin_threads", "yield_cores", "exact", "use_mmap"}
_STRINGS = {
    "device": "the name of a backend",
    "draft": "'auto', 'ngram', 'none' or a directory",
    "activations": "'bf16' or 'int8'",
    "packed_cache": "'auto', 'none' or a directory",
}
_PATHS = {"draft", "packed_cache"}
# Arguments of Session that are no field of EngineOptions, for "did you mean".
_SESSION_ARGUMENTS = {"threads", "max_context", "seed", "generation_config"}
_UNSIGNED = {"timeout_ms", "park_after_us", "max_decode_tokens", "prefill_chunk_tokens"}


def open_engine(
    model_dir: Path, progress: Progress | bool | None, options: Mapping[str, Any]
) -> Any:
    """Load a model. ``options`` are fields of EngineOptions; None means the default.

    Raises:
        TypeError: an unknown option; names the closest one.
        CancelledError: ``progress`` returned False.
    """
    require_directory(model_dir)
    check_progress(progress)
    reporter = _Reporter(progress)
    core_options = engine_options(**options, progress=reporter)
    try:
        return call_interruptibly(
            lambda: _C.Engine.open(str(model_dir), core_options), reporter.cancel
        )
    except _C.CancelledError:
        if reporter.failure is not None:
            raise reporter.failure from None
        raise
    finally:
        reporter.close()


def require_directory(model_dir: str | os.PathLike[str]) -> Path:
    """``model_dir`` as a path; IoError when it is no directory, or '' (a variable not set)."""
    if not os.fspath(model_dir):
        raise _C.IoError("[Session] model_dir: expected a directory, got ''.")
    path = Path(model_dir)
    if not path.is_dir():
        raise _C.IoError(f"[Session] {path}: expected a model directory, found none.")
    return path


def check_progress(progress: Any) -> None:
    """Raise InvalidArgumentError unless ``progress`` is a function, a bool or None."""
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise _C.InvalidArgumentError(
            "[Session] progress: expected a function (done, total), True, False or None, "
            f"got {progress!r}."
        )


def engine_options(**options: Any) -> Any:
    """EngineOptions with the given fields; checks names and integer ranges."""
    chosen = {name: value for name, value in options.items() if value is not None}
    for name, value in chosen.items():
        if name not in _ENGINE_OPTIONS:
            raise unknown_name("Session", name, _ENGINE_OPTIONS | _SESSION_ARGUMENTS)
        if name in _UNSIGNED | {"window_tokens"}:
            chosen[name] = as_int(name, value, 0, 2**32 - 1, "Session")
        elif name == "num_threads":
            chosen[name] = as_int(name, value, 1, 1024, "Session")
        elif name in _FLAGS:
            chosen[name] = as_flag(name, value, "Session")
        elif name in _STRINGS and not isinstance(value, str):
            raise _C.InvalidArgumentError(
                f"[Session] {name}: expected {_STRINGS[name]}, got {value!r}."
            )
        elif name in _PATHS:
            chosen[name] = _path_bytes(name, value)
    return _C.EngineOptions(**chosen)


def _path_bytes(name: str, value: str) -> bytes:
    """What the file system has for a path: its bytes may be no UTF-8."""
    with contextlib.suppress(UnicodeEncodeError):
        if b"\0" not in (encoded := os.fsencode(value)):
            return encoded
    raise _C.InvalidArgumentError(
        f"[Session] {name}: expected text that a path can have, got {value!r}."
    )


class _Reporter:
    """The callback that the engine calls from its loading threads."""

    def __init__(self, progress: Progress | bool | None) -> None:
        self._line = ProgressLine("loading") if progress is True else None
        self._progress = self._line or (progress if callable(progress) else None)
        self._cancelled = threading.Event()
        self.failure: BaseException | None = None

    def __call__(self, done: int, total: int) -> bool:
        if self._cancelled.is_set():
            return False
        try:
            return self._progress is None or self._progress(done, total) is not False
        except BaseException as error:  # must not cross C++ threads: raised by open_engine
            self.failure = error
            return False

    def cancel(self) -> None:
        self._cancelled.set()

    def close(self) -> None:
        if self._line is not None:
            self._line.close()


class ProgressLine:
    """One line on a terminal that is written over; silent when the stream is not a terminal."""

    def __init__(self, label: str, stream: TextIO | None = None, *, in_gb: bool = True) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._label = label
        self._in_gb = in_gb
        self._next_time = 0.0
        self._width = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._is_terminal or (now < self._next_time and done < total):
            return
        self._next_time = now + 0.1
        percent = 100 * done / total if total else 100.0
        size = f" ({done / 1e9:.2f} of {total / 1e9:.2f} GB)" if self._in_gb else ""
        self._write(f"{self._label}: {percent:3.0f} %{size}")

    def _write(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)

    def close(self) -> None:
        """Wipe the line."""
        if self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0
