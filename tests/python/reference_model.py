"""The model in plain numpy: the truth for small checkpoints, kept apart from all other code.

Nothing here imports mimo_rt. The reader, the number formats and the forward pass are written as
directly as possible from the definitions; weights are expanded exactly, activations are never
rounded below ``dtype`` (float64 unless told otherwise). Step numbers (1) to (14) follow the
description of the forward pass: embedding, norms, qkv, value scale, RoPE, scores, mask, sink,
output, dense MLP, router, experts, logits.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

STORAGE = {"I64": "<i8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "U8": "u1"}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def e4m3_value(code: int) -> float:
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 15, code & 7
    if code & 0x7F == 0x7F:
        return float("nan")
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


E4M3 = np.array([e4m3_value(code) for code in range(256)])


def read_tensors(directory):
    """Every tensor of a checkpoint as (dtype name, raw array mapped from the file)."""
    tensors = {}
    for path in sorted(Path(directory).glob("*.safetensors")):
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        header_bytes = int(raw[:8].view("<u8")[0])
        header = json.loads(bytes(raw[8 : 8 + header_bytes]))
        header.pop("__metadata__", None)
        for name, info in header.items():
            begin, end = (8 + header_bytes + offset for offset in info["data_offsets"])
            data = np.frombuffer(raw[begin:end].tobytes(), STORAGE[info["dtype"]])
            tensors[name] = (info["dtype"], data.reshape(info["shape"]))
    return tensors


def silu(x):
    return x / (1 + np.exp(-x))


class ReferenceModel:
    """A checkpoint directory that can be evaluated on a list of token ids.

    Args:
        directory: holds config.json and the safetensors files.
        window_tokens: keys a query of a window layer may see, itself included; ``None`` takes
            ``sliding_window`` of the config.
        dtype: np.float64, or np.float32 for large models.
        overrides: replace fields of config.json (value scale, rope_theta, …) without touching
            the file; for negative controls.
    """

    def __init__(self, directory, *, window_tokens=None, dtype=np.float64, **overrides):
        self.config = json.loads((Path(directory) / "config.json").read_text())
        unknown = set(overrides) - set(self.config)
        assert not unknown, f"not in config.json: {unknown}"
        self.config |= overrides
        self.window_tokens = window_tokens or self.config["sliding_window"]
        self.dtype = dtype
        self.tensors = read_tensors(directory)
        # One entry per MoE layer of the last forward pass: {"layer", "scores", "chosen"}, scores
        # including the correction bias. A test can see how near a choice was to a tie.
        self.routing = []
        self._cache = {}

    # --- weights ------------------------------------------------------------------------------

    def plain(self, name):
        if name not in self._cache:
            dtype, data = self.tensors[name]
            if dtype == "BF16":
                data = (data.astype(np.uint32) << 16).view(np.float32)
            else:
                assert dtype in ("F32", "F16"), f"{name} is {dtype}"
            self._cache[name] = data.astype(self.dtype)
        return self._cache[name]

    def linear(self, module, chunks=1):
        """The weight [rows, cols] of a linear module, whatever its format."""
        if module not in self._cache:
            self._cache[module] = self._expand(module, chunks)
        return self._cache[module]

    def _expand(self, module, chunks):
        dtype, data = self.tensors[f"{module}.weight"]
        if dtype == "F8_E4M3":
            return self._expand_fp8(module, data, chunks)
        if dtype == "U8":
            return self._expand_mxfp4(module, data)
        return self.plain(f"{module}.weight")

    def _expand_fp8(self, module, codes, chunks):
        scale = self.tensors[f"{module}.weight_scale_inv"][1].astype(self.dtype)
        rows, cols = codes.shape
        chunk_rows = rows // chunks
        chunk_scale_rows = (chunk_rows + 127) // 128
        assert scale.shape == (chunks * chunk_scale_rows, (cols + 127) // 128), module
        weight = E4M3.astype(self.dtype)[codes]
        for row in range(rows):
            scale_row = (row // chunk_rows) * chunk_scale_rows + (row % chunk_rows) // 128
            weight[row] *= np.repeat(scale[scale_row], 128)[:cols]
        return weight

    def _expand_mxfp4(self, module, packed):
        scale = self.tensors[f"{module}.weight_scale"][1]
        rows, half_cols = packed.shape
        codes = np.empty((rows, 2 * half_cols), dtype=np.uint8)
        codes[:, 0::2] = packed & 15  # low nibble first
        codes[:, 1::2] = packed >> 4
        factor = 2.0 ** (scale.astype(np.float64) - 127)
        return (E2M1[codes] * np.repeat(factor, 32, axis=1)).astype(self.dtype)

    # --- forward ------------------------------------------------------------------------------

    def forward(self, token_ids):
        """Logits [num_tokens, vocab_size] of the tokens at positions 0, 1, …"""
        self.routing = []
        x = self.plain("model.embed_tokens.weight")[np.asarray(token_ids)]  # (1)
        for layer_idx in range(self.config["num_hidden_layers"]):  # (3)
            prefix = f"model.layers.{layer_idx}"
            h = self.rms_norm(x, f"{prefix}.input_layernorm")
            x = x + self.attention(h, layer_idx)
            h = self.rms_norm(x, f"{prefix}.post_attention_layernorm")
            is_moe = self.config["moe_layer_freq"][layer_idx]
            x = x + (self.moe(h, layer_idx) if is_moe else self.mlp(h, f"{prefix}.mlp"))
        x = self.rms_norm(x, "model.norm")  # (14)
        tied = self.config["tie_word_embeddings"]
        return x @ self.plain("model.embed_tokens.weight" if tied else "lm_head.weight").T

    def rms_norm(self, x, module):  # (2)
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        epsilon = self.config["layernorm_epsilon"]
        return x / np.sqrt(mean_square + epsilon) * self.plain(f"{module}.weight")

    def qkv(self, h, layer_idx):  # (4)
        """q, k, v as [num_tokens, heads, head size]."""
        c = self.config
        swa = "swa_" if c["hybrid_layer_pattern"][layer_idx] else ""
        num_q, num_kv = c[f"{swa}num_attention_heads"], c[f"{swa}num_key_value_heads"]
        dk, dv = c[f"{swa}head_dim"], c[f"{swa}v_head_dim"]
        attn = f"model.layers.{layer_idx}.self_attn"
        chunks = c["num_key_value_heads"]
        if f"{attn}.qkv_proj.weight" in self.tensors:
            z = h @ self.linear(f"{attn}.qkv_proj", chunks).T
            q, k, v = [], [], []
            for chunk in np.split(z, chunks, axis=1):
                q_end = num_q // chunks * dk
                k_end = q_end + num_kv // chunks * dk
                q.append(chunk[:, :q_end])
                k.append(chunk[:, q_end:k_end])
                v.append(chunk[:, k_end:])
            q, k, v = (np.concatenate(part, axis=1) for part in (q, k, v))
        else:
            q, v = (h @ self.linear(f"{attn}.{name}_proj").T for name in "qv")
            # On full layers the scale blocks of k_proj restart at every head.
            k = h @ self.linear(f"{attn}.k_proj", 1 if swa else num_kv).T
        tokens = len(h)
        return (
            q.reshape(tokens, num_q, dk),
            k.reshape(tokens, num_kv, dk),
            v.reshape(tokens, num_kv, dv),
        )

    def rotate(self, u, is_windowed):  # (6)
        """u [num_tokens, heads, head size], positions 0, 1, …"""
        head_dim = u.shape[-1]
        rotary_dim = int(head_dim * self.config["partial_rotary_factor"])
        theta = self.config["swa_rope_theta" if is_windowed else "rope_theta"]
        half = rotary_dim // 2
        frequency = float(theta) ** (-2.0 * np.arange(half) / rotary_dim)
        angle = np.arange(len(u))[:, None, None] * frequency
        cos, sin = np.cos(angle).astype(self.dtype), np.sin(angle).astype(self.dtype)
        a, b = u[..., :half], u[..., half:rotary_dim]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, u[..., rotary_dim:]], axis=-1)

    def attention(self, h, layer_idx):
        is_windowed = bool(self.config["hybrid_layer_pattern"][layer_idx])
        attn = f"model.layers.{layer_idx}.self_attn"
        q, k, v = self.qkv(h, layer_idx)
        v = v * self.config["attention_value_scale"]  # (5)
        q, k = self.rotate(q, is_windowed), self.rotate(k, is_windowed)
        num_tokens, num_q, dk = q.shape
        q_per_kv = num_q // k.shape[1]
        distance = np.arange(num_tokens)[:, None] - np.arange(num_tokens)[None, :]
        hidden = distance < 0  # (8)
        if is_windowed:
            hidden |= distance >= self.window_tokens
        has_sink = f"{attn}.attention_sink_bias" in self.tensors
        sinks = self.plain(f"{attn}.attention_sink_bias") if has_sink else [-np.inf] * num_q
        out = []
        for head in range(num_q):
            scores = q[:, head] @ k[:, head // q_per_kv].T / np.sqrt(self.dtype(dk))  # (7)
            scores = np.where(hidden, -np.inf, scores)
            largest = np.maximum(scores.max(axis=1, keepdims=True), sinks[head])  # (9)
            weight = np.exp(scores - largest)
            total = weight.sum(axis=1, keepdims=True) + np.exp(sinks[head] - largest)
            out.append(weight / total @ v[:, head // q_per_kv])  # (10)
        return np.concatenate(out, axis=1) @ self.linear(f"{attn}.o_proj").T

    def mlp(self, h, module):  # (11), (13)
        gate = h @ self.linear(f"{module}.gate_proj").T
        up = h @ self.linear(f"{module}.up_proj").T
        return (silu(gate) * up) @ self.linear(f"{module}.down_proj").T

    def moe(self, h, layer_idx):  # (12)
        c = self.config
        mlp = f"model.layers.{layer_idx}.mlp"
        sigma = 1 / (1 + np.exp(-(h @ self.plain(f"{mlp}.gate.weight").T)))
        scores = sigma + self.plain(f"{mlp}.gate.e_score_correction_bias")
        # A stable sort of the negated scores puts the lower index first among equals.
        chosen = np.argsort(-scores, axis=1, kind="stable")[:, : c["num_experts_per_tok"]]
        self.routing.append({"layer": layer_idx, "scores": scores, "chosen": chosen})
        weight = np.take_along_axis(sigma, chosen, axis=1)
        if c["norm_topk_prob"]:
            weight = weight / (weight.sum(axis=1, keepdims=True) + 1e-20)
        weight = weight * (c.get("routed_scaling_factor") or 1.0)
        out = np.zeros_like(h)
        for expert in range(c["n_routed_experts"]):
            token, slot = np.nonzero(chosen == expert)
            if len(token):
                y = self.mlp(h[token], f"{mlp}.experts.{expert}")
                out[token] += weight[token, slot][:, None] * y
        return out


def reference_forward(directory, token_ids, **options):
    """Logits float64 [num_tokens, vocab_size]; options as for :class:`ReferenceModel`."""
    return ReferenceModel(directory, **options).forward(token_ids)
