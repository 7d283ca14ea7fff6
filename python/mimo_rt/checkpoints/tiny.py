"""Small random models in the exact file format of MiMo checkpoints, for tests and trials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .formats import encode_bf16
from .layout import (
    LayerShape,
    layer_shape,
    router_dtype,
    tensor_specs,
    write_linear,
    write_qkv,
)
from .presets import tiny_config
from .text_files import BYTE_SPECIAL_TOKENS, write_byte_tokenizer
from .writer import CheckpointWriter, atomic_directory, write_json

BYTE_VOCAB_SIZE = 256 + len(BYTE_SPECIAL_TOKENS)
LOGIT_STD = 2.0
LAYER_GAIN = 0.5
# Energy of the routing directions in an embedding row, against 1 for its random part.
ROUTING_ENERGY = 16.0


def write_tiny_checkpoint(
    directory: Path | str,
    *,
    preset: str = "pro_fp4",
    seed: int = 0,
    overwrite: bool = False,
    **overrides: Any,
) -> Path:
    """Write a small random model and return its directory.

    Args:
        directory: where the model goes; it appears complete or not at all.
        preset: a key of ``PRESETS``.
        seed: equal seeds and options give equal files.
        overwrite: replace ``directory`` if it exists.
        overrides: fields of config.json, or one of the options ``linear_format`` ("fp8", "bf16"),
            ``expert_format`` ("mxfp4", "fp8", "bf16"), ``num_mtp_layers``, ``max_shard_bytes``,
            ``tokenizer`` (bool), ``zero_router`` (all experts weigh the same) and
            ``clear_routing`` (default true: each token prefers experts of its own by a margin that
            rounding cannot bridge, so two implementations can be compared; false: random).

    Raises:
        InvalidArgumentError: unknown preset or field, or sizes that do not fit each other.
    """
    config, options = tiny_config(preset, overrides)
    specs = tensor_specs(config, num_mtp_layers=options["num_mtp_layers"])
    with atomic_directory(Path(directory), overwrite=overwrite) as partial:
        write_json(partial / "config.json", config)
        write_json(partial / "generation_config.json", _generation_config(config))
        if options["tokenizer"] and config["vocab_size"] >= BYTE_VOCAB_SIZE:
            write_byte_tokenizer(partial)
        shard_bytes = options["max_shard_bytes"]
        with CheckpointWriter(partial, specs, max_shard_bytes=shard_bytes) as writer:
            _TinyModel(config, writer, seed).write(options)
    return Path(directory)


def _generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 0.95,
        "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["pad_token_id"],
    }


class _TinyModel:
    """Random weights whose activations, scores and logits are of order one."""

    def __init__(self, config: Mapping[str, Any], writer: CheckpointWriter, seed: int) -> None:
        self._config = config
        self._writer = writer
        self._rng = np.random.default_rng(seed)
        self._routes: np.ndarray | None = None

    def write(self, options: Mapping[str, Any]) -> None:
        config = self._config
        has_choice = any(config["moe_layer_freq"]) and not options["zero_router"]
        if options["clear_routing"] and has_choice:
            self._routes = self._orthonormal(config["n_routed_experts"], config["hidden_size"])
        self._tables()
        self._norm("model.norm")
        for layer_idx in range(config["num_hidden_layers"]):
            prefix = f"model.layers.{layer_idx}"
            shape = layer_shape(config, layer_idx)
            self._norm(f"{prefix}.input_layernorm")
            self._norm(f"{prefix}.post_attention_layernorm")
            self._attention(f"{prefix}.self_attn", shape)
            if shape.is_moe:
                self._moe(f"{prefix}.mlp", is_zero_router=options["zero_router"])
            else:
                self._mlp(f"{prefix}.mlp", config["intermediate_size"])
        for mtp_idx in range(options["num_mtp_layers"]):
            self._mtp(f"model.mtp.layers.{mtp_idx}")

    def _tables(self) -> None:
        config = self._config
        shape = (config["vocab_size"], config["hidden_size"])
        embed = self._normal(shape, 1.0)
        logit_gain = np.float32(LOGIT_STD / np.sqrt(config["hidden_size"]))
        if self._routes is not None:
            embed += self._token_routes()
        if config["tie_word_embeddings"]:
            embed *= logit_gain / np.sqrt(np.mean(embed * embed))
        else:
            self._bf16("lm_head.weight", shape, logit_gain)
        self._writer.write("model.embed_tokens.weight", encode_bf16(embed))

    def _orthonormal(self, num_rows: int, num_cols: int) -> np.ndarray:
        """Unit rows, orthogonal to each other as far as there is room."""
        square = self._normal((max(num_rows, num_cols), num_cols), 1.0)
        rows = np.linalg.qr(square.T)[0].T if num_rows <= num_cols else square
        return rows[:num_rows] / np.linalg.norm(rows[:num_rows], axis=1, keepdims=True)

    def _route_length(self) -> float:
        """Length of one routing direction in an embedding row."""
        config = self._config
        return np.sqrt(ROUTING_ENERGY * config["hidden_size"] / config["num_experts_per_tok"])

    def _token_routes(self) -> np.ndarray:
        """For every token the sum of the directions of the experts it prefers."""
        config = self._config
        order = self._rng.random((config["vocab_size"], config["n_routed_experts"])).argsort(axis=1)
        chosen = order < config["num_experts_per_tok"]
        return (chosen @ self._routes * self._route_length()).astype(np.float32)

    def _normal(self, shape: tuple[int, ...], std: float) -> np.ndarray:
        return self._rng.standard_normal(shape, dtype=np.float32) * np.float32(std)

    def _linear(self, rows: int, cols: int, gain: float = 1.0) -> np.ndarray:
        """Rows map inputs of order one to outputs of about ``gain``; block sizes vary fourfold."""
        weight = self._normal((rows, cols), gain / np.sqrt(cols))
        spread = np.exp2(self._rng.uniform(-1, 1, (rows, -(-cols // 32)))).astype(np.float32)
        return weight * np.repeat(spread, 32, axis=1)[:, :cols]

    def _bf16(self, name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> None:
        self._writer.write(name, encode_bf16(self._normal(shape, std) + np.float32(mean)))

    def _norm(self, module: str) -> None:
        self._bf16(f"{module}.weight", (self._config["hidden_size"],), std=0.1, mean=1.0)

    def _attention(self, prefix: str, shape: LayerShape) -> None:
        hidden = self._config["hidden_size"]
        q, k, v = (self._linear(rows, hidden, 1.2) for rows in shape.qkv_rows)
        write_qkv(self._writer, self._config, prefix, shape, (q, k, v))
        o = self._linear(hidden, shape.num_q_heads * shape.v_head_dim, LAYER_GAIN)
        write_linear(self._writer, self._config, f"{prefix}.o_proj", o)
        if shape.has_sink:
            self._bf16(f"{prefix}.attention_sink_bias", (shape.num_q_heads,), std=1.0)

    def _mlp(self, prefix: str, width: int) -> None:
        hidden = self._config["hidden_size"]
        for name, rows, cols, gain in (
            ("gate_proj", width, hidden, 1.2),
            ("up_proj", width, hidden, 1.2),
            ("down_proj", hidden, width, LAYER_GAIN),
        ):
            weight = self._linear(rows, cols, gain)
            write_linear(self._writer, self._config, f"{prefix}.{name}", weight)

    def _moe(self, prefix: str, *, is_zero_router: bool) -> None:
        config = self._config
        num_experts, hidden = config["n_routed_experts"], config["hidden_size"]
        gain = 0.0 if is_zero_router else 1.0 if self._routes is None else 0.1
        router = self._linear(num_experts, hidden, gain)
        if self._routes is not None and not is_zero_router:
            # A preferred expert gets a logit near 2 when the residual stream has variance 20.
            router += self._routes * np.float32(2 * np.sqrt(20) / self._route_length())
        if router_dtype(config) == "BF16":
            self._writer.write(f"{prefix}.gate.weight", encode_bf16(router))
        else:
            self._writer.write(f"{prefix}.gate.weight", router)
        bias = self._normal((num_experts,), 0.0 if is_zero_router else 0.05)
        self._writer.write(f"{prefix}.gate.e_score_correction_bias", bias)
        for expert in range(num_experts):
            self._mlp(f"{prefix}.experts.{expert}", config["moe_intermediate_size"])

    def _mtp(self, prefix: str) -> None:
        config = self._config
        hidden = config["hidden_size"]
        for norm in ("enorm", "hnorm", "input_layernorm", "pre_mlp_layernorm", "final_layernorm"):
            self._norm(f"{prefix}.{norm}")
        self._bf16(f"{prefix}.eh_proj.weight", (hidden, 2 * hidden), std=hidden**-0.5)
        window_layer = {**config, "hybrid_layer_pattern": [1], "moe_layer_freq": [0]}
        self._attention(f"{prefix}.self_attn", layer_shape(window_layer, 0))
        self._mlp(f"{prefix}.mlp", config["intermediate_size"])
