"""Which tensors a MiMo config implies, and how a weight becomes the tensors on disk.

A config is the parsed ``config.json``; names and shapes are those of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _C
from .formats import (
    FP8_BLOCK,
    MXFP4_BLOCK,
    encode_bf16,
    encode_fp8_blocks,
    encode_mxfp4,
    fp8_scale_rows,
)
from .writer import CheckpointWriter, TensorSpec

Config = Mapping[str, Any]


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one decoder layer."""

    is_moe: bool
    is_windowed: bool
    has_sink: bool
    num_q_heads: int
    num_kv_heads: int
    qk_head_dim: int
    v_head_dim: int

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        return (
            self.num_q_heads * self.qk_head_dim,
            self.num_kv_heads * self.qk_head_dim,
            self.num_kv_heads * self.v_head_dim,
        )


def layer_shape(config: Config, layer_idx: int) -> LayerShape:
    is_windowed = bool(config["hybrid_layer_pattern"][layer_idx])
    prefix = "swa_" if is_windowed else ""
    sink_key = "add_swa_attention_sink_bias" if is_windowed else "add_full_attention_sink_bias"
    return LayerShape(
        is_moe=bool(config["moe_layer_freq"][layer_idx]),
        is_windowed=is_windowed,
        has_sink=bool(config[sink_key]),
        num_q_heads=config[prefix + "num_attention_heads"],
        num_kv_heads=config[prefix + "num_key_value_heads"],
        qk_head_dim=config[prefix + "head_dim"],
        v_head_dim=config[prefix + "v_head_dim"],
    )


def qkv_chunks(config: Config) -> int:
    """Chunks of the fused qkv tensor."""
    return int(config["num_key_value_heads"])


def is_fused(config: Config) -> bool:
    return config.get("attention_projection_layout", "split") == "fused_qkv"


def format_of(config: Config, module: str) -> str:
    """How the linear ``module`` is stored: "bf16", "fp8" or "mxfp4"."""
    quantization = config.get("quantization_config")
    if not quantization or module in quantization["ignored_layers"]:
        return "bf16"
    if module.startswith("model.mtp.") and module.endswith(".o_proj"):
        return "bf16"  # listed as model.decoder.self_attn.o_proj
    if ".mlp.experts." in module and quantization.get("store_dtype") == "mxfp4":
        return "mxfp4"
    return "fp8"


