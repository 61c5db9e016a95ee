"""The floating-point precision of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["in_precision"]

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def in_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the parameters and buffers of `module` to `dtype`, in place.

    Complex parameters get the complex dtype of the same precision. Complex buffers keep their dtype.

    `module.to(dtype)` would drop the imaginary part of complex tensors, such as rotary tables.
    """

    def cast(value: Tensor) -> Tensor:
        if value.is_complex() and isinstance(value, nn.Parameter) and dtype in _COMPLEX:
            return value.to(_COMPLEX[dtype])
        return value.to(dtype) if value.is_floating_point() else value

    return module._apply(cast)
