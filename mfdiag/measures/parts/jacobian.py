"""Numbers of the Jacobi factor J = A - I, sample by sample: docs/theory.md#kappa and #jacobian-probes."""

from __future__ import annotations

import torch
from torch import Tensor

from mfdiag.fields.fields import Fields

__all__ = ["jacobian_scalars"]


def jacobian_scalars(fields: Fields) -> dict[str, Tensor]:
    """Per sample: tr(J)/d, |J|_F^2, |J|_2; with a known posterior tr Sigma, |b|^2 and the diagonal form's parts.

    With random signs z instead of a basis, tr A = E z.Az and |J|_F^2 = E|Az - z|^2 (Hutchinson), products of diagonal
    entries come from pairs of different probes, and the spectral norm is left out.
    """
    jacobian = fields.jacobian
    assert jacobian is not None
    z, az = jacobian.probes, jacobian.products  # [m, n, d]
    m = len(az)
    repeats = 1 if jacobian.is_full else m  # a basis sums to the trace, m random probes average to it
    z_az = z * az  # its sum over a basis, or mean over signs, is the diagonal of A
    diagonal = z_az.sum(0) / repeats
    jz = az - z
    scalars = {
        "kappa": diagonal.mean(1) - 1,
        "jacobi_fro2": jz.square().sum((0, 2)) / repeats,
    }
    if jacobian.is_full:
        scalars["jacobi_spectral"] = torch.linalg.matrix_norm(jz.transpose(0, 1), ord=2)
    if fields.posterior is not None:
        sigma, bias2 = fields.posterior.variance.flatten(1), fields.posterior.bias.flatten(1).square()
        squared = diagonal**2
        if not jacobian.is_full:  # unbiased: pairs of different probes only
            squared = (z_az.sum(0) ** 2 - z_az.square().sum(0)) / (m * (m - 1))
        scalars["sigma2d"] = sigma.sum(1)
        scalars["bias2"] = bias2.sum(1)
        # docs/theory.md#diagonal: minimize sum_i Sigma_ii (J_ii - beta A_ii)^2 + beta^2 A_ii^2 b_i^2 with J = A - I
        scalars["diagonal/numerator"] = ((squared - diagonal) * sigma).sum(1)
        scalars["diagonal/denominator"] = (squared * (sigma + bias2)).sum(1)
    return scalars
