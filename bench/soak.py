"""Hours of what users do, on purpose at bad moments; every token must be the one that a quiet run gave.

    python bench/soak.py [--seconds 600] [--device cuda] [--model DIR] [--sessions N] [--draft NAME] [--seed N]

One request after the other, at random: greedy or sampled, plain or with drafts of any width, whole, cancelled by the
reader after some tokens or by another thread at some moment, on the same session, on another one of the same engine, or
after a reset; now and then logits in steps of any size. What a request must give was written down in the beginning, from
plain decoding: a draft changes no token, a cancelled answer is the beginning of the whole one, logits have the same bits.
With --sessions several do so at the same time on one engine; without a draft model they share steps.
Without --model: a tiny random model with every feature and a draft. One JSON line at the end; exit code 1: something
differed, and the line says what. The seed in it repeats the order of requests, not the moments of cancels.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mimo_rt import Session
from mimo_rt.checkpoints import write_tiny_checkpoint, write_tiny_draft
from mimo_rt.cli._machine import machine_record

NUM_PROMPTS, MAX_PROMPT, MAX_TOKENS = 6, 60, 48
MAX_DIFFERENCES = 10  # more tell nothing new
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 40, "repetition_penalty": 1.1},
)


@dataclass(frozen=True)
class Request:
    """What is asked, and what must come."""

    ids: tuple[int, ...]
    sampling: dict[str, Any]
    expected: tuple[int, ...]


@dataclass
class Tally:
    """What was done so far."""

    num_requests: int = 0
    num_tokens: int = 0
    num_cancelled: int = 0
    num_logits: int = 0
    differences: list[str] = field(default_factory=list)

    def check(self, is_right: bool, what: str) -> None:
        if not is_right:
            self.differences.append(what)


class Soak:
    """A session under fire."""

    def __init__(self, session: Session, seed: int, *, has_draft: bool = True) -> None:
        self.session = session
        self._has_draft = has_draft
        self.random = random.Random(seed)
        self.tally = Tally()
        vocab_size = session.config.vocab_size
        prompts = [tuple(self.random.randrange(vocab_size) for _ in range(self.random.randint(2, MAX_PROMPT)))
                   for _ in range(NUM_PROMPTS)]
        self.requests = [self._request(ids, {**sampling, "seed": place})
                         for place, ids in enumerate(prompts) for sampling in SAMPLINGS]
        self.logits = {ids: session.logits(ids) for ids in prompts}

    def _request(self, ids: tuple[int, ...], sampling: dict[str, Any]) -> Request:
        arguments = {**sampling, "max_tokens": MAX_TOKENS, "ignore_eos": True}
        plain = {"draft_mode": "off"} if self._has_draft else {}
        result = self.session.generate(ids, **plain, **arguments)
        return Request(ids, arguments, tuple(result.token_ids))

    def run(self, seconds: float) -> Tally:
        end = time.monotonic() + seconds
        while time.monotonic() < end and len(self.tally.differences) < MAX_DIFFERENCES:
            self.step()
        return self.tally

    def step(self) -> None:
        """One request, or one look at the logits."""
        choice = self.random.random()
        if choice < 0.1:
            return self._check_logits()
        if choice < 0.15:
            self.session.reset()
        session = self.session
        if choice > 0.9:
            session = session.new_session()
        request = self.random.choice(self.requests)
        draft = {"draft_mode": self.random.choice(("off", "fixed", "adaptive")),
                 "num_draft_tokens": self.random.choice((None, 1, 2, 3))}
        arguments = {**request.sampling, **(draft if self._has_draft else {})}
        how = self.random.choice((self._whole, self._closed, self._cancelled))
        ids = how(session, request.ids, arguments)
        self.tally.num_requests += 1
        self.tally.num_tokens += len(ids)
        is_whole = how == self._whole
        wanted = request.expected if is_whole else request.expected[: len(ids)]
        self.tally.check(ids == wanted, f"request {self.tally.num_requests}, {how.__name__.strip('_')}, {arguments}, "
                                        f"prompt of {len(request.ids)}: expected {wanted}, got {ids}")
        if session is not self.session:
            session.close()

    def _whole(self, session: Session, ids: tuple[int, ...], arguments: dict[str, Any]) -> tuple[int, ...]:
        return tuple(session.generate(ids, **arguments).token_ids)

    def _closed(self, session: Session, ids: tuple[int, ...], arguments: dict[str, Any]) -> tuple[int, ...]:
        """The reader goes away after some tokens."""
        wanted, got = self.random.randrange(MAX_TOKENS), []
        with session.stream(ids, **arguments) as stream:
            for event in stream:
                got += event.token_ids
                if len(got) >= wanted:
                    break
        self.tally.num_cancelled += 1
        return tuple(got)

    def _cancelled(self, session: Session, ids: tuple[int, ...], arguments: dict[str, Any]) -> tuple[int, ...]:
        """Another thread cancels at some moment, or comes too late."""
        timer = threading.Timer(self.random.random() * 0.02, session.cancel)
        timer.start()
        result = session.generate(ids, **arguments)
        timer.join()
        self.tally.num_cancelled += result.finish_reason == "abort"
        return tuple(result.token_ids)

    def _check_logits(self) -> None:
        ids = self.random.choice(list(self.logits))
        rows = self.random.randint(0, min(len(ids), self.session.engine.options.prefill_chunk_tokens))
        same = np.array_equal(self.session.logits(ids, step_tokens=rows), self.logits[ids])
        self.tally.num_logits += 1
        self.tally.check(same, f"logits of {len(ids)} tokens, step_tokens={rows}: other bits")


def run_together(soaks: list[Soak], seconds: float) -> Tally:
    """All on threads of their own; what they did together. An error of one is a difference."""

    def run(soak: Soak) -> None:
        try:
            soak.run(seconds)
        except Exception as error:
            soak.tally.differences.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=run, args=(soak,)) for soak in soaks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = Tally()
    for soak in soaks:
        for name, value in vars(soak.tally).items():
            setattr(total, name, getattr(total, name) + value)
    return total


def record_of(
    session: Session, model: str, num_sessions: int, tally: Tally, seconds: float, seed: int
) -> dict[str, Any]:
    return {"soak": model, "backend": session.backend, "passed": not tally.differences, "seconds": round(seconds, 1),
            "seed": seed, "num_sessions": num_sessions, "num_requests": tally.num_requests, "num_tokens": tally.num_tokens,
            "num_cancelled": tally.num_cancelled, "num_logits": tally.num_logits, "differences": tally.differences,
            **machine_record()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="how long (default 60)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    parser.add_argument("--model", type=pathlib.Path, metavar="DIR", help="checkpoint instead of the tiny model")
    parser.add_argument("--threads", type=int, metavar="N", help="workers on the CPU (default: all cores)")
    parser.add_argument("--sessions", type=int, default=1, metavar="N", help="at the same time (default 1)")
    parser.add_argument("--draft", default="auto", help="auto, ngram, none or a directory (default auto)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the order of requests")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="mimo_rt-soak-") as parent:
        model_dir = args.model
        if not model_dir:
            model_dir = write_tiny_checkpoint(pathlib.Path(parent) / "tiny", seed=1, preset="multiples_of_32")
            write_tiny_draft(model_dir, seed=2)
        begin = time.monotonic()
        with Session(model_dir, device=args.device, num_threads=args.threads, max_context=256,
                     draft=args.draft) as session:
            sessions = [session, *(session.new_session() for _ in range(args.sessions - 1))]
            soaks = [Soak(s, args.seed + i, has_draft=args.draft != "none") for i, s in enumerate(sessions)]
            tally = run_together(soaks, args.seconds)
            seconds = time.monotonic() - begin
            print(json.dumps(record_of(session, model_dir.name, args.sessions, tally, seconds, args.seed)), flush=True)
    return int(bool(tally.differences))


if __name__ == "__main__":
    sys.exit(main())
