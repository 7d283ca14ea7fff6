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
from steppers import IkLlama, LlamaCppPython, LlamaSync, Stepper, Transformers

Run = Callable[[], float]  # the case once: seconds per step
Opened = tuple[dict[str, Any], Run]  # what the records say about the engine, and the case
# What greedy decoding gave: engines on the same weights mostly agree.
FIRST_TOKENS: list[int] = []


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
    session = _C.Session(engine, max_context=1024)
    vocab_size = engine.config.vocab_size

    def decode() -> float:
        stamps: list[float] = []
        session.reset()
        result = session.generate(prompt(vocab_size, CONTEXT_TOKENS), greedy(DECODE_STEPS + 1),
                                  lambda *_: stamps.append(perf_counter()))
        FIRST_TOKENS[:] = result.token_ids
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


def open_stepper(
    make: Callable[[Path, int, bool], Stepper], model: Path, kind: str, num_rows: int, threads: int
) -> Opened:
    stepper = make(model, threads, kind == "rows")
    vocab_size = stepper.vocab_size

    def decode() -> float:
        stepper.reset()
        stepper.feed(prompt(vocab_size, CONTEXT_TOKENS), 1)
        tokens = [stepper.best()]
        begin = perf_counter()
        for _ in range(DECODE_STEPS):
            stepper.feed(tokens[-1:], 1)
            tokens.append(stepper.best())
        seconds = (perf_counter() - begin) / DECODE_STEPS
        FIRST_TOKENS[:] = tokens
        return seconds

    def rows() -> float:
        ids = prompt(vocab_size, ROW_STEPS * num_rows)
        stepper.reset()
        begin = perf_counter()
        for first in range(0, len(ids), num_rows):
            stepper.feed(ids[first : first + num_rows], num_rows)
        return (perf_counter() - begin) / ROW_STEPS

    def prefill() -> float:
        stepper.reset()
        begin = perf_counter()
        stepper.feed(prompt(vocab_size, num_rows), 1)
        stepper.best()
        return perf_counter() - begin

    facts = {"engine_version": stepper.version}
    return facts, {"decode": decode, "rows": rows, "prefill": prefill}[kind]


def open_xllamacpp(model: Path, kind: str, num_rows: int, threads: int) -> Opened:
    """The package xllamacpp: llama.cpp's server in this process, timed by itself."""
    if kind == "rows":
        raise NotImplementedError("the server computes one row of logits only")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_parallel = 1024, 512, 512, 1
    params.n_gpu_layers, params.warmup, params.cache_prompt = 0, False, False
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

    def decode() -> float:
        answer = complete(CONTEXT_TOKENS, DECODE_STEPS + 1)
        timings = answer["timings"]  # the first token belongs to the prompt's step
        return timings["predicted_ms"] / 1e3 / max(timings["predicted_n"] - 1, 1)

    def prefill() -> float:
        return complete(num_rows, 1)["timings"]["prompt_ms"] / 1e3

    facts = {"engine_version": str(getattr(xllamacpp, "__version__", xllamacpp.BUILD_INFO))}
    return facts, {"decode": decode, "prefill": prefill}[kind]


def _gguf_vocab_size(model: Path) -> int:
    import gguf

    (tensor,) = (t for t in gguf.GGUFReader(str(model)).tensors if t.name == "token_embd.weight")
    return int(tensor.shape[1])


OPENERS: dict[str, Callable[..., Opened]] = {
    "mimo_rt": open_mimo_rt,
    "llama_cpp": partial(open_stepper, LlamaCppPython),
    "llama_sync": partial(open_stepper, LlamaSync),
    "xllamacpp": open_xllamacpp,
    "ik_llama": partial(open_stepper, IkLlama),
    "transformers": partial(open_stepper, partial(Transformers, dtype="bfloat16")),
    "transformers_f32": partial(open_stepper, partial(Transformers, dtype="float32")),
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
    except Exception as error:
        if name == "mimo_rt":
            raise
        answer(skipped=str(error))  # a peer may be missing, or not fit this machine
        return
    answer(**facts)
    for _ in sys.stdin:
        seconds = run()
        answer(seconds=seconds, token_ids=FIRST_TOKENS)


if __name__ == "__main__":
    main()
