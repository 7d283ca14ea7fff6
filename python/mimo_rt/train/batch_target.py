"""TargetModel on many sequences at once, with a KV cache: for GPUs, which one sequence cannot fill.

The same arithmetic as in target.py but for the order of sums. Shapes depend on no token, so nothing
waits for the device: every expert is computed and weighed by its share, 0 where it is not chosen.
That suits models with few experts, the only ones that target.py is for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import silu

from ..checkpoints.layout import layer_shape
from .ops import matmul, rms_norm, rotate, sink_softmax
from .target import TargetModel


class BatchTarget:
    """Runs tokens of ``num_sequences`` sequences of at most ``max_tokens`` tokens each.

    The cache of a token takes 46 kB in float32 for 30 layers with 3 kv heads of 64.
    """

    def __init__(self, target: TargetModel, num_sequences: int, max_tokens: int) -> None:
        self._target = target
        config = target.config
        self._shapes = [layer_shape(config, i) for i in range(config["num_hidden_layers"])]
        self._keys, self._values = [], []
        for shape in self._shapes:
            for cache, size in ((self._keys, shape.qk_head_dim), (self._values, shape.v_head_dim)):
                sizes = (num_sequences, shape.num_kv_heads, max_tokens, size)
                cache.append(torch.zeros(sizes, dtype=target.dtype, device=target.device))
        self._mlps = [self._mlp_weights(layer_idx) for layer_idx in range(len(self._shapes))]

    def _mlp_weights(self, layer_idx: int) -> tuple[Tensor, Tensor, Tensor]:
        """Gate, up and down of a layer; those of all experts side by side."""
        weights, modules = self._target.weights, [f"model.layers.{layer_idx}.mlp"]
        if self._shapes[layer_idx].is_moe:
            modules = self._target.expert_modules(layer_idx)
        gate, up, down = (
            torch.cat([weights[f"{module}.{name}_proj"] for module in modules], dim=dim)
            for name, dim in (("gate", 0), ("up", 0), ("down", 1))
        )
        return gate, up, down

    def forward(
        self,
        token_ids: Tensor,
        first: Tensor,
        num_keys: int,
        *,
        rows: slice = slice(None),
        layer_ids: Sequence[int] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the next tokens of some sequences.

        Args:
            token_ids: ``[batch, n]``. Tokens after the end of a sequence do no harm: nothing sees
                them, and the sequence's later ones overwrite what they left in the cache.
            first: ``[batch]`` position of the first of them; those before are in the cache.
            num_keys: positions that take part in attention; all of the batch are below.
            rows: which sequences of the cache the batch is.
            layer_ids: layers whose output is captured; if any, the forward ends with the last.

        Returns:
            The residual stream ``[batch, n, hidden_size]``, and one captured per layer id.
        """
        target = self._target
        positions = first[:, None] + torch.arange(token_ids.shape[1], device=first.device)
        distance = positions[..., None] - torch.arange(num_keys, device=first.device)
        x = target.embed[token_ids]
        captured: dict[int, Tensor] = {}
        for layer_idx in range(max(layer_ids, default=len(self._shapes) - 1) + 1):
            norm = target.weights[f"model.layers.{layer_idx}.input_layernorm"]
            h = rms_norm(x, norm, target.config["layernorm_epsilon"])
            x = x + self._attention(h, positions, distance, rows, layer_idx)
            x = x + self._mlp(target.mlp_input(x, layer_idx), layer_idx)
            if layer_idx in layer_ids:
                captured[layer_idx] = x
        return x, [captured[i] for i in layer_ids]

    def logits(self, x: Tensor) -> Tensor:
        """Of the residual stream ``[..., hidden_size]`` after the last layer."""
        norm = self._target.weights["model.norm"]
        x = rms_norm(x, norm, self._target.config["layernorm_epsilon"])
        return x @ self._target.lm_head.T

    def _attention(
        self, h: Tensor, positions: Tensor, distance: Tensor, rows: slice, layer_idx: int
    ) -> Tensor:
        config, weights = self._target.config, self._target.weights
        shape, attn = self._shapes[layer_idx], f"model.layers.{layer_idx}.self_attn"
        theta = float(config["swa_rope_theta" if shape.is_windowed else "rope_theta"])
        rotary_dim = int(shape.qk_head_dim * config["partial_rotary_factor"])
        q, k, v = (
            matmul(h, weights[f"{attn}.{name}_proj"]).unflatten(-1, (heads, -1))
            for name, heads in zip(
                "qkv", (shape.num_q_heads, shape.num_kv_heads, shape.num_kv_heads), strict=True
            )
        )
        q, k = (rotate(u, positions, rotary_dim, theta) for u in (q, k))
        keys, values = self._keys[layer_idx][rows], self._values[layer_idx][rows]
        batch = torch.arange(len(h), device=h.device)[:, None]
        keys[batch, :, positions] = k
        values[batch, :, positions] = v * config["attention_value_scale"]
        num_keys = distance.shape[-1]
        keys, values = keys[:, :, :num_keys], values[:, :, :num_keys]
        # [batch, num_kv_heads, q_per_kv, n, size]: of a kv head one matrix of q_per_kv * n rows
        q = q.unflatten(2, (shape.num_kv_heads, -1)).permute(0, 2, 3, 1, 4)
        grid = q.shape[:-1]
        scores = (q.flatten(2, 3) * shape.qk_head_dim**-0.5) @ keys.transpose(-1, -2)
        hidden = distance < 0
        if shape.is_windowed:
            hidden |= distance >= config["sliding_window"]
        scores = scores.reshape(*grid, num_keys).masked_fill(hidden[:, None, None], -torch.inf)
        sinks = weights.get(f"{attn}.attention_sink_bias")
        if sinks is not None:
            sinks = sinks.reshape(shape.num_kv_heads, -1, 1, 1)
        out = (sink_softmax(scores, sinks).flatten(2, 3) @ values).reshape(*grid, -1)
        return matmul(out.permute(0, 3, 1, 2, 4).flatten(2), weights[f"{attn}.o_proj"])

    def _mlp(self, h: Tensor, layer_idx: int) -> Tensor:
        gate, up, down = self._mlps[layer_idx]
        active = silu(matmul(h, gate)) * matmul(h, up)
        if self._shapes[layer_idx].is_moe:
            shares = self._target.expert_shares(h.flatten(0, 1), layer_idx)
            shares = shares.reshape(*h.shape[:2], -1, 1)
            active = (active.unflatten(-1, (shares.shape[2], -1)) * shares).flatten(2)
        return matmul(active, down)
