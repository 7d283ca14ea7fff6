"""The shapes that ``mimo-rt kbench`` measures: matrices and attention of published models.

``pro`` is MiMo-V2.5-Pro on one device, ``pro-r8`` the slice of one rank of eight (expert width 256),
``flash`` MiMo-V2-Flash, ``gpt-oss-120b`` the experts of that model, ``edges`` those between tasks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

FORMATS = ("mxfp4", "fp8_e4m3", "bf16", "f32")
CPU_TOKENS = (1, 2, 4, 8, 64, 512)
CUDA_TOKENS = (1, 2, 4, 8, 16, 32, 64)
_STEP_TOKENS = (1, 8)  # where more tokens are more of the same
_GEMM_TOKENS = (128, 512, 2048)
_FP8_TOKENS = (8, 64)
_BLOCK_TOKENS = (8,)  # of a draft
_EDGES = "edges"
_CPU_EDGES = ("counter", "gather")


@dataclass(frozen=True)
class Shape:
    """One operation of one model.

    Attributes:
        fields: those of ``KernelCase`` for a gemm or an attention kernel; empty: not on a CPU. Of
            an edge: the number of workers, if not all.
        cuda: all of ``KernelCase`` for a kernel that a GPU has instead, its name included.
    """

    model: str
    op: str
    format: str
    fields: dict[str, int] = field(default_factory=dict)
    cuda: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model}/{self.op}"

    @property
    def is_attention(self) -> bool:
        return "num_keys" in self.fields

    @property
    def is_edge(self) -> bool:
        return self.model == _EDGES

    def kernel_case(self, backend: str, num_tokens: int) -> dict[str, Any]:
        """Fields of ``KernelCase``: a CPU multiplies one expert, a GPU all active ones."""
        common = {"format": self.format, "num_tokens": num_tokens}
        if self.is_edge:
            return {"kernel": f"edge_{self.op}", **common, **self.fields}
        if self.cuda and backend == "cuda":
            return {**common, **self.cuda}
        return {"kernel": "attention" if self.is_attention else "gemm", **common, **self.fields}

    def is_on(self, backend: str) -> bool:
        """Whether the backend has a kernel for it."""
        if self.is_edge:
            return backend == "cuda" or self.op in _CPU_EDGES
        if backend != "cuda":
            return bool(self.fields)
        return bool(self.cuda) or self.format in ("fp8_e4m3", "bf16")

    def takes_int8(self, backend: str) -> bool:
        """Whether INT8 activations make a difference to it."""
        return backend != "cuda" and self.format == "mxfp4"

    def tokens(self, backend: str) -> tuple[int, ...]:
        """How many tokens are usual."""
        if self.is_edge:
            return (1,)
        if self.op.endswith(("_gemm", "_mxfp8")):
            return _GEMM_TOKENS
        if self.op.endswith("_fp8"):
            return _FP8_TOKENS
        if self.op in ("attention_draft", "sample_verify"):
            return _BLOCK_TOKENS
        if self.is_attention or not self.fields:
            return _STEP_TOKENS
        return CUDA_TOKENS if backend == "cuda" else CPU_TOKENS


def _experts(
    model: str, num_experts: int, experts_per_token: int, hidden: int, width: int, segments: int = 8
) -> list[Shape]:
    layer = {"num_experts": num_experts, "experts_per_token": experts_per_token,
             "hidden_size": hidden, "width": width}
    gate_up, down = {"rows": 2 * width, "k": hidden}, {"rows": hidden, "k": width}
    shapes = []
    for kind in ("", "_fp8", "_gemm", "_mxfp8"):  # a CPU has one kernel for all numbers of tokens
        for op, fields, more in (("expert_gate_up", gate_up, {}),
                                 ("expert_down", down, {"num_segments": segments})):
            cuda = {"kernel": op + kind, **layer, **({} if kind == "_mxfp8" else more)}
            shapes.append(Shape(model, op + kind, "mxfp4", {} if kind else fields, cuda))
    return shapes


def _gemm(model: str, op: str, format_: str, rows: int, k: int) -> Shape:
    return Shape(model, op, format_, {"rows": rows, "k": k})


def _fused(
    model: str, hidden: int, heads: tuple[int, int], o_proj: int, vocab_size: int, dense: int = 0
) -> list[Shape]:
    """Matrices with what a GPU does before and after their products, and the norm alone.

    Args:
        heads: q heads and kv heads.
        o_proj: its k.
        vocab_size: rows of ``lm_head``.
        dense: width of the gated MLP; 0: none.
    """

    def one(op: str, format_: str, kernel: str, **cuda: int) -> Shape:
        return Shape(model, op, format_, {}, {"kernel": kernel, **cuda})

    num_q_heads, num_kv_heads = heads
    qkv = (num_q_heads + num_kv_heads) * 192 + num_kv_heads * 128
    shapes = [
        one("qkv_normed", "fp8_e4m3", "gemm_normed", rows=qkv, k=hidden),
        one("qkv_stored", "fp8_e4m3", "gemm_qkv", k=hidden, num_kv_heads=num_kv_heads,
            num_q_per_kv=num_q_heads // num_kv_heads, qk_head_dim=192, v_head_dim=128),
        one("o_proj_residual", "bf16", "gemm_residual", rows=hidden, k=o_proj),
        one("lm_head_best", "bf16", "gemm_best", rows=vocab_size, k=hidden),
        one("rms_norm", "bf16", "rms_norm", hidden_size=hidden),
    ]
    if dense:
        shapes.append(one("dense_act", "fp8_e4m3", "gemm_gate_up", rows=2 * dense, k=hidden))
    return shapes


def _draft(model: str, num_kv_heads: int) -> Shape:
    """Attention of a draft's block: all of it, and a window of the text before."""
    return Shape(model, "attention_draft", "bf16", {}, {
        "kernel": "attention_draft", "num_kv_heads": num_kv_heads, "num_q_per_kv": 16,
        "qk_head_dim": 128, "v_head_dim": 128, "num_keys": 1024, "window_tokens": 1024,
        "split_keys": 64})


