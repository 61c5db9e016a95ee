"""The tables `variance` and `samples` against their definitions, from a plain loop over the same samples."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import (
    Unknown,
    covariance_trace,
    jacobian_of,
    loss_gradient,
    randomised,
    residual,
    row,
    rows,
    samples_of,
)
from torch import nn

from mfdiag import load_data, measure
from mfdiag.flow.datasets import Data
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.measures.variance import hill, top_share
from mfdiag.models.mlp import MLP

SAMPLES = 128
KNOWN = load_data("mixture:2,3")
POINTS = {"meanflow": (0.0, 0.0), "ema_tangent": (1.0, 0.0), "plane:0.3,-0.5": (0.3, -0.5)}
WEIGHTS = {"none": (0.0, 1.0), "adaptive:0.5,0.01": (0.5, 0.01)}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomised(MLP(2, hidden=6, depth=2)).double()


def tables_of(data: Data, weighting: str, **options: object) -> dict[str, pd.DataFrame]:
    return measure(
        network(),
        data,
        tables=("variance",),
        times="uniform",
        proxy="teacher",
        proxy_model=network(1),
        estimators=list(POINTS),
        weighting=weighting,
        samples=SAMPLES,
        dtype=torch.float64,
        **({"by_layer": False} | options),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("data", [KNOWN, Unknown(KNOWN)], ids=["known", "unknown"])
def test_every_quantity_by_its_definition(data: Data, weighting: str) -> None:
    tables = tables_of(data, weighting)
    draws, model, (p, eps) = Draws(data, parse_times("uniform"), 0), network(), WEIGHTS[weighting]
    own = samples_of(draws, SAMPLES, network(1))
    known = draws.velocity_posterior(draws.batch(np.arange(SAMPLES)))
    for name, (beta, gamma) in POINTS.items():
        gradients = torch.stack([loss_gradient(model, s, beta, gamma, p, eps) for s in own])
        squares = np.array([residual(model, s, beta, gamma).square().sum().item() for s in own])
        losses = squares / (squares + eps) ** p
        norms = gradients.square().sum(1)
        mean2 = float((gradients.sum(0).square().sum() - norms.sum()) / (SAMPLES * (SAMPLES - 1)))
        variance = covariance_trace(gradients)
        expected = {"variance": variance, "loss_variance": losses.var(ddof=1), "top1_share": top_share(norms.numpy())}
        if known is not None:
            replaced = known.draw if p else known.mean
            changed = [s._replace(v_c=v) for s, v in zip(own, replaced, strict=True)]
            other = torch.stack([loss_gradient(model, s, beta, gamma, p, eps) for s in changed])
            expected["conditional_variance"] = float((gradients - other).square().sum(1).mean()) / (2 if p else 1)
            if not p:
                total, each = other.sum(0).square().sum(), other.square().sum()
                mean2 = float((total - each) / (SAMPLES * (SAMPLES - 1)))
        expected |= {"mean_norm2": mean2, "snr": mean2 / variance, "noise_scale": variance / mean2}
        found = rows(tables["variance"], estimator=name).set_index("quantity")["value"]
        assert found.keys().sort_values().tolist() == sorted([*expected, "tail_index"])
        for quantity, truth in expected.items():
            assert found[quantity] == pytest.approx(truth, rel=1e-8), quantity
        samples = rows(tables["samples"], estimator=name)
        for quantity, truth in (("grad_norm2", norms.numpy()), ("loss", losses)):
            one = rows(samples, quantity=quantity).sort_values("index")
            np.testing.assert_allclose(one["value"], truth, rtol=1e-9, err_msg=quantity)
            np.testing.assert_array_equal(one["t"], [float(s.t) for s in own])


def test_numbers_of_the_jacobian() -> None:
    found = tables_of(KNOWN, "none")["variance"]
    j = [
        (s.t - s.r) * jacobian_of(network(), s)[0] - torch.eye(2)
        for s in samples_of(Draws(KNOWN, parse_times("uniform"), 0), SAMPLES, network(1))
    ]
    norms = np.mean([float(x.square().sum()) for x in j])
    expected = {
        "kappa_signed": np.mean([float(x.trace()) / 2 for x in j]),
        "kappa_magnitude": np.sqrt(norms / 2),
        "jacobi_fro2": norms,
        "jacobi_spectral": np.mean([float(torch.linalg.svdvals(x)[0]) for x in j]),
    }
    assert set(rows(found, estimator=None)["quantity"]) == set(expected)
    for quantity, truth in expected.items():
        assert row(found, quantity=quantity)["value"] == pytest.approx(truth, rel=1e-9)


def test_bins_partition_the_loss_and_the_jacobian() -> None:
    """Means over cells, weighted by their samples, are the mean over everything; losses vary within cells by cell."""
    found = tables_of(KNOWN, "none", bins=(1, 3))["variance"]
    one = rows(found, quantity="jacobi_fro2")
    cells, whole = one[one["t_low"].notna()], one[one["t_low"].isna()]
    assert len(cells) == 3 and len(whole) == 1 and cells["n_samples"].sum() == SAMPLES
    assert np.average(cells["value"], weights=cells["n_samples"]) == pytest.approx(whole["value"].item(), rel=1e-9)
    samples = rows(tables_of(KNOWN, "none")["samples"], estimator="meanflow", quantity="loss")
    inside = samples[(samples["t"] >= 1 / 3) & (samples["t"] < 2 / 3)]["value"]
    loss = row(rows(found, quantity="loss_variance", estimator="meanflow"), t_low=1 / 3)
    assert loss["value"] == pytest.approx(inside.var(), rel=1e-9) and loss["n_samples"] == len(inside)


def test_top_share() -> None:
    assert top_share(np.ones(1000)) == pytest.approx(0.01)
    assert top_share(np.r_[np.zeros(99), 5.0]) == pytest.approx(1)
    assert top_share(np.r_[np.ones(199), 201.0]) == pytest.approx((201 + 1) / 400)
    assert top_share(np.r_[np.ones(149), 2.0]) == pytest.approx((2 + 0.5) / 151)
    assert top_share(np.r_[np.ones(9), 11.0]) == pytest.approx(0.1 * 11 / 20)


@pytest.mark.parametrize("alpha", [1.5, 3.0])
def test_hill_finds_the_index_of_a_pareto_tail(alpha: float) -> None:
    """Each estimate has relative error 1 / sqrt(k), with k the largest 5 %."""
    values = 1 + np.random.default_rng(0).pareto(alpha, size=(100, 4000))
    found = np.mean([1 / hill(one) for one in values])
    assert found == pytest.approx(1 / alpha, rel=4 / (200 * 100) ** 0.5)
