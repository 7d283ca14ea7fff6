"""One engine in its own process, run by `arena.py`: waits for a question, runs the case, answers.

  worker.py ENGINE MODEL CASE ROWS THREADS
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from peers import (
    CONTEXT_TOKENS,
    DECODE_STEPS,
    MAX_CONTEXT,
    ROW_STEPS,
    TEXT_TOKENS,
    WITH_DRAFTS,
    WITH_INT8,
)
from steppers import IkLlama, LlamaCppPython, LlamaSync, Stepper, Transformers


@dataclass
class Outcome:
    """Seconds per step; of greedy decoding also the tokens and, if wanted, the logits after the
    prompt: engines on the same weights mostly agree."""

    seconds: float
    token_ids: list[int] = field(default_factory=list)
    logits: np.ndarray | None = None


Run = Callable[[list[int], bool], Outcome]  # the case once; of `text` with the ids of a prompt
Opened = tuple[dict[str, Any], Run]  # what the records say about the engine, and the case


def prompt(vocab_size: int, num_tokens: int) -> list[int]:
    """The same ids for every engine."""
    return [(7919 * i + 11) % vocab_size for i in range(num_tokens)]


def open_mimo_rt(
    model: Path, kind: str, num_rows: int, threads: int, draft: str = "none",
    activations: str = "bf16",
) -> Opened:
    import mimo_rt
    from mimo_rt import _C
    from mimo_rt.bench.cases import greedy

    options = _C.EngineOptions(num_threads=threads, draft=draft, activations=activations,
                               max_decode_tokens=max(8, num_rows if kind == "rows" else 1))
    engine = _C.Engine.open(str(model), options)
    session = _C.Session(engine, max_context=MAX_CONTEXT)
    vocab_size = engine.config.vocab_size

    def last_logits(ids: list[int], wants_logits: bool) -> np.ndarray | None:
        return session.logits(ids)[-1] if wants_logits else None

    def decode(_ids: list[int], wants_logits: bool) -> Outcome:
        stamps: list[float] = []
        ids = prompt(vocab_size, CONTEXT_TOKENS)
        session.reset()
        result = session.generate(ids, greedy(DECODE_STEPS + 1),
                                  lambda *_: stamps.append(perf_counter()))
        seconds = (stamps[-1] - stamps[0]) / DECODE_STEPS
        return Outcome(seconds, list(result.token_ids), last_logits(ids, wants_logits))

    def text(ids: list[int], wants_logits: bool) -> Outcome:
        session.reset()
        # Nobody listens, so rounds follow each other without the host.
        result = session.generate(ids, greedy(TEXT_TOKENS))
        seconds = 1 / result.stats.decode_tokens_per_s
        return Outcome(seconds, list(result.token_ids), last_logits(ids, wants_logits))

    def rows(_ids: list[int], _wants_logits: bool) -> Outcome:
        ids = prompt(vocab_size, ROW_STEPS * num_rows)
        begin = perf_counter()
        session.logits(ids, num_rows)
        return Outcome((perf_counter() - begin) / ROW_STEPS)

    def prefill(_ids: list[int], _wants_logits: bool) -> Outcome:
        session.reset()
        begin = perf_counter()
        session.generate(prompt(vocab_size, num_rows), greedy(1))
        return Outcome(perf_counter() - begin)

    facts = {"engine_version": mimo_rt.__version__, "backend": engine.backend,
             "bandwidth_gbs": round(engine.measure_bandwidth_gbs(0.3), 3)}
    return facts, {"decode": decode, "text": text, "rows": rows, "prefill": prefill}[kind]


def open_stepper(
    make: Callable[[Path, int, bool], Stepper], model: Path, kind: str, num_rows: int, threads: int
) -> Opened:
    stepper = make(model, threads, kind == "rows")
    vocab_size = stepper.vocab_size

    def generate(ids: list[int], num_steps: int, wants_logits: bool) -> Outcome:
        stepper.reset()
        stepper.feed(ids, 1)
        logits = stepper.logits().astype(np.float32) if wants_logits else None
        tokens = [stepper.best()]
        begin = perf_counter()
        for _ in range(num_steps):
            stepper.feed(tokens[-1:], 1)
            tokens.append(stepper.best())
        return Outcome((perf_counter() - begin) / num_steps, tokens, logits)

    def decode(_ids: list[int], wants_logits: bool) -> Outcome:
        return generate(prompt(vocab_size, CONTEXT_TOKENS), DECODE_STEPS, wants_logits)

    def text(ids: list[int], wants_logits: bool) -> Outcome:
        return generate(ids, TEXT_TOKENS - 1, wants_logits)

    def rows(_ids: list[int], _wants_logits: bool) -> Outcome:
        ids = prompt(vocab_size, ROW_STEPS * num_rows)
        stepper.reset()
        begin = perf_counter()
        for first in range(0, len(ids), num_rows):
            stepper.feed(ids[first : first + num_rows], num_rows)
        return Outcome((perf_counter() - begin) / ROW_STEPS)

    def prefill(_ids: list[int], _wants_logits: bool) -> Outcome:
        stepper.reset()
        begin = perf_counter()
        stepper.feed(prompt(vocab_size, num_rows), 1)
        stepper.best()
        return Outcome(perf_counter() - begin)

    facts = {"engine_version": stepper.version}
    return facts, {"decode": decode, "text": text, "rows": rows, "prefill": prefill}[kind]


def open_xllamacpp(model: Path, kind: str, num_rows: int, threads: int) -> Opened:
    """The package xllamacpp: llama.cpp's server in this process, timed by itself."""
    if kind in ("rows", "text"):
        raise NotImplementedError("the server computes one row of logits and does not say it")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_parallel = MAX_CONTEXT, 512, 512, 1
    params.n_gpu_layers, params.warmup, params.cache_prompt = 0, False, False
    params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    vocab_size = _gguf_vocab_size(model)

    def complete(num_prompt: int, num_output: int) -> dict[str, Any]:
        answer = server.handle_completions({
            "prompt": prompt(vocab_size, num_prompt), "n_predict": num_output, "temperature": 0.0,
            "cache_prompt": False, "ignore_eos": True,
        })
        if "timings" not in answer:
            raise RuntimeError(f"xllamacpp: {answer}")
        return answer

    def decode(_ids: list[int], _wants_logits: bool) -> Outcome:
        answer = complete(CONTEXT_TOKENS, DECODE_STEPS + 1)
        timings = answer["timings"]  # the first token belongs to the prompt's step
        return Outcome(timings["predicted_ms"] / 1e3 / max(timings["predicted_n"] - 1, 1))

    def prefill(_ids: list[int], _wants_logits: bool) -> Outcome:
        return Outcome(complete(num_rows, 1)["timings"]["prompt_ms"] / 1e3)

    facts = {"engine_version": str(getattr(xllamacpp, "__version__", xllamacpp.BUILD_INFO))}
    return facts, {"decode": decode, "prefill": prefill}[kind]


