"""The models that benchmarks make in memory, and random drafts for them."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from typing import Any

from .. import _C
from ..checkpoints.draft_layout import DraftShape, default_target_layer_ids, draft_config
from ..checkpoints.presets import quantization_fields
from ..loading import engine_options


SLICE_LAYERS, SLICE_EXPERTS = 70, 384
_FULL_LAYERS = (0, 7, 15, 23, 31, 39, 47, 55, 62, 69)  # of MiMo-V2.5-Pro; the others see 128 keys
_FEATURE_LAYERS = (0, 15, 31, 47, 69)  # what its draft sees of it


def _mimo_config(is_window: list[int], num_kv_heads: int, **sizes: int) -> dict[str, Any]:
    """config.json of a model of MiMo-V2.5-Pro-FP4's form: layer 0 is dense, all others have experts."""
    heads = {"num_attention_heads": 16, "num_key_value_heads": num_kv_heads, "head_dim": 192,
             "v_head_dim": 128}
    config: dict[str, Any] = {
        "architectures": ["MiMoV2ForCausalLM"],
        "model_type": "mimo_v2",
        "attention_projection_layout": "fused_qkv",
        "num_hidden_layers": len(is_window),
        "hybrid_layer_pattern": is_window,
        "moe_layer_freq": [0, *[1] * (len(is_window) - 1)],
        **sizes,
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
        "n_shared_experts": None,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": None,
        "tie_word_embeddings": False,
        "max_position_embeddings": 1 << 20,
        "eos_token_id": 0,
        "torch_dtype": "bfloat16",
    }
    return config | quantization_fields(config, "fp8", "mxfp4")


def synthetic_config(num_layers: int = 16) -> dict[str, Any]:
    """config.json of the benchmark model: MiMo-V2.5-Pro-FP4 with a third of its width."""
    # One full layer at each end and every sixth.
    is_window = [0 if i == 0 or (i + 1) % 6 == 0 else 1 for i in range(num_layers)]
    return _mimo_config(is_window, num_kv_heads=4, hidden_size=2048, intermediate_size=8192,
                        moe_intermediate_size=1024, n_routed_experts=64, num_experts_per_tok=4,
                        vocab_size=32768)


def slice_config(num_layers: int = SLICE_LAYERS, num_experts: int = SLICE_EXPERTS) -> dict[str, Any]:
    """config.json of what one of eight ranks holds of MiMo-V2.5-Pro-FP4, as a model of its own.

    An eighth of the heads, of the width of every expert and of the vocabulary: the bytes of 48 whole experts per layer.
    """
    is_window = [0 if i in _FULL_LAYERS else 1 for i in range(num_layers)]
    return _mimo_config(is_window, num_kv_heads=1, hidden_size=6144, intermediate_size=2048,
                        moe_intermediate_size=256, n_routed_experts=num_experts,
                        num_experts_per_tok=8, vocab_size=19072)


def slice_draft_config(config: dict[str, Any]) -> dict[str, Any]:
    """dflash/config.json of the same rank's draft for `slice_config`: an eighth of heads and widths, all of fc."""
    last = config["num_hidden_layers"] - 1
    ids = [i * last // (SLICE_LAYERS - 1) for i in _FEATURE_LAYERS]
    return draft_config(
        DraftShape(
            hidden_size=config["hidden_size"],
            intermediate_size=2048,
            num_layers=5,
            num_q_heads=16,
            num_kv_heads=1,
            qk_head_dim=128,
            v_head_dim=128,
            rotary_dim=64,
            target_layer_ids=tuple(dict.fromkeys(ids)),
            mask_token_id=config["vocab_size"] - 1,
            num_target_layers=last + 1,
            vocab_size=config["vocab_size"],
            value_scale=0.612,
        )
    )


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


def synthetic_engine(
    config: dict[str, Any],
    options: dict[str, Any],
    draft: dict[str, Any] | None = None,
    seed: int = 0,
) -> Any:
    """An engine with random weights for a config.json, and for that of a draft."""
    target = _C.ModelConfig.from_json(json.dumps(config), "synthetic")
    of_draft = draft and _C.DraftConfig.from_json(json.dumps(draft), "synthetic draft")
    with _ctrl_c_ends_the_process():
        return _C.Engine.synthetic(target, seed, engine_options(**options), of_draft)


@contextlib.contextmanager
def _ctrl_c_ends_the_process() -> Iterator[None]:
    """To make weights takes up to minutes, in which Python would not hear of it; nothing is to be cleaned up."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
