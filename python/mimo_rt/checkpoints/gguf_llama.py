"""Read a llama-type GGUF file: weights as float32 in Hugging Face order, and the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import _C
from .text_files import ByteLevelVocab

_CONTROL_TOKEN = 3  # tokenizer.ggml.token_type
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a llama-type model, from the metadata of the file."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_q_heads: int
    num_kv_heads: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_q_heads


def half_split_rotary(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Undo the row order that llama.cpp gives q and k.

    GGUF puts the two elements of a rotary pair next to each other (0, d/2, 1, d/2 + 1, …);
    Hugging Face checkpoints keep the halves apart (0, 1, …, d/2, d/2 + 1, …).
    """
    rows, cols = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, cols)
    return pairs.swapaxes(1, 2).reshape(rows, cols)


def require_gguf() -> Any:
    """The package `gguf`, which is an extra; UnavailableError says how to get it."""
    try:
        import gguf
    except ImportError as error:
        raise _C.UnavailableError(
            "[demo] reading GGUF files needs the package 'gguf': pip install 'mimo_rt[demo]'."
        ) from error
    return gguf


class LlamaGguf:
    """An open GGUF file; weights are dequantised when asked for."""

    def __init__(self, path: Path) -> None:
        gguf = require_gguf()
        self._dequantize = gguf.quants.dequantize
        self._reader = gguf.GGUFReader(str(path))
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        architecture = self.field("general.architecture")
        if architecture != "llama":
            raise _C.BadFormatError(
                f"[GGUF] '{path}': expected architecture llama, got {architecture}."
            )
        self.shape = LlamaShape(
            num_layers=self.field("llama.block_count"),
            hidden_size=self.field("llama.embedding_length"),
            intermediate_size=self.field("llama.feed_forward_length"),
            num_q_heads=self.field("llama.attention.head_count"),
            num_kv_heads=self.field("llama.attention.head_count_kv"),
            vocab_size=self.field("llama.vocab_size"),
            max_position_embeddings=self.field("llama.context_length"),
            rope_theta=self.field("llama.rope.freq_base"),
            # Stored as float32: 9.99999975e-06 means 1e-05.
            rms_norm_eps=float(f"{self.field('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        )

    def field(self, key: str) -> Any:
        field = self._reader.get_field(key)
        if field is None:
            raise _C.BadFormatError(f"[GGUF] metadata '{key}' is missing.")
        return field.contents()

    def has(self, name: str) -> bool:
        """Whether the file holds the GGUF tensor ``name``."""
        return f"{name}.weight" in self._tensors

    def weight(self, name: str) -> np.ndarray:
        """A tensor as float32 by its GGUF name, e.g. "blk.0.attn_q" or "token_embd"."""
        tensor = self._tensors.get(f"{name}.weight")
        if tensor is None:
            raise _C.MissingTensorError(f"[GGUF] tensor '{name}.weight' is missing.")
        values = self._dequantize(tensor.data, tensor.tensor_type)
        heads = {"attn_q": self.shape.num_q_heads, "attn_k": self.shape.num_kv_heads}
        num_heads = heads.get(name.rsplit(".", 1)[-1])
        return values if num_heads is None else half_split_rotary(values, num_heads)

    def layer_weights(self, layer_idx: int) -> dict[str, np.ndarray]:
        """The weights of one layer under their Hugging Face names ("mlp.gate_proj", …)."""
        return {
            name: self.weight(f"blk.{layer_idx}.{gguf_name}")
            for gguf_name, name in _LAYER_NAMES.items()
        }

    def vocab(self) -> ByteLevelVocab:
        """The byte-level BPE vocabulary; other tokenizer types are refused."""
        kind, pre = self.field("tokenizer.ggml.model"), self.field("tokenizer.ggml.pre")
        if kind != "gpt2" or pre not in ("smollm", "gpt-2"):
            raise _C.BadFormatError(
                f"[GGUF] tokenizer: expected gpt2 with pre-tokenizer smollm or gpt-2, "
                f"got {kind} with {pre}."
            )
        types = self.field("tokenizer.ggml.token_type")
        return ByteLevelVocab(
            tokens=self.field("tokenizer.ggml.tokens"),
            merges=self.field("tokenizer.ggml.merges"),
            special_ids=[i for i, kind in enumerate(types) if kind == _CONTROL_TOKEN],
            split_digits=pre == "smollm",
        )
