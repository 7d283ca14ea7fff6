"""The draft canary of ``mimo-rt doctor``: does the draft compute what it should, and does it help?"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _C
from ..bench.prompts import DEFAULT_FILE, read_prompts

# A draft is a shallow network on features that 2**-8 roundings have already moved, see doctor.py.
_MAX_RELATIVE_ERROR = 2.0**-5
_MAX_REFERENCE_BYTES = 4e9  # of packed weights: beyond it the plain loops of ref take too long
_NUM_PROMPT_TOKENS = 24
_NUM_OUTPUT_TOKENS = 48
_MAX_CONTEXT = 2048
# Acceptance length under which a draft is not worth its weights, and the part of the promised one
# (`acceptance_length` in the draft's config.json, where there is one) under which something is broken.
_MIN_ACCEPTANCE_LENGTH = 1.2
_MIN_PART_OF_PROMISE = 0.6
# MiMo's published draft promises nothing in its config; its model card's lowest is 3.18 of blocks of 8 (MT-Bench).
# Of longer blocks it is the same and more: what is drafted behind an error does not count.
_USUAL_LENGTH, _USUAL_NUM_DRAFTS = 3.18, 7


@dataclass(frozen=True)
class Remark:
    """What a check says instead of "ok" when nothing is wrong for certain. ``state``: "skipped" or
    "WARNING"."""

    state: str
    text: str


def draft_directory(args: argparse.Namespace) -> Path | None:
    """The draft to check: that of --draft, else the one that `Session` would load."""
    if args.draft is not None:
        return args.draft
    inside = Path(args.model) / "dflash"
    return inside if inside.is_dir() else None


def check_draft_config(model: str, draft: Path) -> str:
    config = _C.DraftConfig.from_directory(str(draft))
    config.check_target(_C.ModelConfig.from_directory(model))
    return (
        f"{config.num_layers} layers, block {config.block_size}, "
        f"{config.draft_vocab_size or 'all'} tokens, "
        f"features after layers {', '.join(map(str, config.target_layer_ids))}"
    )


def check_draft_logits(model: str, draft: Path, args: argparse.Namespace) -> str | Remark:
    """Logits of one block on the serial reference and on the chosen backend must agree."""
    import numpy as np

    ids: list[int] | None = None
    logits: dict[str, Any] = {}
    for device in (args.device, "ref"):
        with _open(model, draft, args, device) as session:
            if session.engine.weight_bytes > _MAX_REFERENCE_BYTES:
                most = f"{_MAX_REFERENCE_BYTES / 1e9:.0f} GB"
                return Remark("skipped", f"not compared: more than {most} for ref")
            ids = ids or _prompts(session)[0][:_NUM_PROMPT_TOKENS]
            logits[session.backend] = session.draft_logits(ids)
    if len(logits) == 1:
        return Remark("skipped", "not compared: ref is the chosen backend")
    (name, got), (_, expected) = logits.items()
    unknown = np.isneginf(got) & np.isneginf(expected)  # to a draft of a part of the vocabulary
    got, expected = got[~unknown], expected[~unknown]
    error = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
    if not error <= _MAX_RELATIVE_ERROR:
        raise _C.InternalError(
            f"[doctor] draft logits of {name} against ref: expected a relative error of at most "
            f"{_MAX_RELATIVE_ERROR:.3g}, got {error:.3g}."
        )
    return f"{name} against ref: relative error {error:.1e}"


def check_acceptance(model: str, draft: Path, args: argparse.Namespace) -> str | Remark:
    """Live acceptance, and that the draft changed no token."""
    num_rounds = num_accepted = 0
    with _open(model, draft, args, args.device) as session:
        for ids in _prompts(session):
            options = {"max_tokens": _NUM_OUTPUT_TOKENS, "temperature": 0.0, "ignore_eos": True}
            drafted = session.generate(ids, draft_mode="fixed", **options)
            if drafted.token_ids != session.generate(ids, draft_mode="off", **options).token_ids:
                raise _C.InternalError(
                    "[doctor] expected the tokens of plain decoding, got others. This is a bug of "
                    "mimo_rt: please report it."
                )
            num_rounds += drafted.stats.draft.num_rounds
            num_accepted += drafted.stats.draft.num_accepted_tokens
    length = 1 + num_accepted / num_rounds
    promised = _promised_length(draft)
    wanted = max(_MIN_ACCEPTANCE_LENGTH, _MIN_PART_OF_PROMISE * (promised or 0.0))
    told = f"{length:.2f}" + (f", {promised:.2f} promised" if promised else "")
    if length < wanted:
        raise _C.InternalError(
            f"[doctor] acceptance length: expected at least {wanted:.2f}, got {told} (1: nothing is "
            "accepted). The text is right, but this draft does not help: is it for this model?"
        )
    text = f"acceptance length {told}; greedy tokens equal plain decoding"
    if promised is None and length < _MIN_PART_OF_PROMISE * _usual_length(draft):
        return Remark("WARNING", f"{text}; its config promises nothing (acceptance_length), the "
                      f"published draft with blocks of {_USUAL_NUM_DRAFTS + 1} has {_USUAL_LENGTH} or more: "
                      "is it for this model?")
    return text


def _open(model: str, draft: Path, args: argparse.Namespace, device: str) -> Any:
    from ..session import Session

    longest = _C.ModelConfig.from_directory(model).max_position_embeddings
    return Session(
        model, draft=draft, device=device, num_threads=args.threads, pin_threads=not args.no_pin,
        activations=args.activations,
        use_mmap=False if args.no_mmap else None, max_context=min(_MAX_CONTEXT, longest),
    )


def _prompts(session: Any) -> list[list[int]]:
    """A prompt per category, at most half of the context; without a tokenizer, ids spread over the vocabulary."""
    if not session.has_tokenizer:
        vocab_size = session.config.vocab_size
        return [[(7919 * i + 11) % vocab_size for i in range(_NUM_PROMPT_TOKENS)]]
    prompts = read_prompts([DEFAULT_FILE], limit=1)
    longest = session.max_context // 2
    return [session.encode(_text(prompt.content))[:longest] for prompt in prompts]


def _text(content: Any) -> str:
    return content if isinstance(content, str) else content[-1]["content"]


def _usual_length(draft: Path) -> float:
    num_drafts = _C.DraftConfig.from_directory(str(draft)).block_size - 1
    return 1 + (_USUAL_LENGTH - 1) * min(num_drafts / _USUAL_NUM_DRAFTS, 1)


def _promised_length(draft: Path) -> float | None:
    config = json.loads((draft / "config.json").read_text(encoding="utf-8"))
    value = config.get("acceptance_length")
    return float(value) if isinstance(value, (int, float)) and value >= 1 else None
