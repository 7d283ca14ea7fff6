"""A prompt that comes while another session of the engine decodes: what it takes, and how long that one waits."""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

from .. import _C
from .cases import greedy
from .measurement import Measurement
from .work import spread_prompt, step_bytes, step_flops

PROMPT_TOKENS = 1024
_WARM_UP = 8  # tokens of the one that decodes before the prompt comes
_SAMPLES = 3


class DecodingSession:
    """A session that decodes on a thread of its own until told to stop, in a context manager.

    Attributes:
        stamps: when its tokens came, by ``time.perf_counter()``.
    """

    def __init__(self, engine: Any, num_tokens: int) -> None:
        self._session = _C.Session(engine, max_context=num_tokens)
        self._prompt = spread_prompt(engine.config, 4, salt=1)
        self._stops = threading.Event()
        self._thread = threading.Thread(target=self._decode, args=(num_tokens - 5,))
        self._error: BaseException | None = None
        self.stamps: list[float] = []

    def _decode(self, num_tokens: int) -> None:
        def on_token(_ids: list[int], _text: str) -> bool:
            self.stamps.append(time.perf_counter())
            return not self._stops.is_set()

        params = greedy(num_tokens)
        params.draft.mode = _C.DraftOptions.Mode.off
        try:
            while not self._stops.is_set():
                self._session.reset()
                self._session.generate(self._prompt, params, on_token)
        except BaseException as error:
            self._error = error

    def longest_wait_s(self, begin: float) -> float:
        """Longest time between two tokens since shortly before ``begin``."""
        first = max(i for i, stamp in enumerate(self.stamps) if stamp <= begin)
        times = self.stamps[first:]
        return max(later - earlier for earlier, later in zip(times, times[1:], strict=False))

    def __enter__(self) -> DecodingSession:
        self._thread.start()
        while len(self.stamps) < _WARM_UP and self._thread.is_alive():
            time.sleep(0.001)
        return self

    def __exit__(self, *_error: object) -> None:
        self._stops.set()
        self._thread.join()
        if self._error:
            raise self._error


def measure_prompt_beside(engine: Any) -> Measurement:
    """A prompt's time to its first token beside a session that decodes; by turns also alone.

    Its facts: ``over_alone``, ratio of the medians, and ``longest_wait_ms``, median of the longest
    times that the other session waited for a token.
    """
    limit = engine.config.max_position_embeddings
    num_tokens = min(PROMPT_TOKENS, limit - 1)
    prompt = spread_prompt(engine.config, num_tokens)
    session = _C.Session(engine, max_context=num_tokens + 1)

    def first_token_s() -> float:
        session.reset()
        begin = time.perf_counter()
        session.generate(prompt, greedy(1))
        return time.perf_counter() - begin

    first_token_s()
    alone, beside, waits = [], [], []
    for _ in range(_SAMPLES):
        alone.append(first_token_s())
        with DecodingSession(engine, min(limit, 4096)) as other:
            begin = time.perf_counter()
            beside.append(first_token_s())
        waits.append(other.longest_wait_s(begin))
    return Measurement(
        f"prompt/{num_tokens}", tuple(beside), num_tokens,
        step_bytes(engine, engine.config.num_experts), step_flops(engine.config, num_tokens, 1),
        is_bytes_estimated=True,
        facts={"over_alone": round(statistics.median(beside) / statistics.median(alone), 3),
               "longest_wait_ms": round(statistics.median(waits) * 1e3, 1)},
    )
