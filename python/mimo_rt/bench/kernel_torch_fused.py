"""A norm, and products with what goes before or after them, in PyTorch, for kernel_baseline.py."""

from __future__ import annotations

from functools import partial
from typing import Any

from .kernel_torch import Call, copies_of, multiply_fp8, to_fp8
from .kernel_torch_qkv import make_store, qkv_rows

FUSED = {"gemm_normed": "rms_norm", "gemm_gate_up": "silu", "gemm_residual": "add",
         "gemm_best": "argmax", "gemm_qkv": "rotary, index_copy"}
_EPS = 1e-5  # as in csrc/kbench


def normalise(torch: Any, x: Any, weight: Any) -> Any:
    """RMS norm of the rows of ``x``."""
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, _EPS)


def finish(torch: Any, kernel: str, residual: Any, y: Any) -> Any:
    """What a kernel of ``FUSED`` but "gemm_qkv" makes of a product; of the gated MLP, gate comes before up."""
    if kernel == "gemm_gate_up":
        gate, up = y.chunk(2, -1)
        return torch.nn.functional.silu(gate) * up
    if kernel == "gemm_residual":
        return residual + y
    return y.argmax(-1) if kernel == "gemm_best" else y


def make_fused(
    torch: Any, device: str, dtype: Any, is_by_row: bool | None, kernel_case: Any,
    rotation_bytes: int,
) -> Call:
    """A call of a kernel of ``FUSED``.

    Args:
        is_by_row: of the scales of FP8 weights, for which the call rounds the activations; None:
            the weights are of ``dtype``.
    """
    c = kernel_case
    rows = qkv_rows(c) if c.kernel == "gemm_qkv" else c.rows
    random = partial(torch.randn, dtype=dtype, device=device)
    x, norm, residual = random((c.num_tokens, c.k)), random((c.k,)), random((c.num_tokens, rows))
    weights, scale = random((rows, c.k)), None
    if is_by_row is not None:
        weights, scale = to_fp8(torch, weights, is_by_row)
    copies = copies_of(weights, rotation_bytes)
    complete = partial(finish, torch, c.kernel, residual)
    if c.kernel == "gemm_qkv":
        complete = make_store(torch, device, dtype, c)

    def call(index: int) -> Any:
        given = normalise(torch, x, norm) if c.kernel == "gemm_normed" else x
        matrix = copies[index % len(copies)]
        if scale is None:
            y = torch.nn.functional.linear(given, matrix)
        else:
            y = multiply_fp8(torch, to_fp8(torch, given, is_by_row), (matrix, scale))
        return complete(y)

    return call


def make_norm(torch: Any, device: str, dtype: Any, kernel_case: Any, rotation_bytes: int) -> Call:
    """A call of ``normalise``."""
    c = kernel_case
    rows = copies_of(
        torch.randn((c.num_tokens, c.hidden_size), dtype=dtype, device=device), rotation_bytes
    )
    weight = torch.randn(c.hidden_size, dtype=dtype, device=device)
    return lambda index: normalise(torch, rows[index % len(rows)], weight)
