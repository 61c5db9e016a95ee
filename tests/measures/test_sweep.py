"""The table `sweep` against a plain loop: loss, backward and sample covariance of the same samples."""

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
    velocity_of,
)
from torch import Tensor, nn

from mfdiag import load_data, measure
from mfdiag.flow.data.datasets import Data, FiniteData
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.models.networks.mlp import MLP

SAMPLES = 70
BETAS, GAMMAS, BATCHES = (0.0, 0.6, 1.0), (0.0, -0.5), (1, 1000)
DATA = {"known": load_data("mixture:2,3"), "unknown": Unknown(load_data("mixture:2,3"))}
WEIGHTS = {"none": (0.0, 1.0), "adaptive:0.5,0.01": (0.5, 0.01), "adaptive:1,0.1": (1.0, 0.1)}


def network(seed: int = 0, classes: int = 0, hidden: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    return randomised(MLP(2, hidden=hidden, depth=2, num_classes=classes)).double()


def sweep_of(data: Data | np.ndarray, weighting: str, samples: int, **options: object) -> pd.DataFrame:
    defaults = {"times": "uniform", "beta": BETAS, "gamma": GAMMAS, "batch_sizes": BATCHES, "by_layer": False}
    return measure(
        network(),
        data,
        tables=("sweep",),
        proxy="teacher",
        proxy_model=network(1),
        weighting=weighting,
        samples=samples,
        dtype=torch.float64,
        **(defaults | options),  # type: ignore[arg-type]
    )["sweep"]


def pair_mean(gradients: Tensor) -> float:
    """Mean of <G_i, G_j> over pairs i != j."""
    n = len(gradients)
    products = gradients @ gradients.T
    return float((products.sum() - products.trace()) / (n * (n - 1)))


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("data", DATA)
def test_gradient_space_equals_the_loop(data: str, weighting: str) -> None:
    found = rows(sweep_of(DATA[data], weighting, SAMPLES), space="gradient")
    draws = Draws(DATA[data], parse_times("uniform"), 0)
    model, (p, eps) = network(), WEIGHTS[weighting]
    own = samples_of(draws, SAMPLES, network(1))
    known = draws.velocity_posterior(draws.batch(np.arange(SAMPLES)))

    def gradients(velocities: Tensor | None, beta: float, gamma: float) -> Tensor:
        changed = own if velocities is None else [s._replace(v_c=v) for s, v in zip(own, velocities, strict=True)]
        return torch.stack([loss_gradient(model, s, beta, gamma, p, eps) for s in changed])

    for beta, gamma in ((0.0, 0.0), (1.0, 0.0), (0.6, -0.5)):
        plain = gradients(None, beta, gamma)
        expected = {"variance": covariance_trace(plain)}
        if p or known is None:
            expected["bias2"] = pair_mean(plain - gradients(None, 0, 0))
        if known is not None and p:
            other = gradients(known.draw, beta, gamma)
            expected["conditional_variance"] = float((plain - other).square().sum(1).mean() / 2)
        elif known is not None:
            still = gradients(known.mean, beta, gamma)
            expected["conditional_variance"] = float((plain - still).square().sum(1).mean())
            expected["bias2"] = pair_mean(still - gradients(known.mean, 0, 0))
        at = {"beta": beta, "gamma": gamma}
        for quantity, truth in expected.items():
            value = row(found, quantity=quantity, **at)["value"]
            assert value == pytest.approx(truth, rel=1e-9, abs=1e-13), quantity
        for n in BATCHES:
            mse = row(found, quantity="mse", batch_size=n, **at)["value"]
            assert mse == pytest.approx(expected["variance"] / n + expected["bias2"], rel=1e-9)
        assert set(rows(found, **at)["quantity"]) == {*expected, "mse"}


def test_layers_add_up_and_each_is_its_own_part_of_the_gradient() -> None:
    found = rows(sweep_of(DATA["unknown"], "none", SAMPLES, by_layer=True), space="gradient", beta=0.6, gamma=-0.5)
    model = network()
    samples = samples_of(Draws(DATA["unknown"], parse_times("uniform"), 0), SAMPLES, network(1))
    plain = torch.stack([loss_gradient(model, s, 0.6, -0.5) for s in samples])
    variance = rows(found, quantity="variance").set_index("layer")["value"]
    start = 0
    for layer in ("layers.0", "layers.2", "layers.4"):
        size = sum(p.numel() for p in model.get_submodule(layer).parameters())
        assert variance[layer] == pytest.approx(covariance_trace(plain[:, start : start + size]), rel=1e-9)
        start += size
    assert start == plain.shape[1] and len(variance) == 4
    assert variance["all"] == pytest.approx(variance.drop("all").sum(), rel=1e-9)


@pytest.mark.parametrize("data", DATA)
def test_output_space_equals_the_loop(data: str) -> None:
    found = rows(sweep_of(DATA[data], "none", SAMPLES), space="output")
    draws = Draws(DATA[data], parse_times("uniform"), 0)
    model, known = network(), draws.velocity_posterior(draws.batch(np.arange(SAMPLES)))
    samples = samples_of(draws, SAMPLES, network(1))
    for beta, gamma in ((0.0, 0.0), (0.6, -0.5)):
        at = {"beta": beta, "gamma": gamma}
        plain = torch.stack([residual(model, s, beta, gamma) for s in samples]).detach()
        assert row(found, quantity="variance", **at)["value"] == pytest.approx(covariance_trace(plain), rel=1e-9)
        if known is None:
            assert set(rows(found, **at)["quantity"]) == {"variance"}
            continue
        still = [s._replace(v_c=v) for s, v in zip(samples, known.mean, strict=True)]
        mean, corner = (torch.stack([residual(model, s, *c) for s in still]).detach() for c in ((beta, gamma), (0, 0)))
        noise, bias2 = ((x.square().sum(1).mean().item()) for x in (plain - mean, mean - corner))
        assert row(found, quantity="conditional_variance", **at)["value"] == pytest.approx(noise, rel=1e-9)
        assert row(found, quantity="bias2", **at)["value"] == pytest.approx(bias2, rel=1e-9, abs=1e-15)
        for n in BATCHES:
            mse = row(found, quantity="mse", batch_size=n, **at)["value"]
            assert mse == pytest.approx(noise / n + bias2, rel=1e-9)


def test_a_grid_without_target_is_the_same_grid() -> None:
    """gamma = 0 throughout takes fewer cotangents."""
    for data in DATA.values():
        with_target, without = sweep_of(data, "none", SAMPLES), sweep_of(data, "none", SAMPLES, gamma=(0.0,))
        pd.testing.assert_frame_equal(
            rows(with_target, gamma=0.0).reset_index(drop=True), without.reset_index(drop=True), rtol=1e-8, atol=1e-12
        )


@pytest.mark.parametrize("data", DATA)
def test_the_optimum_is_the_least_of_a_fine_grid(data: str) -> None:
    """The same samples through a grid around the optimum; beta and gamma are chosen together."""
    sizes = (1, 300)
    optima = sweep_of(DATA[data], "none", 512, batch_sizes=sizes)
    assert set(rows(optima, quantity="optimum_beta")["batch_size"]) >= {*sizes, 1000, 10**6}
    for n in sizes:
        found = [row(optima, quantity=f"optimum_{name}", batch_size=n) for name in ("beta", "gamma")]
        assert {one["status"] for one in found} <= {"ok", "outside_unit_interval", "heavy_tail"}
        beta, gamma = ([one["value"] + 0.01 * k for k in range(-3, 4)] for one in found)
        grid = rows(sweep_of(DATA[data], "none", 512, beta=beta, gamma=gamma, batch_sizes=(n,)), quantity="mse")
        grid = rows(grid, space="gradient")
        assert len(grid) == 49
        least = grid.loc[grid["value"].idxmin()]
        assert (least["beta"], least["gamma"]) == (beta[3], gamma[3])


def test_where_the_plane_has_no_optimum() -> None:
    def optima(**options: object) -> pd.DataFrame:
        found = sweep_of(**({"data": DATA["unknown"], "weighting": "none", "samples": SAMPLES} | options))  # type: ignore[arg-type]
        return found[found["quantity"].isin(["optimum_beta", "optimum_gamma"])]

    assert optima(gamma=(0.0,)).empty, "a plane needs both coefficients"
    assert optima(weighting="adaptive:1,0.1").empty, "the error is no quadratic under weights"
    assert set(optima(times="uniform:r_ne_t=0")["status"]) == {"degenerate_control"}
    assert set(optima(samples=8)["status"]) <= {"too_few_samples", "nonfinite", "degenerate_control"}
    negative = optima(samples=256, seed=1)  # the plain estimate of the bias is lost in noise
    wrong = rows(negative, quantity="optimum_beta").set_index("batch_size")["status"] == "negative_estimate"
    assert wrong[10**6] and not wrong[1]


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("labelled", [False, True])
def test_conditional_variance_equals_the_enumerated_posterior(labelled: bool, weighting: str) -> None:
    """Five points: at each x_t every velocity it may come from, with its probability."""
    count, (p, eps) = 1000, WEIGHTS[weighting]
    points = 0.8 * np.array([[1.0, 0], [-1, 0.5], [0, -1.5], [0.3, 1], [2, 2]])
    data = FiniteData("five", points, np.array([0, 1, 0, 0, 1]) if labelled else None)
    model, proxy = (network(seed, classes=2 * labelled, hidden=4) for seed in (0, 1))
    found = measure(
        model,
        data,
        tables=("sweep",),
        times="uniform",
        proxy="teacher",
        proxy_model=proxy,
        weighting=weighting,
        beta=(0.0, 0.5),
        batch_sizes=(1,),
        samples=count,
        by_layer=False,
        dtype=torch.float64,
    )["sweep"]
    parameters, allowed = list(model.parameters()), torch.as_tensor(points)
    truth = {0.0: 0.0, 0.5: 0.0}
    for s in samples_of(Draws(data, parse_times("uniform"), 0, labelled), count, proxy):
        if labelled:
            assert data.labels is not None
            allowed = torch.as_tensor(points[data.labels == int(s.y)])  # type: ignore[arg-type]
        weight = torch.softmax(-((s.x - (1 - s.t) * allowed) ** 2).sum(1) / (2 * s.t**2), 0)
        velocities = (s.x - allowed) / s.t
        u = velocity_of(model, s)
        dx, dt = jacobian_of(model, s)
        slopes = torch.stack(
            [torch.cat([g.flatten() for g in torch.autograd.grad(c, parameters, retain_graph=True)]) for c in u]
        )
        for beta in truth:
            tangent = velocities + beta * (s.vhat - velocities)
            e = u.detach() + (s.t - s.r) * (tangent @ dx.T + dt) - velocities
            g = 2 * (e / (e.square().sum(1, keepdim=True) + eps) ** p) @ slopes
            mean = weight @ g
            truth[beta] += float(weight @ (g - mean).square().sum(1)) / count
    for beta, expected in truth.items():
        one = row(found, space="gradient", quantity="conditional_variance", beta=beta)
        assert abs(one["value"] - expected) <= 4 * one["std_error"]
        assert one["std_error"] <= 0.15 * expected, "too noisy to tell"
