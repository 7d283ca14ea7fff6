"""Attention, FP8 products, choosing experts and sampling in PyTorch, for kernel_baseline.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

SINK_LOGIT = 1.0  # of every head, as in csrc/kbench
SAMPLING = {  # temperature, top_k, top_p, as in csrc/kbench/cuda_sampling.cpp
    "sample_best": (0.0, 0, 1.0),
    "sample": (1.0, 0, 1.0),
    "sample_filtered": (0.8, 50, 0.95),
}
_FP8_MAX = 448.0  # of E4M3

Call = Callable[[int], Any]


def copies_of(first: Any, rotation_bytes: int) -> list[Any]:
    """A tensor and its copies, ``rotation_bytes`` in all, or the one."""
    num_bytes = first.numel() * first.element_size()
    return [first, *(first.clone() for _ in range(rotation_bytes // num_bytes))]


def attend_sdpa(torch: Any, q: Any, keys: Any, values: Any, mask: Any) -> Any:
    """Attention of ``[kv_heads, rows, dim]``, the q heads of a kv head being rows.

    ``mask`` is added to the scores.
    """
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(q[None], keys[None], values[None], attn_mask=mask)[0]


def attend_bmm(torch: Any, q: Any, keys: Any, values: Any, mask: Any) -> Any:
    """The same in single steps."""
    scores = torch.baddbmm(mask, q, keys.transpose(1, 2), alpha=1 / math.sqrt(q.shape[-1]))
    return torch.bmm(torch.softmax(scores, -1), values)


def attention_mask(torch: Any, kernel_case: Any, is_ring: bool, dtype: Any, device: str) -> Any:
    """``[q heads of a kv head * tokens, keys + 1]``: 0 where a token looks, and the sink's logit.

    The sink is the last key: its key and its value are 0.

    Args:
        is_ring: every token sees as many keys; else all that are before it. A draft's tokens see
            all that come after their window's first.
    """
    tokens, num_keys = kernel_case.num_tokens, kernel_case.num_keys
    token = torch.arange(tokens, device=device)[:, None]
    key = torch.arange(num_keys + tokens - 1, device=device)[None]
    if kernel_case.kernel == "attention_draft":
        is_seen = key >= token.clamp(max=num_keys - 1) * is_ring
    else:
        is_seen = (key < token + num_keys) & (key >= token * is_ring)
    mask = torch.full((tokens, key.shape[1] + 1), SINK_LOGIT, dtype=dtype, device=device)
    mask[:, :-1] = torch.where(is_seen, 0.0, -math.inf)
    return mask.repeat(kernel_case.num_q_per_kv, 1)


def make_attention(
    torch: Any, device: str, dtype: Any, attend: Any, kernel_case: Any, is_ring: bool,
    rotation_bytes: int,
) -> Call:
    """A call of ``attend`` with random keys and values."""
    c = kernel_case
    num_rows, num_stored = c.num_q_per_kv * c.num_tokens, c.num_keys + c.num_tokens - 1
    random = partial(torch.randn, dtype=dtype, device=device)
    q = random((c.num_kv_heads, num_rows, c.qk_head_dim))
    keys = random((c.num_kv_heads, num_stored + 1, c.qk_head_dim))
    values = random((c.num_kv_heads, num_stored + 1, c.v_head_dim))
    keys[:, -1] = values[:, -1] = 0
    mask = attention_mask(torch, c, is_ring, dtype, device)
    copies = [(keys, values)]
    num_bytes = (keys.numel() + values.numel()) * keys.element_size()
    copies += [(keys.clone(), values.clone()) for _ in range(rotation_bytes // num_bytes)]
    return lambda index: attend(torch, q, *copies[index % len(copies)], mask)


def to_fp8(torch: Any, x: Any, is_by_row: bool) -> tuple[Any, Any]:
    """E4M3 of ``x`` and its scale: of every row, ``[rows, 1]``, or of all."""
    size = x.abs().amax(-1, keepdim=True) if is_by_row else x.abs().amax()
    scale = (size.float() / _FP8_MAX).clamp(min=1e-12)
    return (x.float() / scale).to(torch.float8_e4m3fn), scale


def multiply_fp8(torch: Any, x: tuple[Any, Any], weights: tuple[Any, Any]) -> Any:
    """``x @ weights.T`` in BF16, of what ``to_fp8`` makes of ``[tokens, k]`` and ``[rows, k]``."""
    return torch._scaled_mm(x[0], weights[0].t(), scale_a=x[1], scale_b=weights[1].t(),
                            out_dtype=torch.bfloat16)


def make_fp8(
    torch: Any, device: str, is_by_row: bool, kernel_case: Any, rotation_bytes: int
) -> Call:
    """A product of FP8 weights and activations that were rounded beforehand.

    It reads the bytes that the kernel reads, and is less precise.
    """
    c = kernel_case
    random = partial(torch.randn, dtype=torch.bfloat16, device=device)
    x = to_fp8(torch, random((c.num_tokens, c.k)), is_by_row)
    weights, scale = to_fp8(torch, random((c.rows, c.k)), is_by_row)
    copies = copies_of(weights, rotation_bytes)
    return lambda index: multiply_fp8(torch, x, (copies[index % len(copies)], scale))


def select_experts(
    torch: Any, logits: Any, bias: Any, experts_per_token: int
) -> tuple[Any, Any, Any]:
    """The route of a layer: slots by expert, then by token.

    Args:
        logits: float32 ``[tokens, experts]``.

    Returns:
        ``slot_begin [experts + 1]``, and token and weight of each slot.
    """
    sigma = torch.sigmoid(logits)
    experts = torch.topk(sigma + bias, experts_per_token, sorted=False).indices
    weights = sigma.gather(1, experts)
    weights = (weights / weights.sum(1, keepdim=True)).flatten()
    slot_expert, order = experts.flatten().sort(stable=True)
    bounds = torch.arange(logits.shape[1] + 1, device=logits.device)
    return torch.searchsorted(slot_expert, bounds), order // experts_per_token, weights[order]


def candidates(
    torch: Any, logits: Any, temperature: float, top_k: int, top_p: float
) -> tuple[Any, Any | None]:
    """Probabilities, not normalised, and the tokens that have them; None: all tokens.

    ``top_p`` needs a ``top_k``.
    """
    tokens = None
    if top_k:
        logits, tokens = torch.topk(logits, top_k)
    p = torch.softmax(logits / temperature, -1)
    if top_p < 1:
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0.0)
    return p, tokens


def sample(torch: Any, logits: Any, temperature: float, top_k: int, top_p: float) -> Any:
    """A token of every row of ``[rows, vocab]``.

    ``torch.multinomial`` would draw as well, but waits for the GPU. Of exponential times with rates
    ``p`` each is the first with probability ``p``.
    """
    if temperature == 0:
        return logits.argmax(-1)
    p, tokens = candidates(torch, logits, temperature, top_k, top_p)
    drawn = (p / torch.empty_like(p).exponential_()).argmax(-1, keepdim=True)
    return (drawn if tokens is None else tokens.gather(1, drawn))[:, 0]


def verify(torch: Any, logits: Any, proposed: Any, drafts: Any) -> tuple[Any, Any]:
    """Exact rejection sampling: how many drafts stay, and the token after them.

    Args:
        logits: the target's, ``[drafts + 1, vocab]``, at temperature 1.
        proposed: probabilities that the drafts were drawn with, like ``logits``; the last row is 0.
    """
    p = torch.softmax(logits, -1)
    at = drafts[:, None]
    kept = torch.rand_like(p[:-1, 0]) * proposed[:-1].gather(1, at)[:, 0] < p[:-1].gather(1, at)[:, 0]
    num_kept = kept.int().cumprod(0).sum()
    rest = (p - proposed).index_select(0, num_kept[None]).clamp(min=0)  # a row, without waiting for the GPU
    return num_kept, (rest / torch.empty_like(rest).exponential_()).argmax()


def make_verification(torch: Any, device: str, kernel_case: Any, rotation_bytes: int) -> Call:
    """A call of ``verify`` with drafts that are often right."""
    c = kernel_case
    logits = 3 * torch.randn((c.num_tokens, c.vocab_size), device=device)
    proposed = torch.softmax(logits + torch.rand_like(logits), -1)
    drafts = torch.multinomial(proposed[:-1], 1)[:, 0]
    proposed[-1] = 0
    copies = list(zip(copies_of(logits, rotation_bytes // 2), copies_of(proposed, rotation_bytes // 2), strict=True))
    return lambda index: verify(torch, *copies[index % len(copies)], drafts)


def make_choice(torch: Any, device: str, kernel_case: Any, rotation_bytes: int) -> Call:
    """A call of ``select_experts``, with the router's product for "route", of ``sample`` or ``verify``."""
    c = kernel_case
    if c.kernel == "sample_verify":
        return make_verification(torch, device, c, rotation_bytes)
    if c.kernel == "route":
        x, bias = (torch.randn(size, device=device)
                   for size in ((c.num_tokens, c.hidden_size), c.num_experts))
        rows = copies_of(torch.randn((c.num_experts, c.hidden_size), device=device), rotation_bytes)
        return lambda index: select_experts(
            torch, torch.nn.functional.linear(x, rows[index % len(rows)]), bias, c.experts_per_token
        )
    is_router = c.kernel == "select_experts"
    size = c.num_experts if is_router else c.vocab_size
    logits = copies_of(3 * torch.randn((c.num_tokens, size), device=device), rotation_bytes)
    if is_router:
        bias = torch.rand(size, device=device)
        return lambda index: select_experts(
            torch, logits[index % len(logits)], bias, c.experts_per_token
        )
    return lambda index: sample(torch, logits[index % len(logits)], *SAMPLING[c.kernel])
