"""A torch forward of a MiMo checkpoint: logits, and the features that condition a draft.

Weights are expanded exactly and activations keep ``dtype``, so this is the model itself without
the roundings of an engine, unless products are asked for in a smaller type. It is meant for
models that fit into memory as float32; every expert of the config is held.

Features: the residual stream after each captured decoder layer (0-based ids), before the final
norm, concatenated in the order of the ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.layout import is_fused, layer_shape, qkv_chunks
from .ops import matmul, rms_norm, rotate, sink_softmax, swiglu
from .tensors import CheckpointTensors, read_config


@dataclass(frozen=True)
class TargetOutput:
    """Logits ``[num_tokens, vocab_size]`` and features ``[num_tokens, F * H]``, if asked for."""

    logits: Tensor | None
    features: Tensor | None


class TargetModel:
    """A checkpoint directory that runs on one sequence of token ids at a time.

    Attributes:
        config: the parsed config.json.
        dtype: of activations, norms, tables and routers.
        matmul_dtype: of all other matrices; products take operands of this type.
        weights: module or tensor name -> dense weight; fused qkv is split into q, k and v.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        dtype: torch.dtype = torch.float32,
        matmul_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.directory = Path(directory)
        self.config = read_config(self.directory)
        self.dtype, self.matmul_dtype = dtype, matmul_dtype or dtype
        self.device = torch.device(device)
        self.weights: dict[str, Tensor] = {}
        tensors = CheckpointTensors(self.directory)
        self._load_tables(tensors)
        for layer_idx in range(self.config["num_hidden_layers"]):
            self._load_attention(tensors, layer_idx)
            self._load_mlp(tensors, layer_idx)

    @property
    def hidden_size(self) -> int:
        return self.config["hidden_size"]

    @property
    def embed(self) -> Tensor:
        """The embedding table ``[vocab_size, hidden_size]``."""
        return self.weights["model.embed_tokens"]

    @property
    def lm_head(self) -> Tensor:
        """``[vocab_size, hidden_size]``; the embedding itself when they are tied."""
        return self.weights["lm_head"]

    # -- loading

    def _put(self, name: str, value: Tensor) -> None:
        self.weights[name] = value.to(self.device, self.dtype)

    def _put_matrix(self, name: str, value: Tensor) -> None:
        self.weights[name] = value.to(self.device, self.matmul_dtype)

    def _load_tables(self, tensors: CheckpointTensors) -> None:
        self._put("model.embed_tokens", tensors.plain("model.embed_tokens.weight"))
        self._put("model.norm", tensors.plain("model.norm.weight"))
        if self.config["tie_word_embeddings"]:
            self.weights["lm_head"] = self.embed
        else:
            self._put("lm_head", tensors.plain("lm_head.weight"))

    def _load_attention(self, tensors: CheckpointTensors, layer_idx: int) -> None:
        prefix = f"model.layers.{layer_idx}"
        attn = f"{prefix}.self_attn"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            self._put(f"{prefix}.{norm}", tensors.plain(f"{prefix}.{norm}.weight"))
        shape = layer_shape(self.config, layer_idx)
        if is_fused(self.config):
            chunks = qkv_chunks(self.config)
            fused = tensors.linear(f"{attn}.qkv_proj", chunks)
            # Each chunk holds [Q_t | K_t | V_t].
            rows = [num_rows // chunks for num_rows in shape.qkv_rows]
            split = fused.reshape(chunks, sum(rows), -1).split(rows, dim=1)
            qkv = [part.reshape(-1, fused.shape[1]) for part in split]
        else:
            # On full layers the scale grid of k_proj restarts at every head.
            k_chunks = 1 if shape.is_windowed else shape.num_kv_heads
            qkv = [tensors.linear(f"{attn}.{n}_proj", k_chunks if n == "k" else 1) for n in "qkv"]
        for name, weight in zip("qkv", qkv, strict=True):
            self._put_matrix(f"{attn}.{name}_proj", weight)
        self._put_matrix(f"{attn}.o_proj", tensors.linear(f"{attn}.o_proj"))
        if shape.has_sink:
            name = f"{attn}.attention_sink_bias"
            self._put(name, tensors.plain(name))

    def _load_mlp(self, tensors: CheckpointTensors, layer_idx: int) -> None:
        mlp = f"model.layers.{layer_idx}.mlp"
        modules = [mlp]
        if layer_shape(self.config, layer_idx).is_moe:
            modules = self.expert_modules(layer_idx)
            self._put(f"{mlp}.gate", tensors.plain(f"{mlp}.gate.weight"))
            bias = f"{mlp}.gate.e_score_correction_bias"
            self._put(bias, tensors.plain(bias))
        for module in modules:
            for name in ("gate_proj", "up_proj", "down_proj"):
                self._put_matrix(f"{module}.{name}", tensors.linear(f"{module}.{name}"))

    def expert_modules(self, layer_idx: int) -> list[str]:
        """Names of the experts of a MoE layer, to which .gate_proj, .up_proj, .down_proj belong."""
        prefix = f"model.layers.{layer_idx}.mlp.experts"
        return [f"{prefix}.{expert}" for expert in range(self.config["n_routed_experts"])]

    # -- forward

    def forward(
        self,
        token_ids: Tensor,
        *,
        layer_ids: Sequence[int] = (),
        wants_logits: bool = True,
        replace: Mapping[str, Tensor] | None = None,
    ) -> TargetOutput:
        """Run the tokens ``[num_tokens]`` at positions 0, 1, …

        Args:
            layer_ids: layers whose output becomes a feature.
            wants_logits: False stops after the last captured layer.
            replace: weights to use instead of those loaded (training).
        """
        weights = {**self.weights, **replace} if replace else self.weights
        num_layers = self.config["num_hidden_layers"]
        last = num_layers - 1 if wants_logits else max(layer_ids, default=-1)
        x = weights["model.embed_tokens"][token_ids]
        captured: dict[int, Tensor] = {}
        for layer_idx in range(last + 1):
            x = self._layer(x, layer_idx, weights)
            if layer_idx in layer_ids:
                captured[layer_idx] = x
        features = torch.cat([captured[i] for i in layer_ids], dim=-1) if layer_ids else None
        logits = None
        if wants_logits:
            x = rms_norm(x, weights["model.norm"], self.config["layernorm_epsilon"])
            logits = x @ weights["lm_head"].T
        return TargetOutput(logits, features)

    def _layer(self, x: Tensor, layer_idx: int, weights: Mapping[str, Tensor]) -> Tensor:
        x = self.attention_output(x, layer_idx, weights)
        return self.mlp_output(x, layer_idx, weights)

    def attention_output(
        self, x: Tensor, layer_idx: int, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The residual stream ``[num_tokens, hidden_size]`` of one sequence after attention."""
        weights = weights or self.weights
        norm = weights[f"model.layers.{layer_idx}.input_layernorm"]
        h = rms_norm(x, norm, self.config["layernorm_epsilon"])
        return x + self._attention(h, layer_idx, weights)

    def mlp_input(
        self, x: Tensor, layer_idx: int, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The normed stream that the MLP or the experts of a layer read."""
        norm = (weights or self.weights)[f"model.layers.{layer_idx}.post_attention_layernorm"]
        return rms_norm(x, norm, self.config["layernorm_epsilon"])

    def mlp_output(
        self, x: Tensor, layer_idx: int, weights: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The residual stream ``[num_tokens, hidden_size]`` after the MLP or the experts."""
        weights = weights or self.weights
        h = self.mlp_input(x, layer_idx, weights)
        if layer_shape(self.config, layer_idx).is_moe:
            return x + self._moe(h, layer_idx, weights)
        return x + self._mlp(h, f"model.layers.{layer_idx}.mlp", weights)

    def _attention(self, h: Tensor, layer_idx: int, weights: Mapping[str, Tensor]) -> Tensor:
        attn = f"model.layers.{layer_idx}.self_attn"
        shape = layer_shape(self.config, layer_idx)
        num_tokens = len(h)
        positions = torch.arange(num_tokens, device=h.device)
        theta = float(self.config["swa_rope_theta" if shape.is_windowed else "rope_theta"])
        rotary_dim = int(shape.qk_head_dim * self.config["partial_rotary_factor"])
        q, k, v = (
            matmul(h, weights[f"{attn}.{name}_proj"]).reshape(num_tokens, heads, -1)
            for name, heads in zip(
                "qkv", (shape.num_q_heads, shape.num_kv_heads, shape.num_kv_heads), strict=True
            )
        )
        v = v * self.config["attention_value_scale"]
        q, k = (rotate(u, positions, rotary_dim, theta) for u in (q, k))
        q_per_kv = shape.num_q_heads // shape.num_kv_heads
        # [num_kv_heads, q_per_kv, num_tokens, size] against [num_kv_heads, 1, num_tokens, size]
        q = q.reshape(num_tokens, shape.num_kv_heads, q_per_kv, -1).permute(1, 2, 0, 3)
        k, v = (u.permute(1, 0, 2)[:, None] for u in (k, v))
        scores = (q * shape.qk_head_dim**-0.5) @ k.transpose(-1, -2)
        distance = positions[:, None] - positions[None, :]
        hidden = distance < 0
        if shape.is_windowed:
            hidden |= distance >= self.config["sliding_window"]
        scores = scores.masked_fill(hidden, -torch.inf)
        sinks = weights.get(f"{attn}.attention_sink_bias")
        if sinks is not None:
            sinks = sinks.reshape(shape.num_kv_heads, q_per_kv, 1, 1)
        out = (sink_softmax(scores, sinks) @ v).permute(2, 0, 1, 3).reshape(num_tokens, -1)
        return matmul(out, weights[f"{attn}.o_proj"])

    def _mlp(self, h: Tensor, module: str, weights: Mapping[str, Tensor]) -> Tensor:
        return swiglu(h, *(weights[f"{module}.{n}_proj"] for n in ("gate", "up", "down")))

    def _moe(self, h: Tensor, layer_idx: int, weights: Mapping[str, Tensor]) -> Tensor:
        mlp = f"model.layers.{layer_idx}.mlp"
        expert_weights, expert_ids = self._route(h, mlp, weights)
        out = torch.zeros_like(h)
        for expert, module in enumerate(self.expert_modules(layer_idx)):
            token, slot = (expert_ids == expert).nonzero(as_tuple=True)
            if len(token):
                y = self._mlp(h[token], module, weights) * expert_weights[token, slot][:, None]
                out = out.index_add(0, token, y)
        return out

    def expert_shares(self, h: Tensor, layer_idx: int) -> Tensor:
        """``[num_tokens, num_experts]``: the weight of every expert, 0 where it is not chosen."""
        share, expert_ids = self._route(h, f"model.layers.{layer_idx}.mlp", self.weights)
        out = h.new_zeros(len(h), self.config["n_routed_experts"])
        return out.scatter_(1, expert_ids, share)

    def _route(
        self, h: Tensor, mlp: str, weights: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Weights and ids ``[num_tokens, experts_per_token]``; the bias only chooses."""
        sigma = torch.sigmoid(h @ weights[f"{mlp}.gate"].T)
        scores = sigma + weights[f"{mlp}.gate.e_score_correction_bias"]
        # A stable sort puts the lower index first among equals.
        order = torch.sort(scores.detach(), dim=-1, descending=True, stable=True).indices
        chosen = order[:, : self.config["num_experts_per_tok"]]
        weight = sigma.gather(1, chosen)
        if self.config["norm_topk_prob"]:
            weight = weight / (weight.sum(dim=1, keepdim=True) + 1e-20)
        return weight * (self.config.get("routed_scaling_factor") or 1.0), chosen
