"""Small random DFlash drafts for tiny models, in the published form, for tests and trials."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import _C
from .draft_layout import (
    FILE_STEM,
    DraftShape,
    decode_vocab_ids,
    draft_config,
    draft_specs,
    encode_vocab_ids,
)
from .formats import encode_bf16
from .writer import CheckpointWriter, TensorSpec, atomic_directory, encode_header, write_json

STYLES = ("mimo", "qwen3")
MASK_FORMATS = ("safetensors", "pt", "tensor")
# What joins the residual stream is smaller.
RESIDUAL_GAIN = 0.5


def write_tiny_draft(
    model_dir: Path | str,
    *,
    seed: int = 0,
    style: str = "mimo",
    mask_format: str = "safetensors",
    max_shard_bytes: int = 100_000,
    vocab_ids: Sequence[int] = (),
    overwrite: bool = False,
    **overrides: Any,
) -> Path:
    """Write a random draft for the model of :func:`write_tiny_checkpoint` to ``model_dir/dflash``.

    It drafts no better than chance: it shows that drafting changes no text, not that it pays.

    Args:
        model_dir: a model's directory with config.json.
        seed: equal seeds and options give equal files.
        style: "mimo" (sinks, value scale, half-rotary, windows in every layer) or "qwen3" (none of
            these).
        mask_format: where the mask embedding goes: "safetensors" (a file of its own), "tensor"
            (one of the draft's tensors) or "pt" (as published; needs torch).
        max_shard_bytes: start a new file when the current one would grow beyond this.
        vocab_ids: ascending tokens that the draft can propose; none: all, or a random choice of
            ``draft_vocab_size`` when that is given.
        overwrite: replace the draft if there is one.
        overrides: fields of :class:`DraftShape`, such as ``block_size`` or ``target_layer_ids``.

    Raises:
        InvalidArgumentError: unknown style, format or field, or sizes that do not fit each other.
    """
    _check_choice("style", style, STYLES)
    _check_choice("mask_format", mask_format, MASK_FORMATS)
    model = json.loads((Path(model_dir) / "config.json").read_text(encoding="utf-8"))
    if len(vocab_ids):
        overrides = overrides | {"draft_vocab_size": len(vocab_ids)}
    shape = _tiny_shape(model, style, overrides)
    d2t = _vocabulary(shape, vocab_ids, seed)
    specs = draft_specs(shape)
    if mask_format == "tensor":
        specs["mask_embedding"] = TensorSpec("BF16", (shape.hidden_size,))
    rng = np.random.default_rng(seed)
    directory = Path(model_dir) / "dflash"
    with atomic_directory(directory, overwrite=overwrite) as partial:
        config = draft_config(shape) if style == "mimo" else _qwen3_config(shape)
        write_json(partial / "config.json", config)
        with CheckpointWriter(
            partial, specs, max_shard_bytes=max_shard_bytes, stem=FILE_STEM
        ) as writer:
            for name, spec in specs.items():
                is_weight = name != "d2t"
                writer.write(name, _random_tensor(rng, name, spec.shape) if is_weight else d2t)
        if mask_format != "tensor":
            mask = _random_tensor(rng, "mask_embedding", (shape.hidden_size,))
            _write_mask(partial, mask_format, shape.mask_token_id, mask)
    return directory


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise _C.InvalidArgumentError(
            f"[write_tiny_draft] {name}: expected {' or '.join(choices)}, got '{value}'."
        )


def _tiny_shape(model: dict[str, Any], style: str, overrides: dict[str, Any]) -> DraftShape:
    is_mimo = style == "mimo"
    num_target_layers = model["num_hidden_layers"]
    is_for_cuda = model["intermediate_size"] % 32 == 0  # that engine takes nothing else
    fields: dict[str, Any] = {
        "hidden_size": model["hidden_size"],
        "intermediate_size": model["hidden_size"] + (32 if is_for_cuda else 24),  # or no multiple of 16
        "num_layers": 2,
        "num_q_heads": 4,
        "num_kv_heads": 2,
        "qk_head_dim": 32,
        "v_head_dim": 16 if is_mimo else 32,
        "rotary_dim": 16 if is_mimo else 32,
        # The first and the last are the corner cases of capturing.
        "target_layer_ids": tuple(sorted({0, num_target_layers // 2, num_target_layers - 1})),
        "mask_token_id": model["vocab_size"] - 1,
        "num_target_layers": num_target_layers,
        "vocab_size": model["vocab_size"],
        "window_tokens": 24 if is_mimo else 0,
        "value_scale": 0.612 if is_mimo else 1.0,
        "has_sink": is_mimo,
    }
    try:
        return DraftShape(**(fields | overrides))
    except TypeError as error:
        raise _C.InvalidArgumentError(f"[write_tiny_draft] {error}.") from None


def _qwen3_config(shape: DraftShape) -> dict[str, Any]:
    """config.json without MiMo's fields; what they would say must be the default."""
    config = draft_config(shape)
    inner = config["dflash_config"]
    is_plain = not shape.has_sink and shape.value_scale == 1.0
    is_plain &= shape.rotary_dim == shape.qk_head_dim == shape.v_head_dim
    if not is_plain:
        raise _C.InvalidArgumentError(
            "[write_tiny_draft] style 'qwen3': expected neither sinks nor a value scale, and heads "
            f"of one size that rotate as a whole, got {shape}. Use style 'mimo'."
        )
    for key in ("v_head_dim", "partial_rotary_factor", "num_target_layers"):
        del config[key]
    layer_type = "sliding_attention" if shape.window_tokens else "full_attention"
    return config | {
        "use_sliding_window": shape.window_tokens > 0,
        "layer_types": [layer_type] * shape.num_layers,
        "is_causal": False,
        "dflash_config": {k: inner[k] for k in ("target_layer_ids", "mask_token_id", "block_size")},
    }


def _vocabulary(shape: DraftShape, vocab_ids: Sequence[int], seed: int) -> np.ndarray:
    """``d2t`` of the ids; empty for all of the vocabulary."""
    ids = np.array(vocab_ids, dtype=np.int64)
    if not len(ids) and shape.draft_vocab_size:
        choice = np.random.default_rng(seed).permutation(shape.vocab_size)
        ids = np.sort(choice[: shape.draft_vocab_size])
    d2t = encode_vocab_ids(ids)
    if len(d2t):
        decode_vocab_ids(d2t, shape.vocab_size)
    return d2t


def _random_tensor(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Norms near 1; projections that keep inputs of order one at order one."""
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) == 2:
        is_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        values *= np.float32((RESIDUAL_GAIN if is_residual else 1.2) / np.sqrt(shape[1]))
    elif "norm" in name:
        values = values * np.float32(0.1) + np.float32(1)
    return encode_bf16(values)


def _write_mask(directory: Path, mask_format: str, token_id: int, mask: np.ndarray) -> None:
    if mask_format == "safetensors":
        header, _ = encode_header({"embedding": TensorSpec("BF16", mask.shape)})
        (directory / "mask_embedding.safetensors").write_bytes(header + mask.tobytes())
        return
    try:
        import torch
    except ImportError:
        raise _C.InvalidArgumentError(
            "[write_tiny_draft] mask_format 'pt': expected torch to be installed. "
            "Use mask_format='safetensors'."
        ) from None
    embedding = torch.from_numpy(mask.view(np.int16).copy()).view(torch.bfloat16)
    torch.save({"mask_token_id": token_id, "embedding": embedding}, directory / "mask_embedding.pt")