def _attention(
    model: str, window_heads: tuple[int, int], full_heads: tuple[int, int]
) -> list[Shape]:
    """``..._heads``: q heads and kv heads."""

    def one(op: str, heads: tuple[int, int], num_keys: int, **cuda: int) -> Shape:
        fields = {"num_kv_heads": heads[1], "num_q_per_kv": heads[0] // heads[1],
                  "qk_head_dim": 192, "v_head_dim": 128, "num_keys": num_keys}
        return Shape(model, op, "bf16", fields, {"kernel": "attention", **fields, **cuda})

    return [one("attention_window", window_heads, 128, window_tokens=128, split_keys=64),
            one("attention_full", full_heads, 4096, split_keys=256)]


def _replicated(
    model: str, num_experts: int, experts_per_token: int, hidden: int, vocab_size: int
) -> list[Shape]:
    """What every rank does in full: the router, and the choice of the next token."""
    choice = {"num_experts": num_experts, "experts_per_token": experts_per_token}
    return [
        Shape(model, "router", "f32", {"rows": num_experts, "k": hidden},
              {"kernel": "router_logits", "num_experts": num_experts, "hidden_size": hidden}),
        Shape(model, "select_experts", "f32", {}, {"kernel": "select_experts", **choice}),
        Shape(model, "route", "f32", {}, {"kernel": "route", "hidden_size": hidden, **choice}),
        *(Shape(model, name, "f32", {}, {"kernel": name, "vocab_size": vocab_size})
          for name in ("sample_best", "sample", "sample_filtered", "sample_verify")),
    ]


