"""What follows the product of q, k and v in PyTorch, for kernel_torch_fused.py: RoPE and the cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

_VALUE_SCALE = 0.612  # as in csrc/kbench
_CACHE_ROWS = 1024


def qkv_rows(kernel_case: Any) -> int:
    """Rows of the matrix: those of q, then of k, then of v."""
    c = kernel_case
    return c.num_kv_heads * ((c.num_q_per_kv + 1) * c.qk_head_dim + c.v_head_dim)


def rotate(torch: Any, x: Any, cos: Any, sin: Any) -> Any:
    """RoPE of ``[tokens, heads, dim]``; ``cos`` and ``sin``: ``[tokens, 1, half of what rotates]``."""
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]), -1)


def store_qkv(
    torch: Any, kernel_case: Any, angles: tuple[Any, Any], slots: Any, cache: tuple[Any, Any], y: Any
) -> Any:
    """q of ``y`` ``[tokens, rows]``, rotated; k and v go to rows ``slots`` of the cache."""
    c = kernel_case
    sizes = [c.num_kv_heads * size
             for size in (c.num_q_per_kv * c.qk_head_dim, c.qk_head_dim, c.v_head_dim)]
    q, k, v = (part.unflatten(-1, (-1, dim)) for part, dim in
               zip(y.split(sizes, -1), (c.qk_head_dim, c.qk_head_dim, c.v_head_dim), strict=True))
    cache[0].index_copy_(0, slots, rotate(torch, k, *angles))
    cache[1].index_copy_(0, slots, v * _VALUE_SCALE)
    return rotate(torch, q, *angles)


def make_store(torch: Any, device: str, dtype: Any, kernel_case: Any) -> Callable[[Any], Any]:
    """``store_qkv`` for the tokens at the end of a cache, for a product."""
    c = kernel_case
    num_angles = c.qk_head_dim // 3 // 2  # 64 of 192 dimensions rotate, as in the published models
    angles = torch.randn((c.num_tokens, 1, num_angles), device=device)
    slots = torch.arange(_CACHE_ROWS - c.num_tokens, _CACHE_ROWS, device=device)
    cache = tuple(torch.zeros((_CACHE_ROWS, c.num_kv_heads, dim), dtype=dtype, device=device)
                  for dim in (c.qk_head_dim, c.v_head_dim))
    cos_sin = (angles.cos().to(dtype), angles.sin().to(dtype))
    return partial(store_qkv, torch, c, cos_sin, slots, cache)
