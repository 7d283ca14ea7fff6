"""Engines as the arena sees them: processes that run a case when asked and say how long it took."""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

_ON_GGUF = ("llama_cpp", "xllamacpp", "llama_sync", "ik_llama", "llama_bench")
WITH_DRAFTS = "mimo_rt_drafts"
WITH_INT8 = "mimo_rt_int8"
ENGINES = ("mimo_rt", WITH_DRAFTS, WITH_INT8, *_ON_GGUF, "transformers", "transformers_f32")
# Weights that peers read into memory of malloc lie in huge pages then, as ours do. Mapped files
# have pages of 4 KiB, with which llama.cpp decodes a quarter slower.
_HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
_THEIR_FACTS = {"glibc_tunables": _HUGE_PAGES["GLIBC_TUNABLES"]}
_GGUF_FACTS = {"use_mmap": False} | _THEIR_FACTS
CONTEXT_TOKENS = 16
DECODE_STEPS = 16
ROW_STEPS = 4
TEXT_TOKENS = 128
MAX_CONTEXT = 1024


class Skipped(Exception):
    """An engine that cannot run here, with the reason."""


@dataclass(frozen=True)
class Case:
    """``decode``: one token per step after a short prompt. ``rows``: ``num_rows`` tokens per step,
    logits of all. ``prefill``: a prompt of ``num_rows`` tokens, logits of the last. ``text``: the
    `TEXT_TOKENS` greedy tokens after one of ``num_rows`` real prompts, the first not timed."""

    kind: str
    num_rows: int
    prompt_ids: tuple[int, ...] = ()  # of ``text``

    @property
    def label(self) -> str:
        return self.kind if self.kind == "decode" else f"{self.kind}{self.num_rows}"

    @property
    def tokens_per_step(self) -> int:
        return 1 if self.kind == "text" else self.num_rows


@dataclass(frozen=True)
class Output:
    """What an engine made of a prompt: greedy tokens, and the logits after the prompt, where the
    engine says them."""

    token_ids: list[int]
    logits: np.ndarray | None


class Peer(Protocol):
    name: str
    facts: dict[str, Any]  # for the records
    outputs: dict[tuple[int, ...], Output]  # of `decode` and `text`, by `Case.prompt_ids`

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
        if case.kind == "text":
            raise Skipped("llama-bench takes no prompts")
        return LlamaBench(args.llama_bench, args.gguf, args.threads)
    if name == WITH_DRAFTS and case.kind != "text":
        raise Skipped("drafts change no step: see the case text")
    model = args.gguf if name in _ON_GGUF else args.model
    return Worker(name, model, case, args.threads, args.llama_library)


class Worker:
    """`worker.py` in a process of its own; one JSON line for each question and each answer."""

    def __init__(
        self, name: str, model: Path, case: Case, threads: int, llama_library: Path | None = None
    ) -> None:
        self.name = name
        self.outputs: dict[tuple[int, ...], Output] = {}
        is_ours = name.startswith("mimo_rt")  # asks for huge pages itself
        environment = os.environ | ({} if is_ours else _HUGE_PAGES)
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
        self.facts = answer | (_GGUF_FACTS if name in _ON_GGUF else {} if is_ours else _THEIR_FACTS)

    def run(self, case: Case) -> float:
        assert self._process.stdin is not None
        is_new = case.prompt_ids not in self.outputs
        question = {"prompt_ids": case.prompt_ids, "wants_logits": is_new}
        with contextlib.suppress(BrokenPipeError):  # of a dead process: `_answer` has its last words
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        answer = self._answer()
        if is_new and answer["token_ids"]:
            logits = answer["logits"] and np.frombuffer(base64.b64decode(answer["logits"]), "<f4")
            self.outputs[case.prompt_ids] = Output(answer["token_ids"], logits)
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
        self._head = [str(program), "-m", str(model), "-t", str(threads), "-r", "1", "-o", "jsonl",
                      "-mmp", "0"]
        self.facts: dict[str, Any] = {}
        self.outputs: dict[tuple[int, ...], Output] = {}

    def run(self, case: Case) -> float:
        prompt, output = (0, DECODE_STEPS) if case.kind == "decode" else (case.num_rows, 0)
        command = [*self._head, "-p", str(prompt), "-n", str(output)]
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False,
            env=os.environ | _HUGE_PAGES,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode or not lines:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"llama-bench: exit code {done.returncode}: {last}")
        record = json.loads(lines[-1])
        self.facts = {"engine_version": str(record.get("build_commit", "unknown")), **_GGUF_FACTS}
        return record["avg_ns"] / 1e9 / (DECODE_STEPS if case.kind == "decode" else 1)

    def close(self) -> None:
        pass
