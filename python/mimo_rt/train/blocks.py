"""Blocks of a sequence: where they may start, what they see, what they should predict.

A block has its anchor at position P and rows t = 0 … block_size - 1 at P + t. Row t sees context
position j when j < P and P + t - j < window (a window of 0 hides nothing), all rows of its own
block, and nothing of other blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def block_positions(anchors: Tensor, block_size: int) -> Tensor:
    """anchors ``[..., num_blocks]`` -> ``[..., num_blocks, block_size]``."""
    return anchors[..., None] + torch.arange(block_size, device=anchors.device)


def context_hidden(positions: Tensor, num_tokens: int, window_tokens: int) -> Tensor:
    """True where a row may not look: ``[..., num_blocks, block_size, num_tokens]``."""
    key = torch.arange(num_tokens, device=positions.device)
    hidden = key >= positions[..., :1, None]  # not before the anchor
    if window_tokens:
        return hidden | (positions[..., None] - key >= window_tokens)
    return hidden.expand(*positions.shape, num_tokens)


def sample_anchors(
    num_tokens: int, num_prompt_tokens: int, count: int, generator: torch.Generator
) -> Tensor:
    """Up to ``count`` distinct anchors in random order.

    In decoding the first anchor is the first token after the prompt. The last token of a sequence
    has nothing to predict, so it is never an anchor.
    """
    num_choices = max(num_tokens - 1 - num_prompt_tokens, 0)
    return torch.randperm(num_choices, generator=generator)[:count] + num_prompt_tokens


def block_labels(
    token_ids: Tensor, anchors: Tensor, block_size: int, num_tokens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Labels ``[..., num_blocks, block_size - 1]`` of slots 1, 2, …, and where there is one.

    Args:
        token_ids: ``[..., max_tokens]``, of several sequences padded.
        anchors: ``[..., num_blocks]``.
        num_tokens: ``[...]``, of each sequence; None: nothing is padding.
    """
    positions = block_positions(anchors, block_size)[..., 1:]
    max_tokens = token_ids.shape[-1]
    is_inside = positions < (max_tokens if num_tokens is None else num_tokens[..., None, None])
    index = positions.clamp(max=max_tokens - 1).flatten(-2)
    return token_ids.gather(-1, index).reshape(positions.shape), is_inside
