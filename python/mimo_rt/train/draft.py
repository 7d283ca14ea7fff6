"""The DFlash draft as a torch module; parameter names are those of the published tensors.

A block is an anchor token and ``block_size - 1`` masks at positions P, P + 1, …; slot t predicts
the token at its own position. The context are features of the target at the positions before P, turned
into keys and values of every layer; the draft never runs over the context itself.

  context   u = rms_norm(W_fc f; hidden_norm)          once per token, for all layers
            k = rope(rms_norm(W_k u; k_norm), position),  v = value_scale W_v u
  block     y = [embed(anchor), mask, mask, …];  per layer
            a = rms_norm(y; input_layernorm);  q, k, v from a as above (q by q_norm)
            attend to the context inside the window and to all rows of the own block, no causal mask
            y += W_o o;  y += mlp(rms_norm(y; post_attention_layernorm))
  result    z = rms_norm(y; norm);  logits = lm_head(target) z  for slots 1, 2, …
            with the rows of ``vocab_ids`` only when the draft knows part of the vocabulary

Source: "DFlash: Block Diffusion for Flash Speculative Decoding" (arXiv 2602.06036) with the sinks,
value scale and partial rotary of the MiMo-V2.5-Pro draft.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import _C
from ..checkpoints.draft_layout import DraftShape
from .blocks import block_positions, context_hidden
from .ops import rms_norm, rotate, sink_softmax, swiglu

INIT_STD = 0.02
# One (keys, values) per layer: [num_sequences, num_tokens, num_kv_heads, head size].
Context = list[tuple[Tensor, Tensor]]


class _Norm(nn.Module):
    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.epsilon)


def _linear(num_in: int, num_out: int) -> nn.Linear:
    linear = nn.Linear(num_in, num_out, bias=False)
    nn.init.normal_(linear.weight, std=INIT_STD)
    return linear


class _Attention(nn.Module):
    def __init__(self, shape: DraftShape) -> None:
        super().__init__()
        self.shape = shape
        hidden, qk, v = shape.hidden_size, shape.qk_head_dim, shape.v_head_dim
        self.q_proj = _linear(hidden, shape.num_q_heads * qk)
        self.k_proj = _linear(hidden, shape.num_kv_heads * qk)
        self.v_proj = _linear(hidden, shape.num_kv_heads * v)
        self.o_proj = _linear(shape.num_q_heads * v, hidden)
        self.q_norm = _Norm(qk, shape.rms_norm_eps)
        self.k_norm = _Norm(qk, shape.rms_norm_eps)
        sinks = torch.zeros(shape.num_q_heads) if shape.has_sink else None
        self.attention_sink_bias = None if sinks is None else nn.Parameter(sinks)

    def _rotate(self, u: Tensor, positions: Tensor) -> Tensor:
        return rotate(u, positions, self.shape.rotary_dim, self.shape.rope_theta)

    def keys_values(self, u: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """u ``[..., hidden_size]`` at ``positions [...]`` -> k, v ``[..., num_kv_heads, size]``."""
        heads = (*u.shape[:-1], self.shape.num_kv_heads, -1)
        k = self._rotate(self.k_norm(self.k_proj(u).reshape(heads)), positions)
        return k, self.v_proj(u).reshape(heads) * self.shape.value_scale

    def forward(
        self, a: Tensor, positions: Tensor, context: tuple[Tensor, Tensor], hidden: Tensor
    ) -> Tensor:
        """a ``[sequences, blocks, rows, hidden_size]``.

        hidden: context mask ``[sequences, blocks, rows, num_tokens]``.
        """
        s = self.shape
        num_rows = a.shape[2]
        q = self.q_norm(self.q_proj(a).unflatten(-1, (s.num_q_heads, -1)))
        q = self._rotate(q, positions) * s.qk_head_dim**-0.5
        k, v = self.keys_values(a, positions)
        # s: sequence, h: kv head, a: block, b and c: rows of a block, g: query head of h
        q = q.unflatten(3, (s.num_kv_heads, -1)).permute(0, 3, 1, 2, 4, 5)
        grid = q.shape[:-1]
        context_k, context_v = (u.transpose(1, 2) for u in context)  # [s, h, token, size]
        far = q.flatten(2, 4) @ context_k.transpose(2, 3)
        far = far.reshape(*grid, -1).masked_fill(hidden[:, None, :, :, None, :], -torch.inf)
        near = torch.einsum("shabgd,sachd->shabgc", q, k)
        sinks = self.attention_sink_bias
        if sinks is not None:
            sinks = sinks.reshape(s.num_kv_heads, 1, 1, -1, 1)
        weight = sink_softmax(torch.cat([far, near], dim=-1), sinks)
        far, near = weight.split([far.shape[-1], num_rows], dim=-1)
        out = (far.flatten(2, 4) @ context_v).reshape(*grid, -1)
        out = out + torch.einsum("shabgc,sachd->shabgd", near, v)
        return self.o_proj(out.permute(0, 2, 3, 1, 4, 5).flatten(3))


class _Mlp(nn.Module):
    def __init__(self, shape: DraftShape) -> None:
        super().__init__()
        self.gate_proj = _linear(shape.hidden_size, shape.intermediate_size)
        self.up_proj = _linear(shape.hidden_size, shape.intermediate_size)
        self.down_proj = _linear(shape.intermediate_size, shape.hidden_size)

    def forward(self, h: Tensor) -> Tensor:
        return swiglu(h, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)


class _Layer(nn.Module):
    def __init__(self, shape: DraftShape) -> None:
        super().__init__()
        self.input_layernorm = _Norm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = _Attention(shape)
        self.post_attention_layernorm = _Norm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = _Mlp(shape)


class DraftModel(nn.Module):
    """The trainable parts of a draft; embedding and lm_head stay with the target.

    Args:
        shape: sizes, as in ``dflash/config.json``.
        seed: of the random start.
        vocab_ids: ``[draft_vocab_size]`` ascending ids that the draft can propose; None when that
            size is 0: all.
    """

    vocab_ids: Tensor | None

    def __init__(
        self, shape: DraftShape, *, seed: int = 0, vocab_ids: Tensor | None = None
    ) -> None:
        super().__init__()
        self.shape = shape
        num_ids = 0 if vocab_ids is None else len(vocab_ids)
        if num_ids != shape.draft_vocab_size:
            raise _C.InvalidArgumentError(
                f"[draft] vocab_ids: expected {shape.draft_vocab_size} ids, got {num_ids}."
            )
        self.register_buffer("vocab_ids", vocab_ids, persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.fc = _linear(shape.feature_size, shape.hidden_size)
            self.hidden_norm = _Norm(shape.hidden_size, shape.rms_norm_eps)
            self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.num_layers))
            self.norm = _Norm(shape.hidden_size, shape.rms_norm_eps)
            self.mask_embedding = nn.Parameter(torch.randn(shape.hidden_size) * INIT_STD)

    def head(self, lm_head: Tensor) -> Tensor:
        """The rows of the target's lm_head that turn outputs into logits of draft ids."""
        return lm_head if self.vocab_ids is None else lm_head[self.vocab_ids]

    def target_ids(self, draft_ids: Tensor) -> Tensor:
        return draft_ids if self.vocab_ids is None else self.vocab_ids[draft_ids]

    def draft_ids(self, target_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Draft ids, and where there is one; elsewhere the id is any valid one."""
        if self.vocab_ids is None:
            return target_ids, torch.ones_like(target_ids, dtype=torch.bool)
        ids = torch.searchsorted(self.vocab_ids, target_ids).clamp(max=len(self.vocab_ids) - 1)
        return ids, self.vocab_ids[ids] == target_ids

    def context(self, features: Tensor) -> Context:
        """Keys and values of features ``[num_sequences, num_tokens, feature_size]``.

        Positions are 0, 1, …; the rows after a sequence's last token may hold anything finite.
        """
        positions = torch.arange(features.shape[1], device=features.device)
        u = self.hidden_norm(self.fc(features))
        return [layer.self_attn.keys_values(u, positions) for layer in self.layers]

    def forward(self, context: Context, anchor_embed: Tensor, anchors: Tensor) -> Tensor:
        """Blocks that know nothing of each other.

        Args:
            context: of the sequences; a block sees the rows before its anchor, in the window.
            anchor_embed: ``[num_sequences, num_blocks, hidden_size]`` rows of the target's
                embedding.
            anchors: ``[num_sequences, num_blocks]`` positions of the anchors.

        Returns:
            ``[num_sequences, num_blocks, block_size - 1, hidden_size]``: normed, ready for the
            target's lm_head.
        """
        num_masks = self.shape.block_size - 1
        masks = self.mask_embedding.expand(*anchors.shape, num_masks, -1)
        y = torch.cat([anchor_embed[:, :, None], masks], dim=2)
        positions = block_positions(anchors, self.shape.block_size)
        num_tokens = context[0][0].shape[1]
        hidden = context_hidden(positions, num_tokens, self.shape.window_tokens)
        for layer, keys_values in zip(self.layers, context, strict=True):
            a = layer.input_layernorm(y)
            y = y + layer.self_attn(a, positions, keys_values, hidden)
            y = y + layer.mlp(layer.post_attention_layernorm(y))
        return self.norm(y[:, :, 1:])
