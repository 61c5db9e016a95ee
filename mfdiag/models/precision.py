"""The floating-point precision of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["in_precision"]


def in_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the real parameters and buffers of `module` to `dtype`, in place. Complex ones keep their dtype.

    `module.to(dtype)` would drop the imaginary part of complex tensors, such as rotary tables.
    """

    def cast(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    return module._apply(cast)
