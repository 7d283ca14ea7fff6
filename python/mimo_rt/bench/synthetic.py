"""The model that benchmarks make in memory, and a random draft for it."""

from __future__ import annotations

from typing import Any

from ..checkpoints.draft_layout import DraftShape, default_target_layer_ids, draft_config
from ..checkpoints.presets import quantization_fields


def synthetic_config(num_layers: int = 16) -> dict[str, Any]:
    """config.json of the benchmark model: MiMo-V2.5-Pro-FP4 with a third of its width."""
    # One full layer at each end and every sixth; the rest see 128 keys. Layer 0 is dense.
    is_window = [0 if i == 0 or (i + 1) % 6 == 0 else 1 for i in range(num_layers)]
    heads = {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 192,
             "v_head_dim": 128}
    config: dict[str, Any] = {
        "architectures": ["MiMoV2ForCausalLM"],
        "model_type": "mimo_v2",
        "attention_projection_layout": "fused_qkv",
        "hidden_size": 2048,
        "num_hidden_layers": num_layers,
        "hybrid_layer_pattern": is_window,
        "moe_layer_freq": [0, *[1] * (num_layers - 1)],
        **heads,
        **{f"swa_{name}": value for name, value in heads.items()},
        "sliding_window": 128,
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "attention_bias": False,
        "attention_value_scale": 0.612,
        "partial_rotary_factor": 0.334,
        "rope_theta": 10000000,
        "swa_rope_theta": 10000,
        "layernorm_epsilon": 1e-5,
        "hidden_act": "silu",
        "intermediate_size": 8192,
        "moe_intermediate_size": 1024,
        "n_routed_experts": 64,
        "num_experts_per_tok": 4,
        "n_shared_experts": None,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": None,
        "vocab_size": 32768,
        "tie_word_embeddings": False,
        "max_position_embeddings": 1 << 20,
        "eos_token_id": 0,
        "torch_dtype": "bfloat16",
    }
    return config | quantization_fields(config, "fp8", "mxfp4")


def synthetic_draft_config(config: dict[str, Any], block_size: int = 8) -> dict[str, Any]:
    """dflash/config.json of a draft for `synthetic_config`: two layers, half of the heads."""
    num_layers = config["num_hidden_layers"]
    ids = default_target_layer_ids(num_layers, min(3, num_layers))
    return draft_config(
        DraftShape(
            hidden_size=config["hidden_size"],
            intermediate_size=config["moe_intermediate_size"] * 2,
            num_layers=2,
            num_q_heads=8,
            num_kv_heads=2,
            qk_head_dim=128,
            v_head_dim=128,
            rotary_dim=64,
            target_layer_ids=tuple(sorted({min(i, num_layers - 1) for i in ids})),
            mask_token_id=config["vocab_size"] - 1,
            num_target_layers=num_layers,
            vocab_size=config["vocab_size"],
            block_size=block_size,
        )
    )
