"""The same bits and tokens, run after run, whatever a launch is made of. bench/gpu_gate.py runs it.

    python bench/gpu_bits.py [--device cuda] [--model DIR] [--runs 100] [--delay-seeds 0 1 2] [--seconds S]

One prompt; what plain decoding and steps of one row made of it in the first run must come again to the last bit:
logits in steps of 1, 8 and 64 rows (or as many as the engine takes; a step is repeated for more logits), greedy tokens in
one go (launches of as many rounds as the ring of 256 tokens takes, at most 64, and of the rest), in pieces of 7 (a
launch each), with logprobs (launches of one round), in rounds with a draft, and one event after the other (launches
that wait for the host after every round). All of it `--runs` times for each delay seed: with one other than 0 the CUDA
kernel's tasks begin and signal late by random times (the environment variable MIMO_RT_CUDA_DELAY_SEED, read when an
engine opens; CPU engines do not look at it), so that blocks meet in orders that a quiet GPU does not show.
With --seconds no run begins later, and each seed has its share of them: `num_runs` says how many there were, `num_left`
how many of all seeds together are missing.
Without --model: a tiny random model with every feature and a draft. One JSON line; exit code 1: something differed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mimo_rt import Session
from mimo_rt.checkpoints import write_tiny_checkpoint, write_tiny_draft
from mimo_rt.cli._machine import machine_record

DELAY_SEED = "MIMO_RT_CUDA_DELAY_SEED"
NUM_IDS, NUM_TOKENS = 64, 80
STEP_ROWS = (1, 8, 64)
PIECE = 7
MAX_DIFFERENCES = 10  # more tell nothing new


def step_rows(session: Session) -> list[int]:
    """Rows of a step that the engine takes."""
    return sorted({min(rows, session.engine.options.prefill_chunk_tokens) for rows in STEP_ROWS})


def generate(session: Session, ids: list[int], piece: int = NUM_TOKENS, **more: Any) -> list[int]:
    """Greedy tokens, so many in one go."""
    tokens: list[int] = []
    while len(tokens) < NUM_TOKENS:
        num = min(piece, NUM_TOKENS - len(tokens))
        tokens += session.generate(ids + tokens, max_tokens=num, temperature=0.0, ignore_eos=True, **more).token_ids
    return tokens


def stream(session: Session, ids: list[int], **more: Any) -> list[int]:
    """The same, in events."""
    events = session.stream(ids, max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True, **more)
    return [token for event in events for token in event.token_ids]


@dataclass
class Bits:
    """What the first run gave, and what differs since."""

    ids: list[int]
    has_draft: bool
    logits: np.ndarray | None = None
    tokens: list[int] | None = None
    num_compared: int = 0
    differences: list[str] = field(default_factory=list)

    def run(self, session: Session, place: str) -> None:
        """Everything once."""
        for rows in step_rows(session):
            self._check_logits(session.logits(self.ids, step_tokens=rows), f"{place}, logits in steps of {rows}")
        plain = {"draft_mode": "off"} if self.has_draft else {}
        self._check_tokens(generate(session, self.ids, **plain), f"{place}, in one go")
        self._check_tokens(generate(session, self.ids, PIECE, **plain), f"{place}, in pieces")
        self._check_tokens(generate(session, self.ids, logprobs=0, **plain), f"{place}, with logprobs")
        if self.has_draft:
            self._check_tokens(generate(session, self.ids, draft_mode="fixed"), f"{place}, with a draft")
        drafted = {"draft_mode": "fixed"} if self.has_draft else {}
        self._check_tokens(stream(session, self.ids, **drafted), f"{place}, in events")

    def _check_logits(self, logits: np.ndarray, place: str) -> None:
        if self.logits is None:
            self.logits = logits.copy()
        rows = (logits.view(np.uint32) != self.logits.view(np.uint32)).any(axis=1)
        self._count(f"{place}: other bits from row {int(rows.argmax())} on" if rows.any() else "")

    def _check_tokens(self, tokens: list[int], place: str) -> None:
        if self.tokens is None:
            self.tokens = tokens
        first = next((i for i, (a, b) in enumerate(zip(tokens, self.tokens, strict=True)) if a != b), None)
        self._count("" if first is None else f"{place}: token {first} is {tokens[first]}, not {self.tokens[first]}")

    def _count(self, difference: str) -> None:
        self.num_compared += 1
        if difference:
            self.differences.append(difference)


def delayed_sessions(model_dir: pathlib.Path, args: argparse.Namespace) -> Iterator[tuple[int, Session]]:
    """An engine for each seed of delays."""
    before = os.environ.get(DELAY_SEED)
    for seed in args.delay_seeds:
        try:
            os.environ[DELAY_SEED] = str(seed)
            session = Session(model_dir, device=args.device, num_threads=args.threads, max_context=256)
        finally:
            if before is None:
                os.environ.pop(DELAY_SEED, None)
            else:
                os.environ[DELAY_SEED] = before
        with session:
            yield seed, session


def compare(model_dir: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    """All runs of one model."""
    bits = Bits(list(range(1, NUM_IDS + 1)), has_draft=(model_dir / "dflash").is_dir())
    begin, backend, rows, num_runs = time.monotonic(), "", [], [0] * len(args.delay_seeds)
    for place, (seed, session) in enumerate(delayed_sessions(model_dir, args)):
        backend, rows = session.backend, step_rows(session)
        until = begin + args.seconds * (place + 1) / len(args.delay_seeds)
        while num_runs[place] < args.runs and (not num_runs[place] or time.monotonic() < until):
            if len(bits.differences) >= MAX_DIFFERENCES:
                break
            bits.run(session, f"delay seed {seed}, run {num_runs[place]}")
            num_runs[place] += 1
    return {"bits": model_dir.name, "backend": backend, "passed": not bits.differences,
            "delay_seeds": args.delay_seeds, "num_runs": num_runs,
            "num_left": args.runs * len(num_runs) - sum(num_runs), "step_rows": rows,
            "has_draft": bits.has_draft, "num_compared": bits.num_compared, "differences": bits.differences,
            "seconds": round(time.monotonic() - begin, 1), **machine_record()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or a CPU backend (default cuda)")
    parser.add_argument("--model", type=pathlib.Path, metavar="DIR", help="checkpoint instead of the tiny model")
    parser.add_argument("--runs", type=int, default=100, metavar="N", help="for each delay seed (default 100)")
    parser.add_argument("--delay-seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="(default 0 1 2)")
    parser.add_argument("--seconds", type=float, default=math.inf, metavar="S", help="for all runs (default: no limit)")
    parser.add_argument("--threads", type=int, metavar="N", help="workers (default: all)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="mimo_rt-gpu-bits-") as parent:
        model_dir = args.model
        if not model_dir:
            model_dir = write_tiny_checkpoint(pathlib.Path(parent) / "tiny", seed=1, preset="multiples_of_32")
            write_tiny_draft(model_dir, seed=2)
        record = compare(model_dir, args)
        print(json.dumps(record), flush=True)
    return int(not record["passed"])


if __name__ == "__main__":
    sys.exit(main())