def linear_specs(
    config: Config, module: str, rows: int, cols: int, chunks: int = 1
) -> dict[str, TensorSpec]:
    """Tensors that hold the ``[rows, cols]`` weight of a linear module."""
    weight = f"{module}.weight"
    match format_of(config, module):
        case "bf16":
            return {weight: TensorSpec("BF16", (rows, cols))}
        case "fp8":
            grid = (fp8_scale_rows(rows, chunks), -(-cols // FP8_BLOCK))
            return {
                weight: TensorSpec("F8_E4M3", (rows, cols)),
                f"{module}.weight_scale_inv": TensorSpec("F32", grid),
            }
        case _:
            if cols % MXFP4_BLOCK:
                raise _C.InvalidArgumentError(
                    f"[checkpoints] '{module}': MXFP4 needs columns in multiples "
                    f"of {MXFP4_BLOCK}, got {cols}."
                )
            return {
                weight: TensorSpec("U8", (rows, cols // 2)),
                f"{module}.weight_scale": TensorSpec("U8", (rows, cols // MXFP4_BLOCK)),
            }


def write_linear(
    writer: CheckpointWriter, config: Config, module: str, weight: np.ndarray, chunks: int = 1
) -> None:
    """Encode a float32 weight in the format of its module and write its tensors."""
    match format_of(config, module):
        case "bf16":
            writer.write(f"{module}.weight", encode_bf16(weight))
        case "fp8":
            codes, scale = encode_fp8_blocks(weight, chunks)
            writer.write(f"{module}.weight", codes)
            writer.write(f"{module}.weight_scale_inv", scale)
        case _:
            codes, scale = encode_mxfp4(weight)
            writer.write(f"{module}.weight", codes)
            writer.write(f"{module}.weight_scale", scale)


def fuse_qkv(q: np.ndarray, k: np.ndarray, v: np.ndarray, chunks: int) -> np.ndarray:
    """Interleave q, k and v as ``chunks`` runs of [Q_t | K_t | V_t]."""
    parts = [part.reshape(chunks, -1, part.shape[1]) for part in (q, k, v)]
    return np.concatenate(parts, axis=1).reshape(-1, q.shape[1])


def qkv_modules(config: Config, prefix: str, shape: LayerShape) -> list[tuple[str, int, int]]:
    """(module, rows, runs of rows with a scale grid of their own) of the attention ``prefix``.

    In the split layout the grid of k_proj restarts at every head on full layers, as released.
    """
    q_rows, k_rows, v_rows = shape.qkv_rows
    if is_fused(config):
        return [(f"{prefix}.qkv_proj", q_rows + k_rows + v_rows, qkv_chunks(config))]
    return [
        (f"{prefix}.q_proj", q_rows, 1),
        (f"{prefix}.k_proj", k_rows, 1 if shape.is_windowed else shape.num_kv_heads),
        (f"{prefix}.v_proj", v_rows, 1),
    ]


def write_qkv(
    writer: CheckpointWriter,
    config: Config,
    prefix: str,
    shape: LayerShape,
    qkv: Sequence[np.ndarray],
) -> None:
    """Write q, k and v of the attention ``prefix`` in the layout of the config."""
    weights = [fuse_qkv(*qkv, qkv_chunks(config))] if is_fused(config) else qkv
    modules = qkv_modules(config, prefix, shape)
    for (module, _, chunks), weight in zip(modules, weights, strict=True):
        write_linear(writer, config, module, weight, chunks)


def _qkv_specs(config: Config, prefix: str, shape: LayerShape) -> dict[str, TensorSpec]:
    hidden, chunks = config["hidden_size"], qkv_chunks(config)
    if shape.num_kv_heads % chunks or shape.num_q_heads % shape.num_kv_heads:
        raise _C.InvalidArgumentError(
            f"[checkpoints] '{prefix}': {shape.num_q_heads} q heads and {shape.num_kv_heads} "
            f"kv heads do not divide into {chunks} chunks (num_key_value_heads of the config)."
        )
    specs: dict[str, TensorSpec] = {}
    for module, rows, scale_chunks in qkv_modules(config, prefix, shape):
        specs |= linear_specs(config, module, rows, hidden, scale_chunks)
    return specs


def _attention_specs(config: Config, prefix: str, shape: LayerShape) -> dict[str, TensorSpec]:
    specs = _qkv_specs(config, prefix, shape)
    cols = shape.num_q_heads * shape.v_head_dim
    specs |= linear_specs(config, f"{prefix}.o_proj", config["hidden_size"], cols)
    if shape.has_sink:
        specs[f"{prefix}.attention_sink_bias"] = TensorSpec("BF16", (shape.num_q_heads,))
    return specs


def _mlp_specs(config: Config, prefix: str, width: int) -> dict[str, TensorSpec]:
    hidden = config["hidden_size"]
    specs: dict[str, TensorSpec] = {}
    for name in ("gate_proj", "up_proj"):
        specs |= linear_specs(config, f"{prefix}.{name}", width, hidden)
    return specs | linear_specs(config, f"{prefix}.down_proj", hidden, width)


def router_dtype(config: Config) -> str:
    return "BF16" if config.get("moe_router_dtype") == "bfloat16" else "F32"


def _moe_specs(config: Config, prefix: str) -> dict[str, TensorSpec]:
    num_experts = config["n_routed_experts"]
    router_shape = (num_experts, config["hidden_size"])
    specs = {
        f"{prefix}.gate.weight": TensorSpec(router_dtype(config), router_shape),
        f"{prefix}.gate.e_score_correction_bias": TensorSpec("F32", (num_experts,)),
    }
    for expert in range(num_experts):
        width = config["moe_intermediate_size"]
        specs |= _mlp_specs(config, f"{prefix}.experts.{expert}", width)
    return specs


def _mtp_specs(config: Config, mtp_idx: int) -> dict[str, TensorSpec]:
    """One multi-token-prediction layer: a window layer with its own norms. Decoders skip it."""
    hidden, prefix = config["hidden_size"], f"model.mtp.layers.{mtp_idx}"
    norms = ("enorm", "hnorm", "input_layernorm", "pre_mlp_layernorm", "final_layernorm")
    specs = {f"{prefix}.{norm}.weight": TensorSpec("BF16", (hidden,)) for norm in norms}
    specs[f"{prefix}.eh_proj.weight"] = TensorSpec("BF16", (hidden, 2 * hidden))
    shape = layer_shape({**config, "hybrid_layer_pattern": [1], "moe_layer_freq": [0]}, 0)
    specs |= _attention_specs(config, f"{prefix}.self_attn", shape)
    return specs | _mlp_specs(config, f"{prefix}.mlp", config["intermediate_size"])


def tensor_specs(config: Config, *, num_mtp_layers: int = 0) -> dict[str, TensorSpec]:
    """Every tensor of the checkpoint, in file order."""
    hidden = config["hidden_size"]
    table = TensorSpec("BF16", (config["vocab_size"], hidden))
    norm = TensorSpec("BF16", (hidden,))
    specs = {"model.embed_tokens.weight": table}
    for layer_idx in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer_idx}"
        shape = layer_shape(config, layer_idx)
        specs[f"{prefix}.input_layernorm.weight"] = norm
        specs |= _attention_specs(config, f"{prefix}.self_attn", shape)
        specs[f"{prefix}.post_attention_layernorm.weight"] = norm
        if shape.is_moe:
            specs |= _moe_specs(config, f"{prefix}.mlp")
        else:
            specs |= _mlp_specs(config, f"{prefix}.mlp", config["intermediate_size"])
    for mtp_idx in range(num_mtp_layers):
        specs |= _mtp_specs(config, mtp_idx)
    specs["model.norm.weight"] = norm
    if not config["tie_word_embeddings"]:
        specs["lm_head.weight"] = table
    return specs
