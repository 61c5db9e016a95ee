"""Divergence and rotation of the velocity field: exact in few dimensions, by random probes in many."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import randomised, row, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mfdiag import load_data, measure
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.gradients.intervals import jackknife
from mfdiag.gradients.moments import scalar_replicates
from mfdiag.measures.parts.velocity_field import EXACT_DIM, probe_quantile, velocity_scalars
from mfdiag.models.networks.gaussian import GaussianAverageVelocity
from mfdiag.models.networks.mlp import MLP


def scalars_of(matrices: Tensor, seed: int = 0) -> dict[str, np.ndarray]:
    """`velocity_scalars` of samples whose fields are linear: v = D x with D [n, d, d]."""
    n, d, _ = matrices.shape

    def derivatives(r: Tensor, dx: Tensor, dt: Tensor) -> tuple[None, Tensor]:
        return None, torch.einsum("nij,mnj->mni", matrices, dx)

    draws = Draws(load_data("gaussian:2,0,1"), parse_times("uniform"), seed)
    there = SimpleNamespace(derivatives=derivatives, t=torch.full((n,), 0.5).double(), draws=draws, index=np.arange(n))
    fields: Any = SimpleNamespace(context=there, x=torch.zeros(n, d).double())
    return {name: values.numpy() for name, values in velocity_scalars(fields).items()}


def numbers_of(matrices: Tensor) -> dict[str, np.ndarray]:
    turned = (matrices - matrices.transpose(1, 2)) / 2
    return {
        "divergence": matrices.diagonal(dim1=1, dim2=2).sum(1).numpy(),
        "velocity_fro2": matrices.square().sum((1, 2)).numpy(),
        "antisymmetric_fro2": turned.square().sum((1, 2)).numpy(),
    }


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=30, deadline=None)
@given(d=st.integers(1, EXACT_DIM), seed=st.integers(0, 99))
def test_few_dimensions_are_exact(d: int, seed: int) -> None:
    matrices = normal(3, d, d, seed=seed)
    found, truth = scalars_of(matrices), numbers_of(matrices)
    assert found.keys() == truth.keys()
    for name, values in truth.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("d", [17, 40, 64])
def test_probes_are_unbiased(d: int) -> None:
    """Of one matrix, probed anew for each of many samples."""
    matrix = normal(d, d, seed=d) + 2 * torch.eye(d).double()
    found = scalars_of(matrix.expand(4000, d, d))
    for name, truth in numbers_of(matrix[None]).items():
        error = found[name].std() / len(found[name]) ** 0.5
        assert abs(found[name].mean() - truth[0]) <= 4 * error, name
        assert error < 0.01 * abs(truth[0]), "too noisy to tell"
    assert (found["divergence_error"] ** 2).mean() == pytest.approx(found["divergence"].var(), rel=0.1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99))
def test_symmetry_is_seen_by_every_probe(seed: int) -> None:
    root = normal(4, 20, 20, seed=seed)
    found = scalars_of(root + root.transpose(1, 2), seed)
    np.testing.assert_allclose(found["antisymmetric_fro2"], 0, atol=1e-24 * found["velocity_fro2"].max())
    found = scalars_of(root - root.transpose(1, 2), seed)
    np.testing.assert_allclose(found["divergence"], 0, atol=1e-12)


@cache
def many(runs: int = 200, n: int = 128, d: int = 20) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], Tensor]:
    """Probed and exact numbers [runs, n] of random fields that turn a little, of skewed size."""
    own = normal(runs * n, d, d)
    scale = (normal(runs * n, 1, 1, seed=1) / 2).exp()
    matrices = scale * (own + own.transpose(1, 2) + 0.5 * normal(runs * n, d, d, seed=2) + torch.eye(d).double())
    found, truth = scalars_of(matrices), numbers_of(matrices)
    split = {name: values.reshape(runs, n) for name, values in found.items()}
    return split, {name: values.reshape(runs, n) for name, values in truth.items()}, matrices


def test_the_interval_of_one_sample_covers_its_divergence() -> None:
    found, truth, _ = many()
    off = np.abs(found["divergence"] - truth["divergence"])
    assert (off <= probe_quantile() * found["divergence_error"]).mean() == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("quantity", ["divergence", "antisymmetric_share"])
def test_intervals_over_samples_cover(quantity: str) -> None:
    """Nominal level 95 %: the spread of the samples and the probes' own error together."""
    found, truth, _ = many()
    wanted = {name: values.mean() for name, values in truth.items()}
    hits = []
    for run in range(len(found["divergence"])):
        stacked = np.stack([found[name][run] for name in truth], 1)
        replicates, count = scalar_replicates(stacked, np.arange(len(stacked)) * 64 // len(stacked), 64)
        one = dict(zip(truth, replicates.T, strict=True))
        one["antisymmetric_share"] = one["antisymmetric_fro2"] / one["velocity_fro2"]
        wanted["antisymmetric_share"] = wanted["antisymmetric_fro2"] / wanted["velocity_fro2"]
        estimate = jackknife(one[quantity], count)
        hits.append(bool(estimate.low <= wanted[quantity] <= estimate.high))
    assert 0.91 <= np.mean(hits) <= 0.985


# -- through the tables -------------------------------------------------------------------------------------------


def network(dim: int) -> nn.Module:
    torch.manual_seed(0)
    return randomised(MLP(dim, hidden=12, depth=2), scale=0.1).double()


def tables_of(dim: int, **options: object) -> dict[str, pd.DataFrame]:
    given_: dict[str, object] = {"times": "uniform", "samples": 192, "by_layer": False, "dtype": torch.float64}
    return measure(
        network(dim),
        f"gaussian:{dim},0.5,1.5",
        tables=["variance"],
        estimators=["meanflow"],
        **(given_ | options),  # type: ignore[arg-type]
    )


def exact_of(dim: int, samples: int) -> np.ndarray:
    """D [samples, dim, dim] by reverse mode."""
    batch = Draws(load_data(f"gaussian:{dim},0.5,1.5"), parse_times("uniform"), 0).batch(np.arange(samples))
    model = network(dim)
    found = []
    for x, t in zip(batch.x_t, batch.t, strict=True):
        found.append(torch.autograd.functional.jacobian(lambda x, t=t: model(x[None], t[None], t[None])[0], x))
    return torch.stack(found).numpy()


def test_exact_divergence_by_sample() -> None:
    tables = tables_of(3)
    found = rows(tables["samples"], quantity="divergence").sort_values("index")
    truth = numbers_of(torch.as_tensor(exact_of(3, 192)))
    np.testing.assert_allclose(found["value"], truth["divergence"], rtol=1e-9, atol=1e-12)
    assert found["std_error"].isna().all() and found["ci_low"].isna().all() and found["estimator"].isna().all()
    assert row(tables["variance"], quantity="divergence")["value"] == pytest.approx(found["value"].mean(), rel=1e-9)


def test_probed_divergence_by_sample_and_by_time() -> None:
    """In 24 dimensions, against whole Jacobians of the same samples."""
    tables = tables_of(24, extras=["divergence"], bins=(1, 2))
    found = rows(tables["samples"], quantity="divergence").sort_values("index")
    truth = numbers_of(torch.as_tensor(exact_of(24, 192)))
    inside = found["ci_low"].le(truth["divergence"]) & found["ci_high"].ge(truth["divergence"])
    assert 0.9 <= inside.mean() <= 0.99
    assert (found["std_error"] > 0).all()
    of_all = {name: values.mean() for name, values in truth.items()}
    of_all["antisymmetric_share"] = of_all["antisymmetric_fro2"] / of_all["velocity_fro2"]
    for name in ("divergence", "antisymmetric_share"):
        one = rows(tables["variance"], quantity=name)
        assert len(one) == 3
        whole = one[one["t_low"].isna()].iloc[0]
        assert abs(whole["value"] - of_all[name]) <= 3 * whole["std_error"]


def test_differences_in_place_of_derivatives_give_the_same() -> None:
    exact, plain = (tables_of(3, derivative=which)["samples"] for which in ("jvp", "difference"))
    left, right = (rows(frame, quantity="divergence")["value"] for frame in (exact, plain))
    np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-8)


