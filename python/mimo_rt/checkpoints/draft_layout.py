"""The ``dflash/`` folder of a draft: config.json and tensors, in the published form.

Source: the draft of MiMo-V2.5-Pro-FP4-DFlash (config keys, tensor names without a prefix, weights in
BF16, file names ``dflash_draft_model-*.safetensors`` found through their index).

A draft may know part of the vocabulary only. It then has ``draft_vocab_size`` in config.json and the
tensor ``d2t``: draft id i is the target's id i + d2t[i], and its head is that row of the target's
lm_head. Both names, and d2t as differences, are those of EAGLE-3 drafts and of vLLM's speculators.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _C
from .writer import TensorSpec

FILE_STEM = "dflash_draft_model"
MAX_SHARD_BYTES = 16 << 20


@dataclass(frozen=True)
class DraftShape:
    """What config.json of a draft says, under the names of this library.

    ``window_tokens``: a query sees keys less than this far away; 0: all of them.
    ``draft_vocab_size``: ids that the draft can propose; 0: all of the vocabulary.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    qk_head_dim: int
    v_head_dim: int
    rotary_dim: int
    target_layer_ids: tuple[int, ...]
    mask_token_id: int
    num_target_layers: int
    vocab_size: int
    block_size: int = 8
    window_tokens: int = 1024
    value_scale: float = 1.0
    has_sink: bool = True
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 262144
    loss_decay_gamma: float = 7.0
    num_anchors: int = 0
    draft_vocab_size: int = 0

    def __post_init__(self) -> None:
        _check("block_size", 2 <= self.block_size <= 16, "2..16", self.block_size)
        ids = self.target_layer_ids
        _check("target_layer_ids", ids and len(set(ids)) == len(ids), "distinct ids", ids)
        is_inside = all(0 <= i < self.num_target_layers for i in ids)
        _check("target_layer_ids", is_inside, f"ids below {self.num_target_layers}", ids)
        is_multiple = self.num_kv_heads > 0 and self.num_q_heads % self.num_kv_heads == 0
        heads = f"a multiple of {self.num_kv_heads} kv heads"
        _check("num_q_heads", is_multiple, heads, self.num_q_heads)
        is_even = self.rotary_dim % 2 == 0 and 0 <= self.rotary_dim <= self.qk_head_dim
        _check("rotary_dim", is_even, f"an even number up to {self.qk_head_dim}", self.rotary_dim)
        for name in ("qk_head_dim", "v_head_dim"):
            value = getattr(self, name)
            _check(name, value > 0 and value % 16 == 0, "a multiple of 16", value)
        is_part = 0 <= self.draft_vocab_size <= self.vocab_size
        _check("draft_vocab_size", is_part, f"0..{self.vocab_size}", self.draft_vocab_size)

    @property
    def feature_size(self) -> int:
        """Elements of the features of one token: all captured layers."""
        return len(self.target_layer_ids) * self.hidden_size


def _check(name: str, is_good: object, expected: str, value: object) -> None:
    if not is_good:
        raise _C.InvalidArgumentError(f"[draft] {name}: expected {expected}, got {value}.")


def default_target_layer_ids(num_target_layers: int, count: int) -> tuple[int, ...]:
    """Evenly spread layers from the second to the fourth last, as the DFlash paper chooses them.

    Fewer than ``count`` where there are not so many.
    """
    last = max(num_target_layers - 4, 0)
    if count == 1:
        return (last + 1,)
    return tuple(dict.fromkeys(round(1 + i * last / (count - 1)) for i in range(count)))


def draft_config(shape: DraftShape) -> dict[str, Any]:
    """config.json in the MiMo dialect."""
    part = {"draft_vocab_size": shape.draft_vocab_size} if shape.draft_vocab_size else {}
    return {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_q_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.qk_head_dim,
        "v_head_dim": shape.v_head_dim,
        "partial_rotary_factor": _rotary_factor(shape),
        "rope_theta": shape.rope_theta,
        "block_size": shape.block_size,
        "num_target_layers": shape.num_target_layers,
        "vocab_size": shape.vocab_size,
        **part,
        "max_position_embeddings": shape.max_position_embeddings,
        "sliding_window": shape.window_tokens or None,
        "rms_norm_eps": shape.rms_norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "dflash_config": {
            "target_layer_ids": list(shape.target_layer_ids),
            "mask_token_id": shape.mask_token_id,
            "block_size": shape.block_size,
            "num_anchors": shape.num_anchors,
            "loss_decay_gamma": shape.loss_decay_gamma,
            "use_swa": shape.window_tokens > 0,
            "swa_window_size": shape.window_tokens or None,
            "attention_value_scale": shape.value_scale,
            "attention_sink_bias": shape.has_sink,
        },
    }


