"""Factories, named in model cards, for released networks whose code must be changed before it can be differentiated.

The repository's own code comes from PYTHONPATH, as for any card.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["improved_meanflow", "rotated"]


def improved_meanflow(size: str, **arguments: Any) -> nn.Module:
    """The network `size`, such as imfDiT_B_2, of the release of Lyy-iiis/imeanflow for torch.

    Its rotary embedding is `x.view(torch.complex64)`, which torch treats as a constant in forward and reverse mode:
    without an error, queries and keys get no gradient and no tangent. `rotated` replaces it.
    """
    from models import imfDiT  # type: ignore[import-not-found]

    imfDiT.apply_rotary_pos_emb = rotated
    return getattr(imfDiT, size)(**arguments)


def rotated(x: Tensor, table: Tensor) -> Tensor:
    """Rotate each pair of coordinates 2 i, 2 i + 1 of x [n, tokens, heads, 2 k] by the complex table [tokens, k]."""
    precise = x.to(torch.promote_types(x.dtype, torch.float32))  # there is no complex bfloat16
    pairs = torch.view_as_complex(precise.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * table.to(x.device)[:, None]).flatten(-2).to(x)
