"""Prompts and the target's own answers to them, one JSON object per line.

    {"prompt": "coding/3", "seed": 17, "temperature": 0.8, "prompt_ids": […], "output_ids": […]}

A directory holds ``meta.json`` (what made the answers, see answers_meta) and one file per part, so
that several processes can share the work. Lines are only ever appended; a line that a killed
process left unfinished is dropped on the next run.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from .. import _C
from ..params import SamplingParams
from ..value_checks import as_int
from .answers_meta import check_meta

_JOBS_AHEAD = 4  # per session
_CANCEL_EVERY_S = 0.05
# progress(done, total, num_tokens)
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Prompt:
    """A named list of token ids."""

    name: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Generation:
    """One line of the file: a prompt and what the target made of it."""

    prompt: str
    seed: int
    temperature: float
    prompt_ids: list[int]
    output_ids: list[int]

    @property
    def token_ids(self) -> list[int]:
        return self.prompt_ids + self.output_ids


@dataclass(frozen=True)
class GenerateOptions:
    """How answers are made.

    Attributes:
        temperatures: used in turn, one per answer.
        max_tokens: of one answer.
        seed: of the whole run; every answer has its own, derived from it.
        part: (index, count): this process answers one of ``count`` equal stretches of the prompts.
    """

    temperatures: tuple[float, ...] = (0.0, 0.8)
    max_tokens: int = 256
    seed: int = 0
    part: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        """Raise InvalidArgumentError for what no answer can be made with."""
        as_int("seed", self.seed, 0, 2**64 - 1, "train")
        for temperature in self.temperatures:
            SamplingParams(max_tokens=self.max_tokens, temperature=temperature)
        index, num_parts = self.part
        if not 0 <= index < num_parts:
            raise _C.InvalidArgumentError(
                f"[train] part: expected an index below {num_parts}, got {index}."
            )


def answer_seed(seed: int, prompt: str, temperature: float) -> int:
    """53 bits from the run's seed and the prompt's name: no answer depends on another."""
    text = f"{seed}/{prompt}/{temperature}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 11


def make_generations(
    sessions: Sequence[Any],
    prompts: Sequence[Prompt],
    directory: Path,
    options: GenerateOptions,
    *,
    meta: dict[str, Any],
    progress: Progress | None = None,
) -> int:
    """Let sessions answer every prompt at every temperature; go on where an earlier run stopped.

    Args:
        sessions: of one engine; each answers one prompt at a time, on a thread of its own. Their
            number changes neither answers nor their order.
        meta: recorded in meta.json, with the options; a directory made otherwise is refused.

    Returns:
        The number of answers made by this call.
    """
    directory = Path(directory)
    part_idx, num_parts = options.part
    directory.mkdir(parents=True, exist_ok=True)
    recorded = meta | {k: v for k, v in asdict(options).items() if k != "part"}
    check_meta(directory, recorded)
    path = directory / f"part-{part_idx}-of-{num_parts}.jsonl"
    others = [p for p in sorted(directory.glob("part-*.jsonl")) if p != path]
    found = [*_read_part(path, repair=True), *(g for p in others for g in _read_part(p))]
    done = {(g.prompt, g.temperature): len(g.output_ids) for g in found}
    # Neighbouring prompts are of different sets, and a part takes whole stretches of them.
    begin, end = (len(prompts) * i // num_parts for i in (part_idx, part_idx + 1))
    jobs = [(prompt, t) for prompt in prompts[begin:end] for t in options.temperatures]
    todo = [job for job in jobs if (job[0].name, job[1]) not in done]
    num_tokens, num_done = sum(done.values()), len(jobs) - len(todo)
    with path.open("a", encoding="utf-8") as file:
        for generation in _answers_in_order(sessions, todo, options):
            file.write(json.dumps(asdict(generation)) + "\n")
            file.flush()
            num_done += 1
            num_tokens += len(generation.output_ids)
            if progress is not None:
                progress(num_done, len(jobs), num_tokens)
    return len(todo)


def _answers_in_order(
    sessions: Sequence[Any], jobs: Sequence[tuple[Prompt, float]], options: GenerateOptions
) -> Iterator[Generation]:
    """Answers of several sessions at the same time, in the order of the jobs."""
    free: SimpleQueue[Any] = SimpleQueue()
    for session in sessions:
        free.put(session)

    def answer(job: tuple[Prompt, float]) -> Generation:
        session = free.get()
        try:
            return _answer(session, *job, options)
        finally:
            free.put(session)

    pool = ThreadPoolExecutor(len(sessions))
    pending: deque[Future[Generation]] = deque()
    try:
        # A few jobs ahead: nobody waits for the one whose turn it is to be written.
        for job in jobs:
            pending.append(pool.submit(answer, job))
            if len(pending) >= _JOBS_AHEAD * len(sessions):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # after an error or an interrupt, too
        pool.shutdown(wait=False, cancel_futures=True)
        # Those that never began are done, but `wait` would wait for a worker to say so.
        begun = [future for future in pending if not future.cancelled()]
        while wait(begun, timeout=_CANCEL_EVERY_S).not_done:
            for session in sessions:  # again: one that was about to begin has not heard it
                session.cancel()


def _answer(
    session: Any, prompt: Prompt, temperature: float, options: GenerateOptions
) -> Generation:
    seed = answer_seed(options.seed, prompt.name, temperature)
    room = session.max_context - len(prompt.token_ids) - 1
    result = session.generate(
        list(prompt.token_ids),
        max_tokens=max(min(options.max_tokens, room), 1),
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        seed=seed,
    )
    return Generation(prompt.name, seed, temperature, list(prompt.token_ids), result.token_ids)


def _read_part(path: Path, *, repair: bool = False) -> Iterator[Generation]:
    if not path.is_file():
        return
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data) and repair:
        with path.open("r+b") as file:
            file.truncate(end)
    for number, line in enumerate(data[:end].splitlines(), 1):
        try:
            yield Generation(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise _C.BadFormatError(
                f"[train] {path} line {number}: not an answer: {error}"
            ) from None


def read_generations(directory: Path) -> list[Generation]:
    """All answers of a directory, in an order that does not depend on how it was made."""
    directory = Path(directory)
    found = [g for path in sorted(directory.glob("part-*.jsonl")) for g in _read_part(path)]
    if not found:
        raise _C.IoError(
            f"[train] {directory}: expected answers (part-*.jsonl), found none. "
            "Make them with 'mimo-rt train generate'."
        )
    return sorted(found, key=lambda g: (g.prompt, g.temperature))


class GenerationProgress:
    """Text of a progress line: answers, tokens per second of this run, time left."""

    def __init__(self) -> None:
        self._start_time = time.monotonic()
        self._first: tuple[int, int] | None = None

    def text(self, done: int, total: int, num_tokens: int) -> str:
        if self._first is None:
            self._first = (done, num_tokens)
        elapsed = max(time.monotonic() - self._start_time, 1e-9)
        made, tokens = done - self._first[0], num_tokens - self._first[1]
        left = elapsed / made * (total - done) if made else 0.0
        return (
            f"{done} of {total} answers, {num_tokens} tokens, {tokens / elapsed:.0f} tokens/s, "
            f"{format_duration(left)} left"
        )


def format_duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}"
