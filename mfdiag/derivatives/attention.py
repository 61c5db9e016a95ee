"""Attention that can be differentiated twice: fused kernels know neither forward mode nor a second derivative."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["is_plain_attention", "twice_differentiable"]


@contextmanager
def twice_differentiable(enabled: bool = True) -> Iterator[None]:
    """Run attention in elementary steps (the MATH backend) within this context, if `enabled`."""
    if not enabled:
        yield
        return
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # nn.MultiheadAttention in eval mode
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def is_plain_attention(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether F.scaled_dot_product_attention is called without mask, dropout or shared heads of keys and values."""
    others = ("dropout_p", "is_causal", "enable_gqa")
    return len(args) == 3 and kwargs.get("attn_mask") is None and not any(map(kwargs.get, others))
