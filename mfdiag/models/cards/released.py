"""Released networks of other projects whose code needs a change before it can be differentiated; model cards name them.

The project's own code comes from PYTHONPATH, as under any card.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["improved_meanflow", "rotated"]


def improved_meanflow(size: str, **arguments: Any) -> nn.Module:
    """The network `size` of Lyy-iiis/imeanflow's release for torch, such as imfDiT_B_2.

    Its rotary embedding views real numbers as complex ones, `x.view(torch.complex64)`, which torch takes for a constant
    in both modes: without an error, queries and keys get no gradient and no tangent. `rotated` takes its place.
    """
    from models import imfDiT  # type: ignore[import-not-found]

    imfDiT.apply_rotary_pos_emb = rotated
    return getattr(imfDiT, size)(**arguments)


def rotated(x: Tensor, table: Tensor) -> Tensor:
    """x [n, tokens, heads, 2 k] with coordinates 2 i, 2 i + 1 turned as one complex number by table [tokens, k]."""
    precise = x.to(torch.promote_types(x.dtype, torch.float32))  # there is no complex bfloat16
    pairs = torch.view_as_complex(precise.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * table.to(x.device)[:, None]).flatten(-2).to(x)