def test_probes_do_not_depend_on_the_chunk() -> None:
    one, other = (tables_of(24, extras=["divergence"], chunk=chunk, samples=40)["samples"] for chunk in (7, 40))
    for column in ("value", "std_error", "ci_low"):
        left, right = (rows(frame, quantity="divergence").sort_values("index")[column] for frame in (one, other))
        np.testing.assert_allclose(left, right, rtol=1e-12)


def test_many_dimensions_are_measured_where_asked_for() -> None:
    said: list[str] = []
    plain = tables_of(17, samples=64, say=said.append)
    assert not {"divergence", "antisymmetric_share"} & set(plain["variance"]["quantity"])
    assert "divergence" not in set(plain["samples"]["quantity"])
    assert [note for note in said if "divergence" in note] == [
        "17 coordinates: above 16, divergence and antisymmetric_share take further passes; request them "
        "with --extra divergence."
    ]
    said.clear()
    asked = tables_of(17, samples=64, say=said.append, extras=["divergence"])
    assert {"divergence", "antisymmetric_share"} <= set(asked["variance"]["quantity"])
    assert not any("divergence" in note for note in said)


@pytest.mark.parametrize("dim", [3, 20])
@pytest.mark.parametrize("std", [0.5, 2.0])
def test_divergence_of_the_true_field_tells_the_conditional_variance(std: float, dim: int) -> None:
    """For noise N(0, I), v = (x - E[x_0 | x]) / t and dE[x_0 | x]/dx = (1-t)/t^2 Cov(x_0 | x) = (1-t) Sigma, so that
    tr D = (d - (1-t) tr Sigma) / t; here Sigma = s^2 / s_t^2 I. (arXiv 2605.00941)"""
    model = GaussianAverageVelocity(0.0, 1.0, (dim,)).double()
    nn.init.constant_(model.mean, 0.7)
    nn.init.constant_(model.std, std)
    found = measure(
        model,
        f"gaussian:{dim},0.7,{std}",
        tables=["variance"],
        times="point:0.1,0.6",
        samples=128,
        extras=["divergence"],
    )["variance"]
    sigma2d = dim * std**2 / (0.16 * std**2 + 0.36)
    assert row(found, quantity="divergence")["value"] == pytest.approx((dim - 0.4 * sigma2d) / 0.6, rel=1e-5)
    assert row(found, quantity="antisymmetric_share")["value"] == pytest.approx(0, abs=1e-12)
