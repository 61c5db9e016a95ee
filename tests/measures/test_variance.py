"""The tables `variance` and `samples` against their definitions, from a plain loop over the same samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import (
    Sample,
    Unknown,
    accumulated,
    covariance_trace,
    jacobian_of,
    loss_gradient,
    one_cell,
    randomised,
    residual,
    row,
    rows,
    samples_of,
    velocity_of,
)
from scipy import stats
from torch import nn

from mfdiag import load_data, measure
from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import Data
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.gradients.accumulate import sum_layers
from mfdiag.gradients.intervals import cosine_jackknife
from mfdiag.measures.parts.concentration import largest_samples, top_share
from mfdiag.measures.variance import conflict_cosine
from mfdiag.models.networks.gaussian import GaussianAverageVelocity
from mfdiag.models.networks.mlp import MLP

SAMPLES = 128
KNOWN = load_data("mixture:2,3")
POINTS = {"meanflow": (0.0, 0.0), "teacher_tangent": (1.0, 0.0), "plane:0.3,-0.5": (0.3, -0.5)}
WEIGHTS = {"none": (0.0, 1e-3), "adaptive:0.5,0.01": (0.5, 0.01)}


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomised(MLP(2, hidden=6, depth=2)).double()


def exact(std: float) -> nn.Module:
    """The average velocity of data N(0.7, std^2 I) in three dimensions."""
    model = GaussianAverageVelocity(0.0, 1.0, (3,)).double()
    nn.init.constant_(model.mean, 0.7)
    nn.init.constant_(model.std, std)
    return model


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
        variance, share = covariance_trace(gradients), float(top_share(norms.numpy()).value)
        expected = {
            "variance": variance,
            "loss_variance": losses.var(ddof=1),
            "top1_share": share,
        }
        if known is not None:
            replaced = known.draw if p else known.mean
            changed = [s._replace(v_c=v) for s, v in zip(own, replaced, strict=True)]
            other = torch.stack([loss_gradient(model, s, beta, gamma, p, eps) for s in changed])
            expected["conditional_variance"] = float((gradients - other).square().sum(1).mean()) / (2 if p else 1)
            if not p:
                total, each = other.sum(0).square().sum(), other.square().sum()
                mean2 = float((total - each) / (SAMPLES * (SAMPLES - 1)))
        unweighted = norms.numpy() * (squares + eps) ** (2 * p)
        for power in (0, 0.5, 1):
            weights = (squares + eps) ** -power
            expected[f"second_moment_p{power}"] = (weights**2 * unweighted).mean() / weights.mean() ** 2
        expected |= {"mean_norm2": mean2, "snr": mean2 / variance, "noise_scale": variance / mean2}
        found = rows(tables["variance"], estimator=name).set_index("quantity")["value"]
        if name == "meanflow":
            means = [s._replace(v_c=v) for s, v in zip(own, known.mean, strict=True)] if known and not p else own
            expected["conflict_cosine"] = conflict(model, means, p, eps)
        assert found.keys().sort_values().tolist() == sorted([*expected, "tail_index"])
        for quantity, truth in expected.items():
            assert found[quantity] == pytest.approx(truth, rel=1e-8, nan_ok=quantity == "conflict_cosine"), quantity
        if name == "meanflow":
            one = row(tables["variance"], quantity="conflict_cosine")
            assert one["status"] == ("negative_estimate" if np.isnan(one["std_error"]) else "ok")
        samples = rows(tables["samples"], estimator=name)
        for quantity, truth in (("grad_norm2", norms.numpy()), ("loss", losses)):
            one = rows(samples, quantity=quantity).sort_values("index")
            np.testing.assert_allclose(one["value"], truth, rtol=1e-9, err_msg=quantity)
            np.testing.assert_array_equal(one["t"], [float(s.t) for s in own])


def conflict(model: nn.Module, samples: list[Sample], p: float, eps: float) -> float:
    """Cosine of the mean gradients of MeanFlow's two parts, from unbiased products over pairs of unlike samples."""
    parts = []
    for s in samples:
        e = residual(model, s, 0, 0)
        u = velocity_of(model, s)
        weight = 2 * (e.square().sum() + eps) ** -p
        for cotangent in (u - s.v_c, e - (u - s.v_c)):
            loss = (u * (weight * cotangent).detach()).sum()
            grads = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            parts.append(torch.cat([g.flatten() for g in grads]))
    matching, consistency = torch.stack(parts).unflatten(0, (-1, 2)).unbind(1)

    def product(a: torch.Tensor, b: torch.Tensor) -> float:
        pairs = a @ b.T
        return float(pairs.sum() - pairs.trace())

    squares = product(matching, matching) * product(consistency, consistency)
    return product(matching, consistency) / squares**0.5 if squares > 0 else float("nan")


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_conflict_is_complete_at_the_exact_solution(std: float) -> None:
    """There E[e_0 given x_t] = 0, so the two parts' mean gradients are opposite."""
    options = {"times": "uniform", "samples": 512, "estimators": ["meanflow"], "dtype": torch.float64}
    found = measure(exact(std), f"gaussian:3,0.7,{std}", tables=["variance"], bins=(1, 2), **options)["variance"]
    cosines = rows(found, quantity="conflict_cosine", layer="all")
    assert len(cosines) == 3 and set(cosines["status"]) == {"ok"}
    np.testing.assert_allclose(cosines["value"], -1, rtol=1e-9)


