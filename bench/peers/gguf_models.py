"""Which GGUF tensors and metadata a MiMo checkpoint becomes.

Two architectures of llama.cpp can hold one: ``mimo2`` in general, and ``llama`` for a checkpoint
that is a plain transformer in disguise (full attention, every expert active with weight one), whose
experts are then one dense MLP again: that is what llama.cpp runs fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from mimo_rt.checkpoints.layout import LayerShape, layer_shape
from stored import Linear, StoredCheckpoint

# A tensor is made when it is written: a model may be larger than the memory.
Tensor = tuple[str, Callable[[], "Linear | np.ndarray"]]
_MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


@dataclass(frozen=True)
class GgufModel:
    """Architecture, metadata below its name, and tensors in file order."""

    architecture: str
    metadata: dict[str, Any]
    tensors: list[Tensor]


def gguf_model(checkpoint: StoredCheckpoint, *, folds_value_scale: bool = False) -> GgufModel:
    """``llama`` where that is the same function, else ``mimo2``; ValueError where neither is.

    ``folds_value_scale``: multiply v's weights with the attention value scale, for engines that do
    not read it from the metadata.
    """
    config = checkpoint.config
    shapes = [layer_shape(config, i) for i in range(config["num_hidden_layers"])]
    metadata = _common_metadata(config, shapes)
    if is_plain_transformer(checkpoint, shapes):
        metadata |= {"rope.dimension_count": shapes[0].qk_head_dim,
                     "attention.head_count_kv": shapes[0].num_kv_heads}
        layers = [t for i, s in enumerate(shapes) for t in _llama_layer(checkpoint, i, s)]
        return GgufModel("llama", metadata, [*_tables(checkpoint, False), *layers])
    _check_mimo2(config, shapes)
    value_scale = float(config["attention_value_scale"])
    gain = value_scale if folds_value_scale else 1.0
    metadata |= {
        "rope.dimension_count": int(shapes[0].qk_head_dim * config["partial_rotary_factor"]),
        "rope.freq_base_swa": float(config["swa_rope_theta"]),
        "attention.head_count_kv": [shape.num_kv_heads for shape in shapes],
        "attention.sliding_window": config["sliding_window"],
        "attention.sliding_window_pattern": [shape.is_windowed for shape in shapes],
        "attention.value_scale": 1.0 if folds_value_scale else value_scale,
        "expert_count": config["n_routed_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_gating_func": 2,  # sigmoid
    }
    layers = [t for i, s in enumerate(shapes) for t in _mimo2_layer(checkpoint, i, s, gain)]
    return GgufModel("mimo2", metadata, [*_tables(checkpoint, True), *layers])


def is_plain_transformer(checkpoint: StoredCheckpoint, shapes: list[LayerShape]) -> bool:
    """Whether the checkpoint computes a llama-type model."""
    config = checkpoint.config
    if any(s.is_windowed or s.has_sink or not s.is_moe or s.qk_head_dim != s.v_head_dim
           for s in shapes):
        return False
    is_all_active = config["num_experts_per_tok"] == config["n_routed_experts"]
    has_unit_weights = (config["norm_topk_prob"]
                        and config.get("routed_scaling_factor") == config["n_routed_experts"])
    if not (is_all_active and has_unit_weights and config["partial_rotary_factor"] == 1.0
            and config["attention_value_scale"] == 1.0):
        return False
    return not any(checkpoint.plain(f"model.layers.{i}.mlp.gate.weight").any()
                   for i in range(len(shapes)))


def adjacent_rotary(weight: Linear, num_heads: int) -> Linear:
    """Rows in the order that the architecture ``llama`` rotates: partners next to each other."""
    num_rows = weight.data.shape[0]
    places = np.arange(num_rows).reshape(num_heads, 2, -1).swapaxes(1, 2).reshape(-1)
    return weight.rows(places)


def join(weights: list[Linear], axis: int) -> Linear:
    """Weights of one format side by side; MXFP4 blocks stay whole."""
    data = np.concatenate([weight.data for weight in weights], axis=axis)
    if weights[0].scale is None:
        return Linear(weights[0].kind, data)
    return Linear(weights[0].kind, data, np.concatenate([w.scale for w in weights], axis=axis))


def _common_metadata(config: dict[str, Any], shapes: list[LayerShape]) -> dict[str, Any]:
    return {
        "context_length": min(config["max_position_embeddings"], 8192),
        "embedding_length": config["hidden_size"],
        "block_count": len(shapes),
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": shapes[0].num_q_heads,
        "attention.key_length": shapes[0].qk_head_dim,
        "attention.value_length": shapes[0].v_head_dim,
        "attention.layer_norm_rms_epsilon": float(config["layernorm_epsilon"]),
        "rope.freq_base": float(config["rope_theta"]),
        "vocab_size": config["vocab_size"],
    }


def _check_mimo2(config: dict[str, Any], shapes: list[LayerShape]) -> None:
    heads = {(s.num_q_heads, s.qk_head_dim, s.v_head_dim) for s in shapes}
    if len(heads) > 1:
        raise ValueError(f"mimo2 in GGUF: expected one head geometry for all layers, got {heads}.")
    if not config["norm_topk_prob"] or config.get("routed_scaling_factor") not in (None, 1, 1.0):
        raise ValueError("mimo2 in GGUF: expected normalised routing weights and no scaling.")


def _tables(checkpoint: StoredCheckpoint, needs_output: bool) -> Iterator[Tensor]:
    yield "token_embd.weight", lambda: checkpoint.linear("model.embed_tokens")
    yield "output_norm.weight", lambda: checkpoint.plain("model.norm.weight")
    is_tied = checkpoint.config["tie_word_embeddings"]
    if needs_output or not is_tied:
        head = "model.embed_tokens" if is_tied else "lm_head"
        yield "output.weight", lambda: checkpoint.linear(head)


def _norms(checkpoint: StoredCheckpoint, index: int) -> Iterator[Tensor]:
    prefix, block = f"model.layers.{index}", f"blk.{index}"
    for name, ours in (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")):
        yield (f"{block}.{name}.weight",
               lambda ours=ours: checkpoint.plain(f"{prefix}.{ours}.weight"))


def _attention(
    checkpoint: StoredCheckpoint, index: int, shape: LayerShape, *,
    is_adjacent: bool = False, v_gain: float = 1.0,
) -> Iterator[Tensor]:
    prefix, block = f"model.layers.{index}.self_attn", f"blk.{index}"
    heads = {"q": shape.num_q_heads, "k": shape.num_kv_heads}

    def part(place: int, name: str) -> Linear:
        weight = checkpoint.qkv(prefix, shape)[place]
        if name == "v" and v_gain != 1.0:
            return Linear("fp8", weight.values() * np.float32(v_gain))
        return adjacent_rotary(weight, heads[name]) if is_adjacent and name in heads else weight

    for place, name in enumerate("qkv"):
        yield f"{block}.attn_{name}.weight", lambda place=place, name=name: part(place, name)
    yield f"{block}.attn_output.weight", lambda: checkpoint.linear(f"{prefix}.o_proj")
    if shape.has_sink:
        yield (f"{block}.attn_sinks.weight",
               lambda: checkpoint.plain(f"{prefix}.attention_sink_bias"))


def _experts(checkpoint: StoredCheckpoint, index: int, ours: str) -> list[Linear]:
    return [checkpoint.linear(f"model.layers.{index}.mlp.experts.{expert}.{ours}")
            for expert in range(checkpoint.config["n_routed_experts"])]


def _llama_layer(checkpoint: StoredCheckpoint, index: int, shape: LayerShape) -> Iterator[Tensor]:
    yield from _norms(checkpoint, index)
    yield from _attention(checkpoint, index, shape, is_adjacent=True)
    for name, ours in _MLP.items():
        axis = 1 if name == "down" else 0
        yield (f"blk.{index}.ffn_{name}.weight",
               lambda ours=ours, axis=axis: join(_experts(checkpoint, index, ours), axis))


def _mimo2_layer(
    checkpoint: StoredCheckpoint, index: int, shape: LayerShape, v_gain: float
) -> Iterator[Tensor]:
    prefix, block = f"model.layers.{index}.mlp", f"blk.{index}"
    yield from _norms(checkpoint, index)
    yield from _attention(checkpoint, index, shape, v_gain=v_gain)
    if not shape.is_moe:
        for name, ours in _MLP.items():
            yield (f"{block}.ffn_{name}.weight",
                   lambda ours=ours: checkpoint.linear(f"{prefix}.{ours}"))
        return
    yield f"{block}.ffn_gate_inp.weight", lambda: checkpoint.plain(f"{prefix}.gate.weight")
    yield (f"{block}.exp_probs_b.bias",
           lambda: checkpoint.plain(f"{prefix}.gate.e_score_correction_bias"))
    for name, ours in _MLP.items():
        yield f"{block}.ffn_{name}_exps.weight", lambda ours=ours: _stack(
            _experts(checkpoint, index, ours))


def _stack(weights: list[Linear]) -> Linear:
    """``[experts, rows, cols]``."""
    scale = None if weights[0].scale is None else np.stack([w.scale for w in weights])
    return Linear(weights[0].kind, np.stack([w.data for w in weights]), scale)
