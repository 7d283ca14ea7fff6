"""The part of a session that holds things: the engine, its counts, and whether it is in use."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from . import _C
from .params import GenerationDefaults, SamplingParams
from .results import GenerationResult, GenerationStats, SessionStats
from .text import ModelText
from .value_checks import as_int, as_number



class Limits:
    """The session's own numbers, checked."""

    def __init__(self, max_context: int | None, seed: int | None) -> None:
        self.max_context = 0  # 0: the core's default
        if max_context is not None:
            self.max_context = as_int("max_context", max_context, 1, 2**32 - 1, "Session")
        self.seed = None if seed is None else as_int("seed", seed, 0, 2**64 - 1, "Session")


class SessionState:
    """Base of `Session`; not made by itself."""

    _core: Any = None
    _engine: Any = None
    _text: ModelText

    def _attach(
        self, engine: Any, text: ModelText, defaults: GenerationDefaults, limits: Limits
    ) -> None:
        self._engine = engine
        self._text = text
        self._defaults = defaults
        self._limits = limits
        self._busy = threading.Lock()
        self._totals = [0, 0, 0]  # generations, prompt tokens, output tokens
        self._num_cached_tokens = 0  # the core's own count may change while it is read
        self._last: GenerationStats | None = None
        self._bandwidth_gbs: float | None = None
        self._vocab_size = engine.config.vocab_size
        self._core = _C.Session(engine, max_context=limits.max_context)
        self._decodes_in_python = False
        if text.tokenizer is not None:
            try:
                self._core.load_vocabulary(str(text.tokenizer.path))
            except _C.UnsupportedShapeError:  # not a byte-level BPE: text is decoded here instead
                self._decodes_in_python = True

    def _text_eos_token_ids(self) -> list[int]:
        """The tokenizer's end token, which the engine does not know of."""
        return [i for i in self._text.eos_token_ids if i < self._vocab_size]

    def _record(self, result: GenerationResult) -> None:
        self._last = result.stats
        added = (1, result.usage.prompt_tokens, result.usage.completion_tokens)
        self._totals = [total + more for total, more in zip(self._totals, added, strict=True)]

    @property
    def config(self) -> Any:
        """The model's `ModelConfig`."""
        return self._require_engine("config").config

    @property
    def backend(self) -> str:
        """What runs the plan, e.g. "cpu-avx2"."""
        return self._require_engine("backend").backend

    @property
    def engine(self) -> Any:
        """The engine, which sessions may share."""
        return self._require_engine("engine")

    @property
    def notes(self) -> list[str]:
        """What costs speed, but no result.

        Too few or refused cores, no huge pages, a draft that is not used.
        """
        return self._require_engine("notes").notes()

    @property
    def max_context(self) -> int:
        """Tokens of prompt and output that fit."""
        return self._require_open("max_context").max_context

    @property
    def has_tokenizer(self) -> bool:
        """Whether prompts and results can be text."""
        return self._text.tokenizer is not None

    @property
    def stats(self) -> SessionStats:
        """Sizes, counts since the session began, and the last generation's numbers."""
        core, engine = self._require_open("stats"), self._require_engine("stats")
        return SessionStats(
            backend=engine.backend,
            activations=engine.options.activations,
            num_workers=engine.num_workers,
            weight_bytes=engine.weight_bytes,
            dense_bytes_per_step=engine.dense_bytes_per_step,
            expert_bytes=engine.expert_bytes,
            kv_bytes=core.kv_bytes,
            max_context=core.max_context,
            num_cached_tokens=self._num_cached_tokens,
            num_generations=self._totals[0],
            num_prompt_tokens=self._totals[1],
            num_output_tokens=self._totals[2],
            bandwidth_gbs=self._bandwidth_gbs,
            packed_cache={report.part: report.state for report in engine.packed_cache},
            last=self._last,
        )

    def measure_bandwidth(self, seconds: float = 0.2) -> float:
        """Read bandwidth of all workers in GB/s (1e9 bytes); later statistics refer to it.

        Ctrl-C ends it after half a second.
        """
        engine = self._require_engine("measure_bandwidth")
        seconds = as_number("seconds", seconds, 0, 60, "Session.measure_bandwidth")
        with self._hold("measure_bandwidth"):
            self._bandwidth_gbs = engine.measure_bandwidth_gbs(seconds)
        return self._bandwidth_gbs

    def close(self) -> None:
        """Cancel what is running and let go of the weights; may be called again.

        A stream that has not begun by then answers with an error.
        """
        self.cancel()
        self._core = None
        self._engine = None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._core is None

    def __enter__(self) -> Session:
        self._require_open("__enter__")
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        engine = self._engine
        state = engine.backend if engine is not None else "closed"
        if engine is not None and engine.options.activations != "bf16":
            state += f", {engine.options.activations} activations"
        return f"<mimo_rt.Session {self._text.directory or 'synthetic'} ({state})>"

    def _require_open(self, where: str) -> Any:
        return self._unless_closed(self._core, where)

    def _require_engine(self, where: str) -> Any:
        return self._unless_closed(self._engine, where)

    @staticmethod
    def _unless_closed(part: Any, where: str) -> Any:
        """``part``, which was read once: another thread may close the session meanwhile."""
        if part is None:
            raise _C.InvalidArgumentError(f"[Session.{where}] the session is closed.")
        return part

    def _num_spec_tokens(self, params: SamplingParams, engine: Any) -> int:
        most = 0 if params.draft_mode == "off" else engine.max_draft_tokens
        return min(params.num_draft_tokens or most, most)

    def _check_fits(self, where: str, num_tokens: int, limit: int) -> None:
        if num_tokens > limit:
            raise _C.CapacityError(
                f"[Session.{where}] prompt: expected at most {limit} tokens, "
                f"got {num_tokens}. Raise max_context (--max-context on the command line)."
            )

    @contextlib.contextmanager
    def _hold(self, where: str) -> Iterator[None]:
        if not self._busy.acquire(blocking=False):
            raise _C.InvalidArgumentError(
                f"[Session.{where}] the session is busy with another call. Finish or close its "
                "stream first, or use new_session() for a second conversation."
            )
        try:
            self._require_open(where)  # closed meanwhile: nobody could cancel it
            yield
        finally:
            if (core := self._core) is not None:
                self._num_cached_tokens = core.num_cached_tokens
            self._busy.release()


