"""The DFlash draft in plain numpy float64: one block at a time, straight from the definition.

Nothing here imports mimo_rt. `features` are the target's residual streams after the captured layers, concatenated,
one row per position from 0; a block has its anchor at position `anchor_pos` and masks after it.
"""

import json
from pathlib import Path

import numpy as np
from reference_model import read_tensors, silu


def rms_norm(x, weight, epsilon):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


class ReferenceDraft:
    """A `dflash/` folder; `mask` is the mask embedding [hidden_size]. `overrides` replace fields for controls."""

    def __init__(self, directory, mask, **overrides):
        config = json.loads((Path(directory) / "config.json").read_text())
        self.c = config | config["dflash_config"] | overrides
        self.mask = np.asarray(mask, dtype=np.float64)
        stored = {name: data for name, (_, data) in read_tensors(directory).items()}
        d2t = stored.pop("d2t", None)
        self.vocab_ids = None if d2t is None else [i + int(step) for i, step in enumerate(d2t)]
        self.tensors = {
            name: (data.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
            for name, data in stored.items()
        }

    def norm(self, x, name):
        return rms_norm(x, self.tensors[f"{name}.weight"], self.c["rms_norm_eps"])

    def rotate(self, head, position):
        dims = int(self.c["head_dim"] * self.c["partial_rotary_factor"])
        half = dims // 2
        out = head.copy()
        for j in range(half):
            angle = position * float(self.c["rope_theta"]) ** (-2.0 * j / dims)
            out[j] = head[j] * np.cos(angle) - head[j + half] * np.sin(angle)
            out[j + half] = head[j + half] * np.cos(angle) + head[j] * np.sin(angle)
        return out

    def heads(self, x, name, position):
        """q or k heads of one row: projection, norm of every head, rotation."""
        rows = (self.tensors[f"{name}_proj.weight"] @ x).reshape(-1, self.c["head_dim"])
        return [self.rotate(self.norm(row, f"{name}_norm"), position) for row in rows]

    def values(self, x, attn):
        rows = self.tensors[f"{attn}.v_proj.weight"] @ x * self.c["attention_value_scale"]
        return rows.reshape(-1, self.c["v_head_dim"])

    def visible(self, t, j, anchor_pos):
        """Whether row t of the block sees context position j."""
        window = self.c["swa_window_size"] if self.c["use_swa"] else None
        return j < anchor_pos and (window is None or anchor_pos + t - j < window)

    def block(self, features, anchor_embed, anchor_pos):
        """Outputs [block_size - 1, hidden_size] of slots 1, 2, …, before the lm_head."""
        size = self.c["block_size"]
        context = self.norm(features @ self.tensors["fc.weight"].T, "hidden_norm")
        y = np.stack([anchor_embed] + [self.mask] * (size - 1))
        for layer in range(self.c["num_hidden_layers"]):
            attn = f"layers.{layer}.self_attn"
            a = self.norm(y, f"layers.{layer}.input_layernorm")
            context_k = [self.heads(u, f"{attn}.k", j) for j, u in enumerate(context)]
            context_v = [self.values(u, attn) for u in context]
            block_k = [self.heads(a[t], f"{attn}.k", anchor_pos + t) for t in range(size)]
            block_v = [self.values(a[t], attn) for t in range(size)]
            rows = []
            for t in range(size):
                seen = [j for j in range(len(context)) if self.visible(t, j, anchor_pos)]
                k = [context_k[j] for j in seen] + block_k
                v = [context_v[j] for j in seen] + block_v
                rows.append(self.attend(self.heads(a[t], f"{attn}.q", anchor_pos + t), k, v, attn))
            y = y + np.stack(rows) @ self.tensors[f"{attn}.o_proj.weight"].T
            h = self.norm(y, f"layers.{layer}.post_attention_layernorm")
            gate, up, down = (self.tensors[f"layers.{layer}.mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
            y = y + (silu(h @ gate.T) * (h @ up.T)) @ down.T
        return self.norm(y, "norm")[1:]

    def attend(self, q, k, v, attn):
        sinks = self.tensors.get(f"{attn}.attention_sink_bias")
        q_per_kv = len(q) // self.c["num_key_value_heads"]
        out = []
        for head, row in enumerate(q):
            kv = head // q_per_kv
            scores = np.array([row @ key[kv] for key in k]) / np.sqrt(self.c["head_dim"])
            weight = np.exp(scores)
            total = weight.sum() + (np.exp(sinks[head]) if sinks is not None else 0.0)
            out.append(weight / total @ np.array([value[kv] for value in v]))
        return np.concatenate(out)