SHAPES: tuple[Shape, ...] = (
    *_experts("pro", 384, 8, 6144, 2048),
    _gemm("pro", "qkv", "fp8_e4m3", 27136, 6144),
    _gemm("pro", "o_proj", "bf16", 6144, 16384),
    _gemm("pro", "dense_gate_up", "fp8_e4m3", 32768, 6144),
    _gemm("pro", "dense_down", "fp8_e4m3", 6144, 16384),
    _gemm("pro", "lm_head", "bf16", 152576, 6144),
    *_replicated("pro", 384, 8, 6144, 152576),
    *_attention("pro", (128, 8), (128, 8)),
    *_fused("pro", 6144, (128, 8), 16384, 152576, 16384),
    _draft("pro", 8),
    *_experts("pro-r8", 384, 8, 6144, 256, segments=1),
    _gemm("pro-r8", "qkv", "fp8_e4m3", 3392, 6144),
    _gemm("pro-r8", "o_proj", "bf16", 6144, 2048),
    _gemm("pro-r8", "dense_gate_up", "fp8_e4m3", 4096, 6144),
    _gemm("pro-r8", "dense_down", "fp8_e4m3", 6144, 2048),
    _gemm("pro-r8", "lm_head", "bf16", 19072, 6144),
    *_replicated("pro-r8", 384, 8, 6144, 152576),
    *_attention("pro-r8", (16, 1), (16, 1)),
    *_fused("pro-r8", 6144, (16, 1), 2048, 19072, 2048),
    _draft("pro-r8", 1),
    *_experts("flash", 256, 8, 4096, 2048),
    _gemm("flash", "qkv", "fp8_e4m3", 13568, 4096),  # of a full layer: 64 q heads, 4 kv heads
    _gemm("flash", "o_proj", "bf16", 4096, 8192),
    _gemm("flash", "lm_head", "bf16", 152576, 4096),
    *_replicated("flash", 256, 8, 4096, 152576),
    *_attention("flash", (64, 8), (64, 4)),
    *_fused("flash", 4096, (64, 4), 8192, 152576),
    *_experts("gpt-oss-120b", 128, 4, 2880, 2880),
    *(Shape(_EDGES, op, "u32") for op in ("same_worker", "tag", *_CPU_EDGES)),
)
MODELS = tuple(dict.fromkeys(shape.model for shape in SHAPES))
OPS = tuple(dict.fromkeys(shape.op for shape in SHAPES))


def choose(kernels: Sequence[str], shape: str) -> list[Shape]:
    """Shapes whose op or format is one of ``kernels`` (none: all of them); for "edges" all edges.

    Args:
        shape: a model, MODEL/OP, or ROWSxK for matrices of the formats in ``kernels``.

    Raises:
        ValueError: nothing of that name.
    """
    if _EDGES in kernels:
        edges = [s for s in SHAPES if s.is_edge]
        others = [name for name in kernels if name != _EDGES]
        return edges + (choose(others, shape) if others else [])
    if size := re.fullmatch(r"(\d{1,7})x(\d{1,7})", shape):
        if not kernels or set(kernels) - set(FORMATS):
            raise ValueError(f"--shape {shape}: name the formats as well, of {', '.join(FORMATS)}.")
        return [_gemm("custom", shape, name, int(size[1]), int(size[2])) for name in kernels]
    unknown = [name for name in kernels if name not in (*OPS, *FORMATS)]
    if unknown:
        raise ValueError(
            f"kernel: expected one of {', '.join((*OPS, *FORMATS))}, got '{unknown[0]}'."
        )
    chosen = [s for s in SHAPES if shape in (s.model, s.name)]
    if not chosen:
        raise ValueError(
            f"--shape: expected one of {', '.join(MODELS)}, MODEL/OP or ROWSxK, got '{shape}'."
        )
    chosen = [s for s in chosen if not kernels or s.op in kernels or s.format in kernels]
    if not chosen:
        raise ValueError(f"--shape {shape}: has no {' or '.join(kernels)}.")
    return chosen
