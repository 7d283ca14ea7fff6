"""Sessions on a GPU against sessions on the CPU, on the same weights. bench/gpu_gate.py runs it.

    python bench/gpu_engine.py [--device cuda] [--demo DIR | --model DIR ...]

Without --model: a tiny random model with every feature, and the demo model, of --demo or where it was converted before;
a line says so where it is in neither place. One JSON line per model: whether the logits agree within the rounding of
BF16 activations (but for a row in ten: where a router has a near tie, a row takes other experts), have the same bits
for steps of one and of all rows, whether greedy tokens are equal (up to the first other one the logits of both must
agree, and it must be the best of its device's), and whether drafts (of the model's dflash/, and where the device has
them looked up in the text) change no token of the device's own, with tokens/s of plain decoding and of both, and of a
prompt; then what a step is made of: for each kind of task its number, the mean time of one and what of it was spent
waiting for weights, and the mean time of a worker by what it did. Exit code 1: something is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
from mimo_rt import _C, Session
from mimo_rt.bench.breakdown import PARTS, measure_breakdown
from mimo_rt.bench.prompts import read_prompts
from mimo_rt.checkpoints import demo, write_tiny_checkpoint, write_tiny_draft
from mimo_rt.loading import open_engine

MAX_RELATIVE_ERROR = 2.0**-5  # of a row of logits, L2: `mimo-rt doctor` says what 2**-7 against ref means
MIN_NEAR_ROWS = 0.9
NUM_IDS, NUM_TOKENS = 24, 32
NUM_TIMED_TOKENS, NUM_PREFILL_TOKENS, NUM_PROMPT_IDS = 128, 512, 251
PROMPTS = pathlib.Path(__file__).with_name("prompts") / "coding.jsonl"
NUM_TRACED_STEPS = 16


def first_difference(a: list[int], b: list[int]) -> int | None:
    """Index of the first token that is not equal."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)


