"""Sessions of one engine that decode at the same time, each on a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from .. import _C

NUM_TOKENS = 48  # of each session in one pass
NUM_DRAFTED_TOKENS = 160  # with drafts, which a text has to repeat something for
_WARM_UP = 8  # of them, not timed


class ConcurrentSessions:
    """``count`` sessions of an engine with prompts of their own.

    Args:
        prompts: ``[count]`` token ids each.
        params: of every generation.
    """

    def __init__(self, engine: Any, prompts: Sequence[list[int]], params: Any) -> None:
        longest = max(map(len, prompts)) + params.max_tokens + 1
        self._sessions = [_C.Session(engine, max_context=longest) for _ in prompts]
        self._prompts, self._params = prompts, params

    def alone(self) -> list[list[int]]:
        """Tokens of each, one session after the other."""
        return [self._generate(idx, lambda: None) for idx in range(len(self._sessions))]

    def together(self) -> tuple[list[list[int]], float]:
        """Tokens of each, all at the same time, and seconds from one token of all to the next.

        Raises:
            What a session raised.
        """
        count = len(self._sessions)
        outputs: list[list[int]] = [[] for _ in range(count)]
        stamps: list[list[float]] = [[] for _ in range(count)]
        errors: list[BaseException] = []
        prefilled = threading.Barrier(count)

        def run(idx: int) -> None:
            def on_token() -> None:
                if not stamps[idx]:
                    prefilled.wait()  # decoding begins together
                stamps[idx].append(time.perf_counter())

            try:
                outputs[idx] = self._generate(idx, on_token)
            except BaseException as error:
                errors.append(error)
                prefilled.abort()

        threads = [threading.Thread(target=run, args=(idx,)) for idx in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        begin = max(times[_WARM_UP] for times in stamps)
        end = max(times[-1] for times in stamps)
        num_tokens = sum(begin < stamp <= end for times in stamps for stamp in times)
        return outputs, (end - begin) * count / num_tokens

    def _generate(self, idx: int, on_token: Any) -> list[int]:
        session = self._sessions[idx]
        session.reset()

        def callback(_ids: list[int], _text: str) -> bool:
            on_token()
            return True

        result = session.generate(self._prompts[idx], self._params, callback)
        return list(result.token_ids)
