"""Engines as the arena sees them: processes that run a case when asked and say how long it took."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_ON_GGUF = ("llama_cpp", "xllamacpp", "llama_sync", "ik_llama", "llama_bench")
ENGINES = ("mimo_rt", *_ON_GGUF, "transformers", "transformers_f32")
CONTEXT_TOKENS = 16
DECODE_STEPS = 16
ROW_STEPS = 4


class Skipped(Exception):
    """An engine that cannot run here, with the reason."""


@dataclass(frozen=True)
class Case:
    """``decode``: one token per step after a short prompt. ``rows``: ``num_rows`` tokens per step,
    logits of all. ``prefill``: a prompt of ``num_rows`` tokens, logits of the last."""

    kind: str
    num_rows: int

    @property
    def label(self) -> str:
        return self.kind if self.kind == "decode" else f"{self.kind}{self.num_rows}"


class Peer(Protocol):
    name: str
    facts: dict[str, Any]  # for the records

    def run(self, case: Case) -> float:
        """Seconds per step."""

    def close(self) -> None: ...


def open_peer(name: str, case: Case, args: argparse.Namespace) -> Peer:
    """Start an engine for ``case``; Skipped when it is not there."""
    if name in _ON_GGUF:
        if args.gguf is None:
            raise Skipped("needs --gguf")
        if not args.gguf.is_file():
            raise Skipped(f"no file {args.gguf}")
    if name == "llama_bench":
        if args.llama_bench is None:
            raise Skipped("needs --llama-bench")
        if case.kind == "rows":
            raise Skipped("llama-bench computes one row of logits only")
        return LlamaBench(args.llama_bench, args.gguf, args.threads)
    model = args.gguf if name in _ON_GGUF else args.model
    return Worker(name, model, case, args.threads, args.llama_library)


class Worker:
    """`worker.py` in a process of its own; one JSON line for each question and each answer."""

    def __init__(
        self, name: str, model: Path, case: Case, threads: int, llama_library: Path | None = None
    ) -> None:
        self.name = name
        environment = dict(os.environ)
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[variable] = str(threads)
        if llama_library is not None:
            environment["LLAMA_CPP_LIB_PATH"] = str(llama_library.parent.absolute())
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), name, str(model),
                   case.kind, str(case.num_rows), str(threads)]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe could fill up
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            text=True, errors="replace", env=environment,
        )
        answer = self._answer()
        if "skipped" in answer:
            self.close()
            raise Skipped(answer["skipped"])
        self.facts = answer

    def run(self, case: Case) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        answer = self._answer()
        if answer["token_ids"]:
            self.facts["token_ids"] = answer["token_ids"]
        return float(answer["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{self.name}: the process ended: {last}")

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.communicate()
        self._errors.close()


class LlamaBench:
    """The benchmark program of llama.cpp; each run loads the model and reports its own times."""

    name = "llama_bench"

    def __init__(self, program: Path, model: Path, threads: int) -> None:
        if not program.is_file():
            raise Skipped(f"no file {program}")
        self._head = [str(program), "-m", str(model), "-t", str(threads), "-r", "1", "-o", "jsonl"]
        self.facts: dict[str, Any] = {}

    def run(self, case: Case) -> float:
        prompt, output = (0, DECODE_STEPS) if case.kind == "decode" else (case.num_rows, 0)
        command = [*self._head, "-p", str(prompt), "-n", str(output)]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"llama-bench: exit code {done.returncode}: {last}")
        record = json.loads(lines[-1])
        self.facts = {"engine_version": str(record.get("build_commit", "unknown"))}
        return record["avg_ns"] / 1e9 / (DECODE_STEPS if case.kind == "decode" else 1)

    def close(self) -> None:
        pass