def row_distances(logits: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Of each row, L2 over that of the expected one."""
    return np.linalg.norm(logits - expected, axis=1) / np.linalg.norm(expected, axis=1)


def agree(logits: np.ndarray, expected: np.ndarray) -> bool:
    """Whether both are logits of one model but for rounding."""
    return bool(np.mean(row_distances(logits, expected) <= MAX_RELATIVE_ERROR) >= MIN_NEAR_ROWS)


def draft_kinds(model_dir: pathlib.Path) -> dict[str, str]:
    """Name in the record -> argument of Session: the model's own draft, if it has one, and lookups."""
    kinds = {"dflash": str(model_dir / "dflash")} if (model_dir / "dflash").is_dir() else {}
    return {**kinds, "ngram": "ngram"}


def timed_runs(model_dir: pathlib.Path, device: str) -> dict[str, Any]:
    """Tokens/s of greedy decoding after a real prompt, plain and with each kind of draft, and whether these changed a
    token."""
    greedy = {"max_tokens": NUM_TIMED_TOKENS, "temperature": 0.0, "ignore_eos": True}
    (prompt,) = read_prompts([PROMPTS], limit=1)

    def run(session: Session, **options: Any) -> tuple[Any, float]:
        ids = session.encode(prompt.content) if session.has_tokenizer else list(range(1, NUM_IDS + 1))
        for _ in range(2):  # the first one also warms up
            session.reset()
            result = session.generate(ids, **greedy, **options)
        return result, round(result.stats.decode_tokens_per_s, 1)

    def run_prompt(session: Session) -> float:
        for first in (1, 2):  # no common prefix; the memory of the first one stays
            prompt_ids = [first, *(1 + i * i % NUM_PROMPT_IDS for i in range(1, NUM_PREFILL_TOKENS))]
            stats = session.generate(prompt_ids, max_tokens=1).stats
        return round(stats.prefill_tokens_per_s, 1)

    with Session(model_dir, device=device, draft=None) as session:
        plain, plain_tokens_per_s = run(session)
        prefill_tokens_per_s = run_prompt(session)
    drafts: dict[str, Any] = {}
    for kind, draft in draft_kinds(model_dir).items():
        with Session(model_dir, device=device, draft=draft) as session:
            results = {mode: run(session, draft_mode=mode) for mode in ("fixed", "adaptive")}
        fixed, _ = results["fixed"]
        drafts[kind] = {"changes_nothing": all(r.token_ids == plain.token_ids for r, _ in results.values()),
                        "num_rounds": fixed.stats.draft.num_rounds,
                        "acceptance_length": round(fixed.stats.draft.acceptance_length, 3),
                        "tokens_per_s": {mode: speed for mode, (_, speed) in results.items()}}
    return {"tokens_per_s": plain_tokens_per_s, "prefill_tokens_per_s": prefill_tokens_per_s, "drafts": drafts}


def task_times(trace: str) -> dict[str, dict[str, float]]:
    """Microseconds of one task of each kind in the measured step of a Chrome trace."""
    found: dict[str, list[tuple[float, float]]] = {}
    for event in json.loads(trace)["traceEvents"]:
        if event["ph"] == "X" and event["pid"] == 1 and event["cat"] not in ("wait", "fetch"):
            found.setdefault(event["cat"], []).append((event["dur"], event["args"].get("weights_us", 0.0)))
    return {kind: {"num": len(times), "us": round(sum(us for us, _ in times) / len(times), 3),
                   "weights_us": round(sum(us for _, us in times) / len(times), 3)} for kind, times in found.items()}


def step_times(model_dir: pathlib.Path, device: str) -> dict[str, Any]:
    """What the device's task times say of a decoding step."""
    engine = open_engine(model_dir, None, {"device": device, "draft": "none"})
    breakdown, trace = measure_breakdown(engine, _C.Session(engine, max_context=128), NUM_IDS, NUM_TRACED_STEPS)
    workers = [worker for step in breakdown.steps for worker in step.workers]
    parts = {part: sum(sum(getattr(worker, part).values()) for worker in workers) / len(workers)
             for part in (*PARTS, "gaps")}
    return {"step_us": round(breakdown.step_us, 3), "worker_us": {part: round(us, 3) for part, us in parts.items()},
            "task_us": task_times(trace)}


def compare(model_dir: pathlib.Path, device: str) -> dict[str, Any]:
    """What both devices make of one prompt."""
    ids = list(range(1, NUM_IDS + 1))
    greedy = {"max_tokens": NUM_TOKENS, "temperature": 0.0, "ignore_eos": True}
    with Session(model_dir, device="cpu", draft=None) as cpu, Session(model_dir, device=device, draft=None) as gpu:
        expected, logits = cpu.logits(ids), gpu.logits(ids)
        cpu_ids = list(cpu.generate(ids, **greedy).token_ids)
        gpu_ids = list(gpu.generate(ids, **greedy).token_ids)
        same_bits = all(np.array_equal(logits, gpu.logits(ids, step_tokens=rows)) for rows in (1, NUM_IDS))
        place = first_difference(cpu_ids, gpu_ids)
        is_explained = True
        if place is not None:
            common = ids + cpu_ids[:place]
            of_cpu, of_gpu = cpu.logits(common), gpu.logits(common)
            best = [int(rows[-1].argmax()) for rows in (of_cpu, of_gpu)]
            is_explained = agree(of_gpu, of_cpu) and best == [cpu_ids[place], gpu_ids[place]]
        backends = (cpu.backend, gpu.backend)
    timed = timed_runs(model_dir, device)
    error = float(np.median(row_distances(logits, expected)))
    passed = agree(logits, expected) and bool(same_bits) and is_explained
    passed = passed and all(draft["changes_nothing"] for draft in timed["drafts"].values())
    return {"model": model_dir.name, "backends": backends, "passed": passed,
            "relative_error": error if math.isfinite(error) else None,
            "same_bits": bool(same_bits), "num_equal_tokens": NUM_TOKENS if place is None else place,
            "other_token_explained": None if place is None else is_explained, "num_tokens": NUM_TOKENS, **timed,
            **step_times(model_dir, device)}


def models(parent: pathlib.Path, demo_dir: pathlib.Path) -> list[pathlib.Path]:
    """A tiny model with a draft, written into `parent`, and the demo model, which may not be there."""
    tiny = write_tiny_checkpoint(parent / "tiny", seed=1, preset="multiples_of_32")
    write_tiny_draft(tiny, seed=2)
    return [pathlib.Path(tiny), demo_dir]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="what is compared with the CPU (default cuda)")
    parser.add_argument("--demo", type=pathlib.Path, metavar="DIR", help="the demo model (default: that of the cache)")
    parser.add_argument("--model", type=pathlib.Path, action="append", metavar="DIR", help="checkpoint instead")
    args = parser.parse_args(argv)
    passed, demo_dir = True, args.demo or demo.cache_directory() / demo.MODEL_NAME
    with tempfile.TemporaryDirectory(prefix="mimo_rt-gpu-engine-") as parent:
        for model_dir in args.model or models(pathlib.Path(parent), demo_dir):
            if model_dir == demo_dir and not demo_dir.is_dir():
                print(json.dumps({"model": "demo", "not_run": f"no model in {demo_dir}"}), flush=True)
                continue
            record = compare(model_dir, args.device)
            print(json.dumps(record), flush=True)
            passed &= record["passed"]
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