def _gguf_vocab_size(model: Path) -> int:
    import gguf

    (tensor,) = (t for t in gguf.GGUFReader(str(model)).tensors if t.name == "token_embd.weight")
    return int(tensor.shape[1])


OPENERS: dict[str, Callable[..., Opened]] = {
    "mimo_rt": open_mimo_rt,
    WITH_DRAFTS: partial(open_mimo_rt, draft="auto"),
    WITH_INT8: partial(open_mimo_rt, activations="int8"),
    "llama_cpp": partial(open_stepper, LlamaCppPython),
    "llama_sync": partial(open_stepper, LlamaSync),
    "xllamacpp": open_xllamacpp,
    "ik_llama": partial(open_stepper, IkLlama),
    "transformers": partial(open_stepper, partial(Transformers, dtype="bfloat16")),
    "transformers_f32": partial(open_stepper, partial(Transformers, dtype="float32")),
}


def memory_facts() -> dict[str, float]:
    """This process's memory, and how much of it lies in huge pages: of every engine it should be
    most. The kernel has none left where too many engines share a machine's memory."""
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in rollup[1:]}
    return {"resident_mb": round(kib["Rss"] * 1.024e-3, 1),
            "huge_page_mb": round(kib["AnonHugePages"] * 1.024e-3, 1)}


def main() -> None:
    name, model, kind, num_rows, threads = sys.argv[1:]
    # Libraries print to stdout as they like; answers go where stdout was.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        facts, run = OPENERS[name](Path(model), kind, int(num_rows), int(threads))
    except Exception as error:
        if name in ("mimo_rt", WITH_DRAFTS, WITH_INT8):
            raise
        answer(skipped=str(error))  # a peer may be missing, or not fit this machine
        return
    answer(**facts, **memory_facts())
    for line in sys.stdin:
        question = json.loads(line)
        outcome = run(question["prompt_ids"], question["wants_logits"])
        values = outcome.logits
        logits = None if values is None else base64.b64encode(values.astype("<f4")).decode()
        answer(seconds=outcome.seconds, token_ids=outcome.token_ids, logits=logits)


if __name__ == "__main__":
    main()
