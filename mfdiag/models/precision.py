"""The precision of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["in_precision"]


def in_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`module` itself, with its real numbers in `dtype`; complex ones, as in rotary tables, stay as they are.

    `module.to(dtype)` would keep their real part alone.
    """

    def cast(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    return module._apply(cast)