def test_no_conflict_where_r_equals_t() -> None:
    options = {"tables": ["variance"], "times": "point:0.5,0.5", "samples": 128, "estimators": ["meanflow"]}
    found = rows(measure(network().float(), KNOWN, **options)["variance"], quantity="conflict_cosine", layer="all")  # type: ignore[arg-type]
    assert found["status"].tolist() == ["degenerate_control"]


@pytest.mark.parametrize("cosine", [-0.8, 0.0, 0.5])
def test_intervals_of_the_conflict_cover(cosine: float) -> None:
    """Normal gradients in 12 dimensions, whose parts' means meet at a given angle: between 93 and 97 % of what has an
    interval, at the binomial limits of 99.9 %; noise takes some cosines of -0.8 out of [-1, 1]."""
    runs, n, cells = 200, 256, one_cell(256)
    generator = torch.Generator().manual_seed(0)
    noise = 2 * torch.randn(2, n, runs, 12, generator=generator, dtype=torch.float64)
    means = torch.zeros(2, 12, dtype=torch.float64)
    means[0, 0], means[1, 0], means[1, 1] = 1, cosine, (1 - cosine**2) ** 0.5
    matching, consistency = noise + means[:, None, None]
    hits, values, ok = 0, [], 0
    for k in range(runs):
        gradients = torch.stack([(matching + consistency)[:, k], consistency[:, k]])
        moments = sum_layers(accumulated(gradients, 1, cells).moments[0]).replicates()
        estimate = cosine_jackknife(conflict_cosine(moments, 0, 1), moments.count)
        ok += bool(np.isfinite(estimate.low))
        hits += bool(estimate.low <= cosine <= estimate.high)
        values.append(float(estimate.value))
    assert np.mean(values) == pytest.approx(cosine, abs=4 * np.std(values) / runs**0.5 + 0.01)
    assert ok >= 0.8 * runs
    assert max(stats.binom.ppf(0.001, ok, 0.93), 0.90 * ok) <= hits <= stats.binom.ppf(0.999, ok, 0.97)


def test_numbers_of_the_jacobian() -> None:
    found = tables_of(KNOWN, "none")["variance"]
    own = samples_of(Draws(KNOWN, parse_times("uniform"), 0), SAMPLES, network(1))
    j = [(s.t - s.r) * jacobian_of(network(), s)[0] - torch.eye(2) for s in own]
    norms = np.mean([float(x.square().sum()) for x in j])
    expected = {
        "kappa_signed": np.mean([float(x.trace()) / 2 for x in j]),
        "kappa_magnitude": np.sqrt(norms / 2),
        "jacobi_fro2": norms,
        "jacobi_spectral": np.mean([float(torch.linalg.svdvals(x)[0]) for x in j]),
    }
    fields = [jacobian_of(network(), s._replace(r=s.t))[0] for s in own]
    expected |= {
        "divergence": np.mean([float(x.trace()) for x in fields]),
        "antisymmetric_share": sum(float((x - x.T).square().sum()) / 4 for x in fields)
        / sum(float(x.square().sum()) for x in fields),
    }
    assert set(rows(found, estimator=None)["quantity"]) == set(expected)
    for quantity, truth in expected.items():
        assert row(found, quantity=quantity)["value"] == pytest.approx(truth, rel=1e-9)