def _rotary_factor(shape: DraftShape) -> float:
    """The factor that a reader turns back by int(head_dim * factor)."""
    factor = shape.rotary_dim / shape.qk_head_dim
    if int(shape.qk_head_dim * factor) != shape.rotary_dim:
        factor = math.nextafter(factor, 2.0)
    return factor


def draft_shape(config: Mapping[str, Any]) -> DraftShape:
    """The inverse of :func:`draft_config`. KeyError for a missing field."""
    inner = config["dflash_config"]
    return DraftShape(
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_q_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        qk_head_dim=config["head_dim"],
        v_head_dim=config.get("v_head_dim", config["head_dim"]),
        rotary_dim=int(config["head_dim"] * config.get("partial_rotary_factor", 1.0)),
        target_layer_ids=tuple(inner["target_layer_ids"]),
        mask_token_id=inner["mask_token_id"],
        num_target_layers=config["num_target_layers"],
        vocab_size=config["vocab_size"],
        block_size=inner.get("block_size", config["block_size"]),
        window_tokens=inner["swa_window_size"] if inner.get("use_swa") else 0,
        value_scale=inner.get("attention_value_scale", 1.0),
        has_sink=inner.get("attention_sink_bias", False),
        rope_theta=float(config["rope_theta"]),
        rms_norm_eps=config["rms_norm_eps"],
        max_position_embeddings=config["max_position_embeddings"],
        loss_decay_gamma=inner.get("loss_decay_gamma", 7.0),
        num_anchors=inner.get("num_anchors", 0),
        draft_vocab_size=config.get("draft_vocab_size") or 0,
    )


def draft_specs(shape: DraftShape) -> dict[str, TensorSpec]:
    """Every tensor of the draft in file order; the mask embedding is a file of its own."""
    hidden = shape.hidden_size

    def bf16(*sizes: int) -> TensorSpec:
        return TensorSpec("BF16", sizes)

    specs = {"fc.weight": bf16(hidden, shape.feature_size), "hidden_norm.weight": bf16(hidden)}
    for layer_idx in range(shape.num_layers):
        prefix = f"layers.{layer_idx}"
        attn = f"{prefix}.self_attn"
        qk, width = shape.qk_head_dim, shape.intermediate_size
        specs |= {
            f"{prefix}.input_layernorm.weight": bf16(hidden),
            f"{attn}.q_proj.weight": bf16(shape.num_q_heads * qk, hidden),
            f"{attn}.k_proj.weight": bf16(shape.num_kv_heads * qk, hidden),
            f"{attn}.v_proj.weight": bf16(shape.num_kv_heads * shape.v_head_dim, hidden),
            f"{attn}.o_proj.weight": bf16(hidden, shape.num_q_heads * shape.v_head_dim),
            f"{attn}.q_norm.weight": bf16(qk),
            f"{attn}.k_norm.weight": bf16(qk),
        }
        if shape.has_sink:
            specs[f"{attn}.attention_sink_bias"] = bf16(shape.num_q_heads)
        specs |= {
            f"{prefix}.post_attention_layernorm.weight": bf16(hidden),
            f"{prefix}.mlp.gate_proj.weight": bf16(width, hidden),
            f"{prefix}.mlp.up_proj.weight": bf16(width, hidden),
            f"{prefix}.mlp.down_proj.weight": bf16(hidden, width),
        }
    specs["norm.weight"] = bf16(hidden)
    if shape.draft_vocab_size:
        specs["d2t"] = TensorSpec("I64", (shape.draft_vocab_size,))
    return specs


def encode_vocab_ids(vocab_ids: np.ndarray) -> np.ndarray:
    """``d2t`` of the target's ids that a draft can propose."""
    return vocab_ids.astype(np.int64) - np.arange(len(vocab_ids))


def decode_vocab_ids(d2t: np.ndarray, vocab_size: int) -> np.ndarray:
    """The ids that ``d2t`` stands for; InvalidArgumentError unless they ascend in the vocabulary."""
    ids = d2t.astype(np.int64) + np.arange(len(d2t))
    is_good = len(ids) and ids[0] >= 0 and ids[-1] < vocab_size and (ids[1:] > ids[:-1]).all()
    _check("d2t", is_good, f"ascending ids of 0..{vocab_size - 1}", ids.tolist()[:8])
    return ids
