"""MXFP4 experts in Triton: a baseline on GPUs that reads the same bytes. Importing this needs Triton."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

NAME = f"triton {triton.__version__} dot_scaled mxfp4 x bfloat16"
_CODES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # E2M1 without its sign
_BLOCK_ROWS, _BLOCK_K, _MAX_BLOCK_COLUMNS = 128, 128, 128
_COLUMNS_OF_TILES = (5, 21, 40, 130)  # of 16, 32, 64 and 128 columns, the last two of them


@triton.jit
def _multiply(weights, scales, x, y, rows, k, columns, block_rows: tl.constexpr,
              block_columns: tl.constexpr, block_k: tl.constexpr):
    expert = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    column = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    code_k = tl.arange(0, block_k // 2)
    scale_k = tl.arange(0, block_k // 32)
    x_k = tl.arange(0, block_k)
    weights += (expert * rows + row[:, None]) * (k // 2)
    scales += (expert * rows + row[:, None]) * (k // 32)
    x += (expert * columns + column[None, :]) * k
    sums = tl.zeros((block_rows, block_columns), dtype=tl.float32)
    for begin in range(0, k, block_k):
        is_row = row[:, None] < rows
        code = tl.load(weights + begin // 2 + code_k[None, :],
                       is_row & (begin // 2 + code_k[None, :] < k // 2), other=0)
        scale = tl.load(scales + begin // 32 + scale_k[None, :],
                        is_row & (begin // 32 + scale_k[None, :] < k // 32), other=127)
        value = tl.load(x + begin + x_k[:, None],
                        (column[None, :] < columns) & (begin + x_k[:, None] < k), other=0.0)
        sums = tl.dot_scaled(code, scale, "e2m1", value, None, "bf16", sums)
    y += (expert * columns + column[None, :]) * rows + row[:, None]
    tl.store(y, sums.to(tl.bfloat16), (row[:, None] < rows) & (column[None, :] < columns))


def multiply_experts(weights: Any, scales: Any, x: Any, y: Any) -> None:
    """``y[e, c] = weights[e] @ x[e, c]`` for all experts.

    Args:
        weights: uint8 ``[experts, rows, k / 2]``, two E2M1 codes per byte, the even k lower.
        scales: uint8 ``[experts, rows, k / 32]``, E8M0.
        x: bfloat16 ``[experts, columns, k]``.
        y: bfloat16 ``[experts, columns, rows]``, written.
    """
    experts, columns, k = x.shape
    rows = weights.shape[1]
    block_columns = min(max(triton.next_power_of_2(columns), 16), _MAX_BLOCK_COLUMNS)
    grid = (triton.cdiv(rows, _BLOCK_ROWS), triton.cdiv(columns, block_columns), experts)
    _multiply[grid](weights, scales, x, y, rows, k, columns, _BLOCK_ROWS, block_columns, _BLOCK_K)


def random_experts(torch: Any, shape: tuple[int, int, int], device: str) -> tuple[Any, Any]:
    """Random weights of ``[experts, rows, k]`` and their scales, about 1 in size."""
    experts, rows, k = shape
    weights = torch.randint(0, 256, (experts, rows, k // 2), dtype=torch.uint8, device=device)
    scales = torch.randint(124, 128, (experts, rows, k // 32), dtype=torch.uint8, device=device)
    return weights, scales


def dequantise(torch: Any, weights: Any, scales: Any) -> Any:
    """float32 ``[experts, rows, k]``."""
    table = torch.tensor((*_CODES, *(-code for code in _CODES)), device=weights.device)
    codes = torch.stack((weights & 15, weights >> 4), dim=-1).flatten(-2).long()
    return table[codes] * torch.exp2(scales.float() - 127).repeat_interleave(32, dim=-1)


def is_right(torch: Any, device: str) -> bool:
    """Whether the results are right in tiles of all sizes.

    Raises:
        Exception: of any kind, when this Triton does not compile the kernel for this device.
    """
    weights, scales = random_experts(torch, (2, 160, 160), device)
    exact_weights = dequantise(torch, weights, scales).double().transpose(1, 2)
    for columns in _COLUMNS_OF_TILES:
        x = torch.randn((2, columns, 160), dtype=torch.bfloat16, device=device)
        y = torch.empty((2, columns, 160), dtype=torch.bfloat16, device=device)
        multiply_experts(weights, scales, x, y)
        exact = x.double() @ exact_weights
        if not (y.double() - exact).norm() < 0.01 * exact.norm():
            return False
    return True
