"""Factories, named in model cards, for networks that no call of their own builds, or whose code must be changed.

The repository's own code comes from PYTHONPATH, as for any card.
"""

from __future__ import annotations

from importlib import import_module
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["flow_anchored", "from_targets", "improved_meanflow", "rotated"]

_TARGET = "_target_"


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


def flow_anchored(size: str, **arguments: Any) -> nn.Module:
    """The network `size`, such as LightningDiT_XL_1, of ali-vilab/FACM, as a function of (x, t, r, y).

    It has one time, which says the other end of the interval too: t in [0, 1] for the average velocity up to the data
    at time 1, and 2 - t for the velocity at t (its expanded time interval). Other values of r have no meaning for it.
    """
    from ldit import lightningdit  # type: ignore[import-not-found]

    network = getattr(lightningdit, size)(**arguments)
    one_time = type(network).forward

    def forward(self: nn.Module, x: Tensor, t: Tensor, r: Tensor, y: Tensor) -> Tensor:
        return one_time(self, x, torch.where(r == t, 2 - t, t), None, y)

    network.forward = MethodType(forward, network)  # a method, so that a copy of the network calls the copy
    return network


def from_targets(**arguments: Any) -> Any:
    """What a Hydra configuration says: the class `_target_`, called with the other entries.

    Entries that have a `_target_` of their own are made first.
    """
    made = {name: from_targets(**value) if _is_target(value) else value for name, value in arguments.items()}
    module, _, name = made.pop(_TARGET).rpartition(".")
    return getattr(import_module(module), name)(**made)


def _is_target(value: Any) -> bool:
    return isinstance(value, dict) and _TARGET in value
