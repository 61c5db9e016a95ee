"""Normalized tangents of continuous-time consistency models: what sCM and Align Your Flow regress on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["normalized_tangent"]


def normalized_tangent(g: Tensor, constant: float) -> Tensor:
    """g / (|g| + c), with the norm over all coordinates of a sample (arXiv 2410.11081, section 4.2).

    Args:
        g: Tangents [n, *shape].
        constant: c, above 0.

    Returns:
        [n, *shape], each with a norm below 1.
    """
    norm = g.flatten(1).norm(dim=1).view(-1, *[1] * (g.ndim - 1))
    return g / (norm + constant)
