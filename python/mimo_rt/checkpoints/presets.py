"""Configs of the tiny models: every feature of the family is on in one preset and off in another.

Hidden size, chunk rows and expert width are not multiples of 128 unless the note says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import _C

_OPTIONS: dict[str, Any] = {
    "linear_format": "fp8",
    "expert_format": "mxfp4",
    "num_mtp_layers": 0,
    "max_shard_bytes": None,
    "tokenizer": True,
    "zero_router": False,
    "clear_routing": True,
}

_COMMON: dict[str, Any] = {
    "architectures": ["MiMoV2ForCausalLM"],
    "model_type": "mimo_v2",
    "attention_projection_layout": "fused_qkv",
    "hidden_size": 160,
    "num_hidden_layers": 5,
    "hybrid_layer_pattern": [0, 1, 1, 0, 1],
    "moe_layer_freq": [0, 1, 1, 1, 1],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
    "v_head_dim": 32,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 48,
    "swa_v_head_dim": 32,
    "sliding_window": 8,
    "sliding_window_size": 8,
    "attention_chunk_size": 8,
    "hybrid_block_size": None,
    "add_swa_attention_sink_bias": True,
    "add_full_attention_sink_bias": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attention_value_scale": 0.612,
    "partial_rotary_factor": 0.334,
    "rope_theta": 10000000,
    "swa_rope_theta": 10000,
    "rope_scaling": None,
    "layernorm_epsilon": 1e-5,
    "hidden_act": "silu",
    "intermediate_size": 208,
    "moe_intermediate_size": 96,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": None,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": None,
    "vocab_size": 515,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
    "initializer_range": 0.02,
    "eos_token_id": 258,
    "pad_token_id": 256,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}

_FLASH: dict[str, Any] = {
    "architectures": ["MiMoV2FlashForCausalLM"],
    "model_type": "mimo_v2_flash",
    "attention_projection_layout": "split",
    "attention_value_scale": 0.707,
    "rope_theta": 5000000,
}

PRESETS: dict[str, dict[str, Any]] = {
    # The form of MiMo-V2.5-Pro-FP4; 176 qkv rows per chunk need two scale rows.
    "pro_fp4": {},
    # The same with widths that the CUDA engine takes, too: multiples of 32.
    "multiples_of_32": {"intermediate_size": 192},
    # Window layers with twice the kv heads of full layers, in as many chunks (V2.5 omni).
    "four_chunks": {
        "num_attention_heads": 8,
        "swa_num_attention_heads": 8,
        "num_key_value_heads": 4,
        "swa_num_key_value_heads": 8,
        "expert_format": "fp8",
        "num_mtp_layers": 2,
    },
    # One chunk (multi-query attention), shards, a BF16 router, a sink on every layer.
    "one_chunk_sharded": {
        "num_key_value_heads": 1,
        "swa_num_key_value_heads": 2,
        "add_full_attention_sink_bias": True,
        "moe_router_dtype": "bfloat16",
        "max_shard_bytes": 200_000,
        "num_mtp_layers": 1,
    },
    # The form of MiMo-V2-Flash: split q/k/v, FP8 experts; k_proj's scale grid restarts per head.
    "flash_fp8": {
        **_FLASH,
        "head_dim": 192,
        "v_head_dim": 128,
        "swa_head_dim": 192,
        "swa_v_head_dim": 128,
        "swa_num_key_value_heads": 4,
        "expert_format": "fp8",
    },
    "flash_bf16": {
        **_FLASH,
        "swa_num_key_value_heads": 4,
        "linear_format": "bf16",
        "expert_format": "bf16",
    },
    "fused_bf16": {
        "linear_format": "bf16",
        "expert_format": "bf16",
        "num_key_value_heads": 4,
        "swa_num_key_value_heads": 4,
    },
    # The released window; tests of rings want more than 128 tokens.
    "window_128": {
        "num_hidden_layers": 3,
        "hybrid_layer_pattern": [0, 1, 1],
        "moe_layer_freq": [0, 1, 1],
        "sliding_window": 128,
        "sliding_window_size": 128,
        "attention_chunk_size": 128,
    },
    # A plain transformer: full attention, no sinks, whole-head rotary, tied, all experts alike.
    "plain_attention": {
        "hybrid_layer_pattern": [0] * 5,
        "moe_layer_freq": [1] * 5,
        "add_swa_attention_sink_bias": False,
        "partial_rotary_factor": 1.0,
        "attention_value_scale": 1.0,
        "tie_word_embeddings": True,
        "n_routed_experts": 4,
        "num_experts_per_tok": 4,
        "routed_scaling_factor": 4.0,
        "zero_router": True,
    },
    "all_window": {"hybrid_layer_pattern": [1] * 5, "sliding_window": 3, "sliding_window_size": 3},
    "all_dense": {"moe_layer_freq": [0] * 5},
    # Unnormalised routing, odd counts everywhere; too few ids for the byte tokenizer.
    "odd_sizes": {
        "hidden_size": 96,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "swa_num_attention_heads": 6,
        "swa_num_key_value_heads": 3,
        "head_dim": 36,
        "v_head_dim": 24,
        "swa_head_dim": 36,
        "swa_v_head_dim": 24,
        "intermediate_size": 72,
        "moe_intermediate_size": 32,
        "n_routed_experts": 7,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "routed_scaling_factor": 0.75,
        "vocab_size": 101,
        "layernorm_epsilon": 1e-6,
        "eos_token_id": 100,
        "pad_token_id": 0,
    },
    # Several whole 128-blocks along every axis, many experts, the released head sizes.
    "wide": {
        "hidden_size": 384,
        "num_hidden_layers": 4,
        "hybrid_layer_pattern": [0, 1, 1, 0],
        "moe_layer_freq": [0, 1, 1, 1],
        "num_attention_heads": 8,
        "swa_num_attention_heads": 8,
        "head_dim": 192,
        "v_head_dim": 128,
        "swa_head_dim": 192,
        "swa_v_head_dim": 128,
        "intermediate_size": 512,
        "moe_intermediate_size": 256,
        "n_routed_experts": 16,
        "num_experts_per_tok": 4,
        "sliding_window": 16,
        "sliding_window_size": 16,
        "vocab_size": 1031,
    },
}


def tiny_config(preset: str, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config.json of a preset with ``overrides``, and the options that are not part of it."""
    if preset not in PRESETS:
        raise _C.InvalidArgumentError(
            f"[write_tiny_checkpoint] preset: expected one of {sorted(PRESETS)}, got '{preset}'."
        )
    known = {*_COMMON, *_OPTIONS, "moe_router_dtype"}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise _C.InvalidArgumentError(
            f"[write_tiny_checkpoint] unknown fields {unknown}: expected names from config.json."
        )
    merged = {**_COMMON, **_OPTIONS, **PRESETS[preset], **overrides}
    if "sliding_window" in overrides:  # checkpoints repeat the width under two other names
        for key in ("sliding_window_size", "attention_chunk_size"):
            merged[key] = overrides.get(key, overrides["sliding_window"])
    options = {key: merged.pop(key) for key in _OPTIONS}
    for key in ("hybrid_layer_pattern", "moe_layer_freq"):
        if len(merged[key]) != merged["num_hidden_layers"]:
            raise _C.InvalidArgumentError(
                f"[write_tiny_checkpoint] {key}: expected "
                f"{merged['num_hidden_layers']} entries, got {len(merged[key])}."
            )
    merged |= quantization_fields(merged, options["linear_format"], options["expert_format"])
    return merged, options


def quantization_fields(
    config: Mapping[str, Any], linear_format: str, expert_format: str
) -> dict[str, Any]:
    """``{"quantization_config": …}`` of config.json, or nothing for a plain BF16 checkpoint."""
    if (linear_format, expert_format) == ("bf16", "bf16"):
        return {}
    if linear_format != "fp8" or expert_format not in ("fp8", "mxfp4"):
        raise _C.InvalidArgumentError(
            "[checkpoints] formats (linear, expert): expected (fp8, mxfp4), (fp8, fp8) "
            f"or (bf16, bf16), got ({linear_format}, {expert_format})."
        )
    modules = [f"model.layers.{i}.self_attn.o_proj" for i in range(config["num_hidden_layers"])]
    fields: dict[str, Any] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "ignored_layers": [*modules, "model.decoder.self_attn.o_proj"],
    }
    if expert_format == "mxfp4":
        fields |= {"store_dtype": "mxfp4", "mxfp4_block_size": 32}
    return {"quantization_config": fields}