def test_rotation_of_a_linear_field() -> None:
    class Linear(nn.Module):
        def __init__(self, matrix: torch.Tensor) -> None:
            super().__init__()
            self.layer = nn.Linear(*matrix.shape, bias=False)
            self.layer.weight = nn.Parameter(matrix)

        def forward(self, x: torch.Tensor, r: torch.Tensor, t: torch.Tensor, y: object = None) -> torch.Tensor:
            return self.layer(x)

    turning = torch.tensor([[3.0, 1.0], [-1.0, 3.0]])  # 3 I and a rotation: 2 / (18 + 2)
    options = {"tables": ["variance"], "samples": 128, "estimators": ["meanflow"]}
    found = measure(Linear(turning), KNOWN, **options)["variance"]  # type: ignore[arg-type]
    assert row(found, quantity="antisymmetric_share")["value"] == pytest.approx(0.1)
    assert row(found, quantity="divergence")["value"] == pytest.approx(6)


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


def test_worst_samples_are_the_largest_with_their_share() -> None:
    samples = tables_of(KNOWN, "none")["samples"]
    worst = largest_samples(samples, 3)
    assert worst["estimator"].tolist() == [name for name in POINTS for _ in range(3)]
    for name in POINTS:
        norms = rows(samples, estimator=name, quantity="grad_norm2").set_index("index")["value"]
        largest = sorted(norms.items(), key=lambda pair: -pair[1])[:3]
        found = rows(worst, estimator=name)
        assert list(zip(found["index"], found["value"], strict=True)) == largest
        assert found["share"].tolist() == pytest.approx([value / norms.sum() for _, value in largest])


@pytest.mark.parametrize(
    ("proxy", "tangent"), [("self", "self_tangent"), ("teacher", "teacher_tangent"), ("exact", "plane:1,0")]
)
def test_without_ema_weights_nothing_is_called_ema_tangent(proxy: str, tangent: str) -> None:
    notes: list[str] = []
    options: dict[str, Any] = {"tables": ("variance",), "samples": 64, "by_layer": False, "say": notes.append}
    options |= {"proxy": proxy, "proxy_model": network(1) if proxy == "teacher" else None, "dtype": torch.float64}
    default = measure(network(), KNOWN, **options)["variance"]
    assert set(default["estimator"].dropna()) == {"meanflow", tangent}
    assert f"ema_tangent left out: the checkpoint has no EMA weights, so {tangent} is measured instead." in notes
    explicit = measure(network(), KNOWN, estimators=["plane:1,0"], **options)["variance"]
    values, expected = (rows(f, estimator=e)["value"] for f, e in ((default, tangent), (explicit, "plane:1,0")))
    np.testing.assert_array_equal(values, expected)
    with pytest.raises(InputError, match="ema_tangent cannot be measured: the checkpoint has no EMA weights"):
        measure(network(), KNOWN, estimators=["ema_tangent"], **options)


class Backwards(nn.Module):
    """Calls its layers in another order than it declares them."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.middle, self.first = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: torch.Tensor, r: torch.Tensor, t: torch.Tensor, y: None = None) -> torch.Tensor:
        h = self.first(torch.cat([x, r[:, None], t[:, None]], 1))
        return self.scale * self.last(self.middle(h.sin()).sin())


def test_layers_are_in_the_order_of_the_parameters_whatever_the_engine() -> None:
    torch.manual_seed(0)
    for engine in ("fast", "reference"):
        table = measure(Backwards(), KNOWN, tables=("variance",), samples=16, engine=engine)["variance"]
        assert list(dict.fromkeys(table["layer"])) == ["all", "scale", "last", "middle", "first"]
