"""Attention over samples that lie behind one another, each seeing only itself. It knows no words and no
weights.

A dense mask over all T tokens of a pass would cost T² whatever the samples' lengths; here each sample is a
causal attention of its own, so the cost is that of the samples alone, and torch's fused kernels need no
mask.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

#: The name under which transformers knows it. It has no entry among the mask functions, so no mask is made.
PACKED = "medichat_packed"


def packed_attention(
    _module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: Tensor | None,
    *,
    scaling: float,
    segments: Sequence[int],
    sliding_window: int | None = None,
    **_unused: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment.

    Args:
        query: (1, H, T, D). key, value: (1, K, T, D); H is a multiple of K.
        segments: lengths of the samples; they add up to T.
        sliding_window: a token sees at most so many tokens, itself included; None for all.

    Returns:
        (1, T, H, D) and no weights.
    """
    groups = query.shape[1] // key.shape[1]
    pieces = []
    for q, k, v in zip(
        *(torch.split(states, list(segments), dim=2) for states in (query, key, value)), strict=True
    ):
        length = q.shape[2]
        mask = None
        if sliding_window is not None and length > sliding_window:
            mask = _window(length, sliding_window, q.device)
        pieces.append(
            scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=groups > 1
            )
        )
    return torch.cat(pieces, dim=2).transpose(1, 2), None


def _window(length: int, width: int, device: torch.device) -> Tensor:
    """(length, length) booleans: this query sees that key."""
    ago = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)[None, :]
    return (ago >= 0) & (ago < width)


AttentionInterface.register(PACKED, packed_attention)
