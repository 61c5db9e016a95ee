"""Intervals of tr J and |J|_F^2 from random probes, against those from the whole Jacobian."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from helpers import randomised
from torch import Tensor

from mfdiag.derivatives.forward_mode import forward_mode_derivatives
from mfdiag.fields.fields import Fields, Jacobian, Velocities, compute_fields
from mfdiag.fields.probes import PROBES, coordinate_basis, random_signs
from mfdiag.flow.data.datasets import load_data
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.gradients.intervals import jackknife
from mfdiag.measures.parts.jacobian import jacobian_scalars
from mfdiag.models.networks.mlp import MLP

DIM, POPULATION, SAMPLES, REPETITIONS, BLOCKS = 66, 1024, 256, 200, 64
SCALARS = ("kappa", "jacobi_fro2")


@pytest.fixture(scope="module")
def factors() -> Tensor:
    """A = (t - r) du/dx at points of a network that removes noise, as trained ones do, [POPULATION, d, d]."""
    torch.manual_seed(0)
    network = randomised(MLP(DIM, hidden=16, depth=2)).requires_grad_(False)

    def u(x: Tensor, r: Tensor, t: Tensor, labels: None = None) -> Tensor:
        return x / (0.1 + t[:, None]) + 0.3 * network(x, r, t)

    x, v_c, vhat = torch.randn(3, POPULATION, DIM)
    r, t = torch.rand(2, POPULATION).sort(dim=0).values
    differentiate = partial(forward_mode_derivatives, u, x, r, t, None)
    basis = coordinate_basis(x)
    fields = compute_fields((x, r, t, None), Velocities(v_c, vhat), differentiate, jacobian=True, probes=basis)
    assert fields.jacobian is not None
    return fields.jacobian.products.permute(1, 2, 0)


def scalars_of(a: Tensor, probes: Tensor, *, is_full: bool = False) -> dict[str, np.ndarray]:
    """The numbers of samples with the matrices a [n, d, d], from probes [m, n, d]."""
    jacobian = Jacobian(probes, torch.einsum("nij,mnj->mni", a, probes), is_full)
    zero = torch.zeros(a.shape[:2])
    scalars = jacobian_scalars(Fields(zero, zero, zero, zero, zero, zero, None, jacobian))
    return {name: scalars[name].double().numpy() for name in SCALARS}


def interval_of(values: np.ndarray) -> tuple[float, float]:
    """The jackknife's interval of a mean, over blocks of samples."""
    blocks = values.reshape(BLOCKS, -1).mean(1)
    replicates = np.concatenate([[blocks.mean()], (blocks.sum() - blocks) / (BLOCKS - 1)])
    estimate = jackknife(replicates, np.full(BLOCKS, len(values) / BLOCKS))
    return float(estimate.low), float(estimate.high)


def test_probes_cover_the_whole_jacobians_numbers_and_widen_intervals_as_derived(factors: Tensor) -> None:
    data, times = load_data("eight_gaussians"), parse_times("uniform")
    exact = scalars_of(factors, coordinate_basis(factors[..., 0]), is_full=True)
    chosen = np.random.default_rng(0)
    covered, widths = dict.fromkeys(SCALARS, 0), {name: [] for name in SCALARS}
    for seed in range(REPETITIONS):
        index = chosen.integers(POPULATION, size=SAMPLES)
        a = factors[index]
        signs = random_signs(Draws(data, times, seed), "probes", np.arange(SAMPLES), a[..., 0])
        probed = scalars_of(a, signs)
        for name in SCALARS:
            low, high = interval_of(probed[name])
            covered[name] += low <= exact[name].mean() <= high
            whole = interval_of(exact[name][index])
            widths[name].append((high - low) / (whole[1] - whole[0]))
    symmetric = (factors + factors.transpose(1, 2)) / 2
    j = factors - torch.eye(DIM)
    for name, matrix in (("kappa", symmetric / DIM), ("jacobi_fro2", j.transpose(1, 2) @ j)):
        off_diagonal = matrix.square().sum((1, 2)) - matrix.diagonal(dim1=1, dim2=2).square().sum(1)
        share = float(2 * off_diagonal.mean()) / exact[name].var()
        assert np.median(widths[name]) == pytest.approx((1 + share / PROBES) ** 0.5, rel=0.05), name
        assert np.median(widths[name]) < 1.5, name
        assert 0.91 <= covered[name] / REPETITIONS <= 0.99, name
