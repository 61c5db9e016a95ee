"""Attention that can be differentiated twice: fused kernels support neither forward mode nor a second derivative."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

__all__ = ["FusedAttentionDetector", "is_plain_attention", "twice_differentiable"]

_FUSED = {
    F.scaled_dot_product_attention,
    F.multi_head_attention_forward,  # nn.MultiheadAttention
    torch._transformer_encoder_layer_fwd,
}


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
    """Check that F.scaled_dot_product_attention is called without mask, dropout or shared heads of keys and values.

    Args:
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.

    Returns:
        Whether query, key and value (and perhaps a scale) are all that the call uses.
    """
    others = ("dropout_p", "is_causal", "enable_gqa")
    return len(args) == 3 and kwargs.get("attn_mask") is None and not any(map(kwargs.get, others))


class FusedAttentionDetector(TorchFunctionMode):
    """Notes in `seen` whether fused attention is called within this context."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or func in _FUSED
        return func(*args, **(kwargs or {}))
