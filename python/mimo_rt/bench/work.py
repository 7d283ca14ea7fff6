"""How much a step has to do: weight bytes from the engine, operations from the config."""

from __future__ import annotations

from typing import Any


def active_experts(config: Any, num_rows: int) -> float:
    """Distinct experts of a layer that ``num_rows`` tokens use, if routing were uniform."""
    if not config.num_experts:
        return 0.0
    share = 1 - config.experts_per_token / config.num_experts
    return config.num_experts * (1 - share**num_rows)


def step_bytes(engine: Any, num_active_experts: float) -> float:
    """Packed weight bytes of a step in which every MoE layer uses that many experts."""
    num_moe = sum(layer.is_moe for layer in engine.config.layers)
    return engine.dense_bytes_per_step + num_moe * num_active_experts * engine.expert_bytes


def step_flops(config: Any, num_rows: int, num_logit_rows: int) -> float:
    """Operations of the matrix products of a step; attention over the cache is not counted."""
    hidden = config.hidden_size
    weights = 0  # that one row is multiplied with
    for layer in config.layers:
        q_rows = layer.num_q_heads * layer.qk_head_dim
        kv_rows = layer.num_kv_heads * (layer.qk_head_dim + layer.v_head_dim)
        weights += hidden * (q_rows + kv_rows + layer.num_q_heads * layer.v_head_dim)
        if layer.is_moe:
            experts = config.experts_per_token * config.expert_intermediate_size
            weights += hidden * (3 * experts + config.num_experts)
        else:
            weights += 3 * hidden * config.intermediate_size
    return 2.0 * (num_rows * weights + num_logit_rows * hidden * config.vocab_size)


def spread_prompt(config: Any, num_tokens: int, salt: int = 0) -> list[int]:
    """Token ids spread over the vocabulary, so that routing is spread too."""
    return [(7919 * i + 11 + 104729 * salt) % config.vocab_size for i in range(num_tokens)]
