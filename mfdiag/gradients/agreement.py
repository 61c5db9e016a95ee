"""The comparison that every fast path must pass: its gradients against the reference's on a few samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from mfdiag.gradients.factors import Factors
from mfdiag.gradients.functional import flat_gradient

__all__ = ["disagreeing_parameters"]

# relative to the norm of the gradient: far above rounding, far below what a wrong rule gives
_TOLERANCE = {torch.float64: 1e-9}
_TOLERANCE_OTHERWISE = 1e-3


def disagreeing_parameters(
    factors: Iterable[tuple[str, Factors]], reference: Mapping[str, Sequence[Tensor]]
) -> set[str]:
    """Find the parameters whose factors, multiplied out, are not the reference's gradients.

    `factors` are for one cotangent. `reference` maps every parameter to the gradients of the n samples, each of the
    parameter's shape. A parameter without factors disagrees.
    """
    agreeing = {name for name, gradients in factors if _agrees(gradients, reference[name])}
    return set(reference) - agreeing


def _agrees(factors: Factors, reference: Sequence[Tensor]) -> bool:
    expected = [flat_gradient(gradient) for gradient in reference]
    actual = factors.dense(0, len(expected))[0]
    if actual.shape != (len(expected), len(expected[0])):
        return False
    tolerance = _TOLERANCE.get(expected[0].dtype, _TOLERANCE_OTHERWISE)
    # sample by sample, which needs no copy of all gradients
    distance = torch.stack([torch.dist(*pair) for pair in zip(actual, expected, strict=True)]).norm()
    return bool(distance <= tolerance * get_total_norm(expected))
