"""How much a step has to do: weight bytes from the engine, operations from the config."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .. import _C

# Bytes per weight as packed, scales included; the router stays F32.
_BYTES = {
    _C.WeightFormat.plain: 2.0,
    _C.WeightFormat.fp8_block: 1.0 + 4 / 128,
    _C.WeightFormat.mxfp4: 0.5 + 1 / 32,
}
_ROUTER_BYTES = 4.0
_PACKED_ROWS = 16  # matrices are padded to a multiple
# Checkpoints in F16 or F32 and other layouts of a backend would make the counts above wrong.
_MAX_BYTES_ERROR = 0.02


@dataclass(frozen=True)
class KindWork:
    """Matrix products of all tasks of one kind in a step.

    ``num_bytes``: of packed weights that they read, None: not known; ``num_flops``: 2 per
    multiply-add.
    """

    num_bytes: float | None
    num_flops: float


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
    return sum(_kind_flops(config, num_rows, num_logit_rows).values())


def step_work(engine: Any, num_rows: int, num_logit_rows: int) -> dict[str, KindWork]:
    """The same by kind of task, and the weight bytes, experts as by uniform routing."""
    config = engine.config
    num_bytes: dict[str, float] = {}
    for kind, rows, k, element_bytes in _dense_matrices(config):
        padded = -(-rows // _PACKED_ROWS) * _PACKED_ROWS
        num_bytes[kind] = num_bytes.get(kind, 0.0) + padded * k * element_bytes
    error = abs(sum(num_bytes.values()) / engine.dense_bytes_per_step - 1)
    known: dict[str, float] = num_bytes if error <= _MAX_BYTES_ERROR else {}
    num_moe = sum(layer.is_moe for layer in config.layers)
    expert_bytes = num_moe * active_experts(config, num_rows) * engine.expert_bytes
    known |= {"expert_gate_up": expert_bytes * 2 / 3, "expert_down": expert_bytes / 3}
    flops = _kind_flops(config, num_rows, num_logit_rows)
    return {kind: KindWork(known.get(kind), flops[kind]) for kind in flops}


def _kind_flops(config: Any, num_rows: int, num_logit_rows: int) -> dict[str, float]:
    flops: dict[str, float] = {}
    for kind, rows, k, _ in _dense_matrices(config):
        num_used = num_logit_rows if kind == "lm_head" else num_rows
        flops[kind] = flops.get(kind, 0.0) + 2.0 * num_used * rows * k
    num_moe = sum(layer.is_moe for layer in config.layers)
    if num_moe:
        width = config.experts_per_token * config.expert_intermediate_size
        down = 2.0 * num_rows * num_moe * width * config.hidden_size
        flops |= {"expert_gate_up": 2 * down, "expert_down": down}
    return flops


def _dense_matrices(config: Any) -> Iterator[tuple[str, int, int, float]]:
    """(kind of task, rows, columns, bytes per weight) of all matrices but experts."""
    hidden = config.hidden_size
    plain = set(config.ignored_layers)
    for i, layer in enumerate(config.layers):
        def element_bytes(module: str, prefix: str = f"model.layers.{i}") -> float:
            is_plain = f"{prefix}.{module}" in plain
            return _BYTES[_C.WeightFormat.plain if is_plain else config.linear_format]

        values = layer.num_q_heads * layer.v_head_dim
        qkv_rows = layer.num_q_heads * layer.qk_head_dim
        qkv_rows += layer.num_kv_heads * (layer.qk_head_dim + layer.v_head_dim)
        yield "qkv_proj", qkv_rows, hidden, element_bytes("self_attn.qkv_proj")
        yield "o_proj", hidden, values, element_bytes("self_attn.o_proj")
        if layer.is_moe:
            yield "router", config.num_experts, hidden, _ROUTER_BYTES
            continue
        width = config.intermediate_size
        yield "gate_up_proj", 2 * width, hidden, element_bytes("mlp.gate_proj")
        yield "down_proj", hidden, width, element_bytes("mlp.down_proj")
    yield "lm_head", config.vocab_size, hidden, _BYTES[_C.WeightFormat.plain]


def spread_prompt(config: Any, num_tokens: int, salt: int = 0) -> list[int]:
    """Token ids spread over the vocabulary, so that routing is spread too."""
    return [(7919 * i + 11 + 104729 * salt) % config.vocab_size for i in range(num_tokens)]
