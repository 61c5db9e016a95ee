"""The Jacobian D = dv/dx of the network's velocity field v = u(x_t, t, t): divergence and antisymmetric part."""

from __future__ import annotations

import torch
from scipy.special import stdtrit
from torch import Tensor

from mfdiag.fields.fields import Fields
from mfdiag.fields.probes import coordinate_basis, random_signs

__all__ = ["EXACT_DIM", "probe_quantile", "velocity_scalars"]

EXACT_DIM = 16  # above, the full Jacobian would cost more than the rest of the pass, so random signs probe it
_PROBES = 8  # for each sample; a divergence has an interval of its own, by Student's t over the probes


def velocity_scalars(fields: Fields) -> dict[str, Tensor]:
    """Per sample: tr D, |D|_F^2, |(D - D^T)/2|_F^2; above `EXACT_DIM`, unbiased estimates, and the error of tr D."""
    # Hutchinson: for random signs z, E z.Dz = tr D and E|Dz|^2 = |D|_F^2. With R = (D - D^T)/2 and an independent z',
    # E (z.Rz')^2 = E z^T R R^T z = |R|_F^2, so pairs of different probes need no transposed derivative.
    context, x = fields.context, fields.x
    assert context is not None
    exact = x[0].numel() <= EXACT_DIM
    draws, index = context.draws, context.index
    probes = coordinate_basis(x) if exact else random_signs(draws, "velocity probes", index, x, _PROBES)
    columns = context.derivatives(context.t, probes, x.new_zeros(probes.shape[:2]))[1]
    z, dz = probes.flatten(2), columns.flatten(2)  # [m, n, d]
    products = torch.einsum("jni,kni->njk", z, dz)  # z_j . D z_k; D itself where the probes are a basis
    diagonal = products.diagonal(dim1=1, dim2=2)
    antisymmetric = (products - products.transpose(1, 2)) / 2
    m = len(z)
    repeats, pairs = (1, 1) if exact else (m, m * (m - 1))
    scalars = {
        "divergence": diagonal.sum(1) / repeats,
        "velocity_fro2": dz.square().sum((0, 2)) / repeats,
        "antisymmetric_fro2": antisymmetric.square().sum((1, 2)) / pairs,
    }
    return scalars if exact else {**scalars, "divergence_error": diagonal.std(1) / m**0.5}


def probe_quantile(level: float = 0.95) -> float:
    """Half the width of a probed divergence's interval, in standard errors: Student's t over the probes."""
    return float(stdtrit(_PROBES - 1, 0.5 + level / 2))
