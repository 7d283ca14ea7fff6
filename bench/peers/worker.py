"""One engine in its own process, run by `arena.py`: waits for a line, runs the case, answers.

  worker.py ENGINE MODEL CASE ROWS THREADS
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from peers import CONTEXT_TOKENS, DECODE_STEPS, ROW_STEPS

Run = Callable[[], float]  # the case once: seconds per step
Opened = tuple[dict[str, Any], Run]  # what the records say about the engine, and the case


def prompt(vocab_size: int, num_tokens: int) -> list[int]:
    """The same ids for every engine."""
    return [(7919 * i + 11) % vocab_size for i in range(num_tokens)]


def open_mimo_rt(model: Path, kind: str, num_rows: int, threads: int) -> Opened:
    import mimo_rt
    from mimo_rt import _C
    from mimo_rt.bench.cases import greedy

    options = _C.EngineOptions(num_threads=threads, draft="none",
                               max_decode_tokens=max(8, num_rows if kind == "rows" else 1))
    engine = _C.Engine.open(str(model), options)
    session = _C.Session(engine, max_context=4096)
    vocab_size = engine.config.vocab_size

    def decode() -> float:
        stamps: list[float] = []
        session.reset()
        session.generate(prompt(vocab_size, CONTEXT_TOKENS), greedy(DECODE_STEPS + 1),
                         lambda *_: stamps.append(perf_counter()))
        return (stamps[-1] - stamps[0]) / DECODE_STEPS

    def rows() -> float:
        ids = prompt(vocab_size, ROW_STEPS * num_rows)
        begin = perf_counter()
        session.logits(ids, num_rows)
        return (perf_counter() - begin) / ROW_STEPS

    def prefill() -> float:
        session.reset()
        begin = perf_counter()
        session.generate(prompt(vocab_size, num_rows), greedy(1))
        return perf_counter() - begin

    facts = {"engine_version": mimo_rt.__version__, "backend": engine.backend,
             "bandwidth_gbs": round(engine.measure_bandwidth_gbs(0.3), 3)}
    return facts, {"decode": decode, "rows": rows, "prefill": prefill}[kind]


def open_llama_cpp(model: Path, kind: str, num_rows: int, threads: int) -> Opened:
    import llama_cpp

    llama = llama_cpp.Llama(
        model_path=str(model), n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=threads,
        n_threads_batch=threads, logits_all=kind == "rows", verbose=False,
    )
    vocab_size = llama.n_vocab()

    def decode() -> float:
        llama.reset()
        llama.eval(prompt(vocab_size, CONTEXT_TOKENS))
        token = llama.sample(temp=0.0)
        begin = perf_counter()
        for _ in range(DECODE_STEPS):
            llama.eval([token])
            token = llama.sample(temp=0.0)
        return (perf_counter() - begin) / DECODE_STEPS

    def rows() -> float:
        ids = prompt(vocab_size, ROW_STEPS * num_rows)
        llama.reset()
        begin = perf_counter()
        for step in range(ROW_STEPS):
            llama.eval(ids[step * num_rows : (step + 1) * num_rows])
        return (perf_counter() - begin) / ROW_STEPS

    def prefill() -> float:
        llama.reset()
        begin = perf_counter()
        llama.eval(prompt(vocab_size, num_rows))
        llama.sample(temp=0.0)
        return perf_counter() - begin

    facts = {"engine_version": llama_cpp.__version__}
    return facts, {"decode": decode, "rows": rows, "prefill": prefill}[kind]


def open_transformers(
    model: Path, kind: str, num_rows: int, threads: int, dtype: str = "bfloat16"
) -> Opened:
    import torch
    import transformers
    from hf_llama import load_llama

    torch.set_num_threads(threads)
    llama = load_llama(model, getattr(torch, dtype))
    vocab_size = llama.config.vocab_size

    def step(ids: list[int], cache: Any, num_logits: int) -> tuple[int, Any]:
        out = llama(torch.tensor([ids]), past_key_values=cache, use_cache=True,
                    logits_to_keep=num_logits)
        return int(out.logits[0, -1].argmax()), out.past_key_values

    def decode() -> float:
        token, cache = step(prompt(vocab_size, CONTEXT_TOKENS), None, 1)
        begin = perf_counter()
        for _ in range(DECODE_STEPS):
            token, cache = step([token], cache, 1)
        return (perf_counter() - begin) / DECODE_STEPS

    def rows() -> float:
        ids, cache = prompt(vocab_size, ROW_STEPS * num_rows), None
        begin = perf_counter()
        for first in range(0, len(ids), num_rows):
            _, cache = step(ids[first : first + num_rows], cache, num_rows)
        return (perf_counter() - begin) / ROW_STEPS

    def prefill() -> float:
        begin = perf_counter()
        step(prompt(vocab_size, num_rows), None, 1)
        return perf_counter() - begin

    run = {"decode": decode, "rows": rows, "prefill": prefill}[kind]
    return {"engine_version": transformers.__version__}, torch.inference_mode()(run)


OPENERS = {
    "mimo_rt": open_mimo_rt,
    "llama_cpp": open_llama_cpp,
    "transformers": open_transformers,
    "transformers_f32": partial(open_transformers, dtype="float32"),
}


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
    except (ImportError, NotImplementedError) as error:
        answer(skipped=str(error))
        return
    answer(**facts)
    for _ in sys.stdin:
        answer(seconds=run())


if __name__ == "__main__":
    main()
