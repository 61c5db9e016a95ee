"""The semi-gradient gap: what MeanFlow's stop-gradient leaves out of its loss's gradient (arXiv 2605.09235, Theorem 3).

Without stop-gradient |e|^2, e = u + (t-r) (du/dx v_c + du/dt) - v_c, has the gradient G + D, where G is MeanFlow's and

    D = 2 (t-r) d_theta(du/dx v_c + du/dt)^T e

Put v_c = v + v' and e = rho + J v', with rho the mean-field residual. Given x_t, v' has mean zero: mixed terms drop out

    E[D | x_t] = 2 (t-r) d_theta(du/dx v + du/dt)^T rho + 2 (t-r) E[(d_theta(du/dx) v')^T J v' | x_t]

As d_theta J = (t-r) d_theta(du/dx), the second term is d_theta E|J v'|^2 = d_theta tr(J Sigma J^T). An adaptive weight
multiplies D and, as it depends on v_c, undoes the split.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from torch import Tensor

from mfdiag.fields.differentiable_network import DifferentiableNetwork, Loss
from mfdiag.fields.fields import Fields
from mfdiag.flow.weighting import Weighting
from mfdiag.gradients.intervals import Estimate, cosine_jackknife, jackknife, skewed_jackknife
from mfdiag.gradients.moments import Moments

__all__ = ["gap_losses", "gap_statistics"]


def gap_losses(weighting: Weighting, posterior_known: bool) -> tuple[Loss, ...]:
    """Losses with the gradients D and, where v is known and there are no weights, the two terms of E[D | x_t].

    The first term is exact; the second is that of one draw of v', without the mixed terms' noise.
    """
    whole = partial(_whole, weighting=weighting)
    return (whole, _field, _noise) if posterior_known and not weighting.p else (whole,)


def _whole(fields: Fields, network: DifferentiableNetwork, weighting: Weighting) -> Tensor:
    return _loss_of_gradient(fields, network, weighting(fields.plane[0]), fields.v_c)


def _field(fields: Fields, network: DifferentiableNetwork) -> Tensor:
    mean = fields.mean_field()
    return _loss_of_gradient(fields, network, mean.plane[0], mean.v_c)


def _noise(fields: Fields, network: DifferentiableNetwork) -> Tensor:
    mean = fields.mean_field()
    return _loss_of_gradient(fields, network, fields.plane[0] - mean.plane[0], fields.v_c - mean.v_c, dt=0.0)


def _loss_of_gradient(
    fields: Fields, network: DifferentiableNetwork, cotangent: Tensor, tangent: Tensor, dt: float = 1.0
) -> Tensor:
    """Loss [n] of the gradient 2 (t-r) d_theta(du/dx tangent + du/dt dt)^T cotangent."""
    derivative = network.jvp(fields.x, fields.r, fields.t, dx=tangent, dt=dt)[1]
    return 2 * (fields.gap * derivative * cotangent).flatten(1).sum(1)


def gap_statistics(moments: Moments, own: int, mean: int, gap: list[int]) -> dict[str, Estimate]:
    """Statistics of the gap from the moments of a group of gradients.

    Args:
        moments: Moments of the group.
        own: Column of G.
        mean: Column of G's conditional mean, or of G again.
        gap: Columns of the losses of `gap_losses`.

    Returns:
        Quantity -> estimate.
    """
    S, M, count = moments.S[:, 0], moments.M[:, 0], moments.count
    whole, *terms = gap
    parts = terms or [whole]
    columns = np.eye(S.shape[-1])
    gap_mean, signal = moments.squared_mean(columns[parts].sum(0)), M[:, mean, mean]
    squares = {"semi_gradient_gap": gap_mean}
    for name, k in zip(("field", "noise"), terms, strict=False):
        squares[f"semi_gradient_gap_{name}"] = moments.squared_mean(columns[k])
    size2 = gap_mean.replicates
    # tr Cov(G + D) - tr Cov(G)
    change = S[:, whole, whole] + 2 * S[:, own, whole]
    return {
        **{quantity: square.estimate() for quantity, square in squares.items()},
        "semi_gradient_gap_ratio": jackknife(signal / size2, count).inverse(),
        "semi_gradient_gap_cosine": cosine_jackknife(M[:, mean, parts].sum(1) / np.sqrt(size2 * signal), count),
        "semi_gradient_gap_variance": skewed_jackknife(change, count),
    }
