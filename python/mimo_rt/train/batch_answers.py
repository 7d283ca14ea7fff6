"""Answers made by torch, many at a time: for GPUs, where training needs more than a CPU makes.

They are the target's own as much as the engine's are: the same weights, the largest logit or a draw
from the same distribution. Greedy ones differ from the engine's only after a token whose two
largest logits are as near as their roundings (tests/python/test_train_batch.py). A sampled answer
depends on its neighbours' draws: the seed of a line is that of its batch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .answers_meta import check_meta, checkpoint_digest, prompts_digest
from .batch_target import BatchTarget
from .generations import GenerateOptions, Generation, Prompt
from .run import Report
from .schedule import mix_seed
from .target import TargetModel

_PREFILL_TOKENS = 1 << 14
_KEYS = 64  # attention looks at a multiple of it: few shapes
_LOOK_EVERY = 16  # tokens between questions to the device whether all answers have ended


def make_batch_answers(
    target: TargetModel,
    prompts: Sequence[Prompt],
    directory: Path,
    options: GenerateOptions,
    *,
    stop_ids: Sequence[int],
    batch: int = 1024,
    done: Collection[tuple[str, float]] = (),
    seconds: float = float("inf"),
    meta: dict[str, Any],
    report: Report,
) -> int:
    """Answer prompts until all are or the time is up; go on where an earlier call stopped.

    One batch is made in any case. A file ``part-torch-N.jsonl`` appears when its batch is done, and
    not before.

    Args:
        directory: as :func:`make_generations` makes it.
        options: without ``part``.
        stop_ids: end an answer, as in the engine: those of config.json, generation_config.json and
            the tokenizer.
        batch: answers at a time; equal numbers give equal answers.
        done: (prompt, temperature) of answers that are there already.

    Returns:
        The number of tokens made by this call.
    """
    directory.mkdir(parents=True, exist_ok=True)
    jobs = [(p, t) for p in prompts for t in options.temperatures if (p.name, t) not in done]
    recorded = {
        "batch": batch,
        "stop_ids": list(stop_ids),
        "checkpoint_digest": checkpoint_digest(target.directory),
        "prompts_digest": prompts_digest([prompt for prompt, _ in jobs]),  # batches count them
    }
    check_meta(directory, meta | asdict(options) | recorded)
    start_time, num_tokens, num_made = time.monotonic(), 0, 0
    for number, begin in enumerate(range(0, len(jobs), batch)):
        path = directory / f"part-torch-{number:05d}.jsonl"
        if path.is_file():
            continue
        elapsed = time.monotonic() - start_time
        if num_made and elapsed * (1 + 1 / num_made) > seconds:  # the next one would end too late
            break
        answers = _answer_batch(target, jobs[begin : begin + batch], options, number, stop_ids)
        lines = [json.dumps(asdict(answer)) + "\n" for answer in answers]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(lines), encoding="utf-8")
        os.replace(temporary, path)
        num_made += 1
        num_tokens += sum(len(answer.output_ids) for answer in answers)
        rate = num_tokens / (time.monotonic() - start_time)
        report(f"{min(begin + batch, len(jobs))} of {len(jobs)} answers, {rate:.0f} tokens/s")
    return num_tokens


def _answer_batch(
    target: TargetModel,
    jobs: Sequence[tuple[Prompt, float]],
    options: GenerateOptions,
    number: int,
    stop_ids: Sequence[int],
) -> list[Generation]:
    jobs = sorted(jobs, key=lambda job: len(job[0].token_ids))  # alike ones share a prefill
    seed = mix_seed(options.seed, number)
    prompts = [torch.tensor(prompt.token_ids) for prompt, _ in jobs]
    temperatures = torch.tensor([temperature for _, temperature in jobs])
    with torch.no_grad():
        outputs = decode_batch(target, prompts, temperatures, options.max_tokens, seed, stop_ids)
    return [
        Generation(prompt.name, seed, temperature, list(prompt.token_ids), output)
        for (prompt, temperature), output in zip(jobs, outputs, strict=True)
    ]


def decode_batch(
    target: TargetModel,
    prompts: Sequence[Tensor],
    temperatures: Tensor,
    max_tokens: int,
    seed: int,
    stop_ids: Sequence[int],
) -> list[list[int]]:
    """Answers of at most ``max_tokens``, a stop id included, to prompts of token ids."""
    device = target.device
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    max_keys = int(lengths.max()) + max_tokens
    model = BatchTarget(target, len(prompts), max_keys)
    last = model.logits(_prefill(model, prompts, lengths, target))
    positions, temperatures = lengths.to(device), temperatures.to(device)[:, None]
    generator = torch.Generator(device).manual_seed(seed)
    stops = torch.tensor(stop_ids, dtype=torch.long, device=device)
    made = torch.zeros(len(prompts), max_tokens, dtype=torch.long, device=device)
    has_ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for i in range(max_tokens):
        made[:, i] = _choose(last, temperatures, generator)
        has_ended |= torch.isin(made[:, i], stops)
        if i + 1 == max_tokens or (i % _LOOK_EVERY == 0 and bool(has_ended.all())):
            break
        num_keys = min(-(-(int(lengths.max()) + i + 1) // _KEYS) * _KEYS, max_keys)
        x, _ = model.forward(made[:, i : i + 1], positions + i, num_keys)
        last = model.logits(x[:, 0])
    return [_until_stop(row[: i + 1], set(stop_ids)) for row in made.tolist()]


def _prefill(
    model: BatchTarget, prompts: Sequence[Tensor], lengths: Tensor, target: TargetModel
) -> Tensor:
    """The residual stream ``[prompts, hidden_size]`` at the last token of every prompt."""
    streams, begin = [], 0
    while begin < len(prompts):
        end, longest = begin + 1, len(prompts[begin])
        while end < len(prompts):
            longest = max(longest, len(prompts[end]))
            if (end + 1 - begin) * longest > _PREFILL_TOKENS:
                break
            end += 1
        ids = pad_sequence(list(prompts[begin:end]), batch_first=True).to(target.device)
        first = torch.zeros(len(ids), dtype=torch.long, device=target.device)
        x, _ = model.forward(ids, first, ids.shape[1], rows=slice(begin, end))
        rows = torch.arange(len(ids), device=target.device)
        streams.append(x[rows, lengths[begin:end].to(target.device) - 1])
        begin = end
    return torch.cat(streams)


def _choose(logits: Tensor, temperatures: Tensor, generator: torch.Generator) -> Tensor:
    """The largest logit, or at a temperature above 0 a draw: the largest with Gumbel noise."""
    noise = torch.empty_like(logits).exponential_(generator=generator).log_()
    drawn = logits / temperatures.clamp(min=1e-6) - noise
    return torch.where(temperatures > 0, drawn, logits).argmax(dim=-1)


def _until_stop(ids: list[int], stops: set[int]) -> list[int]:
    end = next((i + 1 for i, token_id in enumerate(ids) if token_id in stops), len(ids))
    return ids[:end]
