"""Measures under guidance: parts of the variance of v_g, and of the gradient with guidance and without, from loops."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import accumulated, covariance_trace, loss_gradient, one_cell, randomised, row, rows, samples_of
from torch import Tensor, nn

from mfdiag import InputError, measure
from mfdiag.flow.data.datasets import FiniteData
from mfdiag.flow.draw import Draws
from mfdiag.flow.guidance import parse_guidance
from mfdiag.flow.times import parse_times
from mfdiag.gradients.accumulate import sum_layers
from mfdiag.gradients.intervals import skewed_jackknife
from mfdiag.measures.parts.guidance import SIGNED, guidance_statistics
from mfdiag.models.networks.mlp import MLP

CLASSES, SAMPLES = 3, 128
GENERATOR = np.random.default_rng(0)
POINTS = 0.3 * GENERATOR.standard_normal((30, 2)) + np.array([[0, 2], [2, 0], [-2, -1]])[np.arange(30) % 3]
DATA = FiniteData("points", POINTS, np.arange(30) % CLASSES)
SPEC = "meanflow:2,0.3,0.1,0.8,0.3"


def network(**arguments: int) -> nn.Module:
    torch.manual_seed(0)
    return randomised(MLP(2, hidden=6, depth=2, **({"num_classes": CLASSES} | arguments))).double()


def measured(guidance: str = SPEC, **options: object) -> pd.DataFrame:
    given = {"tables": ("variance",), "times": "uniform", "samples": SAMPLES, "dtype": torch.float64, "by_layer": False}
    return measure(network(), DATA, guidance=guidance, **{**given, **options})["variance"]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return measured(bins=(1, 2))


def velocities() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """v_c, a, q [n, 2], t [n] and the variance of v_c given (x_t, label), by a loop over samples and points."""
    draws = Draws(DATA, parse_times("uniform"), 0, guidance=parse_guidance(SPEC), null_label=CLASSES)
    batch, module = draws.batch(np.arange(SAMPLES)), network()
    assert batch.labels is not None and batch.dropped is not None
    factors, shifts, spreads = [], [], []
    for i in range(SAMPLES):
        x, t, y = batch.x_t[i : i + 1], batch.t[i : i + 1], batch.labels[i : i + 1]
        guided = 0.1 <= float(t) <= 0.8 and not batch.dropped[i]
        own, null = (module(x, t, t, label)[0].detach() for label in (y, torch.tensor([CLASSES])))
        factors.append(2.0 if guided else 1.0)
        shifts.append(0.3 * own + (1 - 2 - 0.3) * null if guided else 0 * own)
        near = torch.as_tensor(POINTS)
        near = near if batch.dropped[i] else near[torch.arange(30) % CLASSES == y]
        weights = torch.softmax(-((x - (1 - t) * near) ** 2).sum(1) / (2 * t**2), 0)
        all_v = (x - (1 - t) * near) / t - near
        spreads.append((weights @ (all_v - weights @ all_v) ** 2).sum())
    return batch.velocity, torch.tensor(factors)[:, None], torch.stack(shifts), batch.t, torch.stack(spreads)


def test_the_variance_of_the_guided_velocity_in_parts(frame: pd.DataFrame) -> None:
    v_c, a, q, t, spread = velocities()
    for low, inside in ((None, t >= 0), (0.0, t < 0.5), (0.5, t >= 0.5)):
        data, network = (a * v_c)[inside], q[inside]
        expected = {
            "guided_variance": covariance_trace(data + network),
            "guided_variance_data": covariance_trace(data),
            "guided_variance_network": covariance_trace(network),
            "guided_variance_cross": 2
            * float(((data - data.mean(0)) * (network - network.mean(0))).sum())
            / (len(data) - 1),
        }
        found = {name: row(frame, quantity=name, t_low=low, layer="all")["value"] for name in expected}
        assert found == pytest.approx(expected, rel=1e-9)
        parts = [found[f"guided_variance_{name}"] for name in ("data", "network", "cross")]
        assert found["guided_variance"] == pytest.approx(sum(parts))
        within = row(frame, quantity="guided_variance_conditional", t_low=low, layer="all")
        between = row(frame, quantity="guided_variance_between", t_low=low, layer="all")
        assert within["value"] + between["value"] == pytest.approx(found["guided_variance"])
        # E|a (v_c - v)|^2 and E[a^2 tr Sigma] are one number by two estimates
        truth = float((a[:, 0] ** 2 * spread)[inside].mean())
        assert abs(within["value"] - truth) < 4 * within["std_error"]


def test_the_gradient_with_guidance_and_without(frame: pd.DataFrame) -> None:
    """The same samples and labels, v_g or v_c in both roles, by plain autograd."""
    draws = Draws(DATA, parse_times("uniform"), 0, guidance=parse_guidance(SPEC), null_label=CLASSES)
    module = network()
    v_c, a, q, _, _ = velocities()
    plain = samples_of(draws, SAMPLES, proxy=module)
    guided = [s._replace(v_c=(a * v_c + q)[i]) for i, s in enumerate(plain)]
    with_, without = (torch.stack([loss_gradient(module, s) for s in some]) for some in (guided, plain))
    assert row(frame, quantity="variance", estimator="meanflow", layer="all", t_low=None)["value"] == pytest.approx(
        covariance_trace(with_)
    )
    ratio = row(frame, quantity="guidance_variance_ratio", estimator="meanflow", layer="all", t_low=None)
    assert ratio["value"] == pytest.approx(covariance_trace(with_) / covariance_trace(without))
    assert ratio["ci_low"] < ratio["value"] < ratio["ci_high"]
    one = one_cell(SAMPLES)
    S = [sum_layers(accumulated(g[None], 1, one).moments[0]).replicates().S[:, 0, 0, 0] for g in (with_, without)]
    count = np.bincount(one.block)
    paired = skewed_jackknife(S[0] / S[1], count, nonnegative=True)
    assert ratio["ci_high"] == pytest.approx(paired.high) and ratio["std_error"] == pytest.approx(paired.std_error)


def test_engines_agree(frame: pd.DataFrame) -> None:
    slow = measured(bins=(1, 2), engine="reference")
    keys = ["estimator", "layer", "t_low", "quantity"]
    pd.testing.assert_frame_equal(slow[[*keys, "value"]], frame[[*keys, "value"]], rtol=1e-7)


def test_rows_are_there_only_under_guidance(frame: pd.DataFrame) -> None:
    assert frame["quantity"].str.startswith("guid").any()
    for spec in ("none", "meanflow:1,0,0,1,0.3"):  # the second drops labels and guides nothing
        assert not measured(spec)["quantity"].str.startswith("guid").any()
    weighted = measured(weighting="adaptive:1,0.01", posterior="none")
    assert not rows(weighted, quantity="guidance_variance_ratio").empty
    assert rows(weighted, quantity="guided_variance_conditional").empty


def test_intervals_cover() -> None:
    """Parts with a v of heavy tails, so that the truth is known: a v_c = 2 v + n and q = -v + m, coordinate-wise."""
    generator, dim, count = np.random.default_rng(1), 3, 300
    t5 = 5 / 3  # variance of Student's t with 5 degrees of freedom
    truth = {
        "guided_variance": dim * (t5 + 1 + 0.25),
        "guided_variance_data": dim * (4 * t5 + 1),
        "guided_variance_network": dim * (t5 + 0.25),
        "guided_variance_cross": -4 * dim * t5,
        "guided_variance_conditional": dim * 1.0,
        "guided_variance_between": dim * (t5 + 0.25),
    }
    hits = dict.fromkeys(truth, 0)
    repeats = 150
    for _ in range(repeats):
        v, n, m = generator.standard_t(5, (count, dim)), *generator.standard_normal((2, count, dim))
        parts = torch.as_tensor(np.stack([2 * v + n, -v + m / 2, 2 * v]))
        moments = sum_layers(accumulated(parts, 1, one_cell(count)).moments[0]).replicates()
        for name, replicates in guidance_statistics(moments, posterior_known=True).items():
            estimate = skewed_jackknife(replicates, moments.count, nonnegative=name not in SIGNED)
            hits[name] += bool(estimate.low <= truth[name] <= estimate.high)
    assert all(count / repeats > 0.87 for count in hits.values()), hits


class Headless(MLP):
    """A network without a row for the null label."""

    def __init__(self) -> None:
        super().__init__(2, hidden=6, depth=1, num_classes=CLASSES)
        self.label = nn.Embedding(CLASSES, 16)


@pytest.mark.parametrize(
    ("model", "data", "spec", "words"),
    [
        (network(num_classes=0), DATA, SPEC, "needs labels, but the network takes none"),
        (network(), FiniteData("bare", POINTS), SPEC, "needs labels, but bare has none"),
        (network(), DATA, "improved:2", "needs? .*velocity head|guides by a velocity head"),
        (network(), DATA, "teacher:2", "pass --proxy teacher=PATH"),
        (Headless(), DATA, SPEC, "the network does not accept it"),
    ],
)
def test_what_cannot_be_guided(model: nn.Module, data: FiniteData, spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        measure(model, data, guidance=spec, samples=64, tables=("sweep",), beta=[0, 1])


def test_a_teacher_leaves_no_noise_given_the_point() -> None:
    teacher = network()
    torch.manual_seed(1)
    frames = measure(
        network(),
        DATA,
        tables=("variance", "compare"),
        guidance="teacher:2",
        proxy="teacher",
        proxy_model=randomised(teacher, seed=1),
        samples=64,
        dtype=torch.float64,
        by_layer=False,
    )
    value = row(frames["variance"], quantity="conditional_variance", estimator="meanflow", layer="all", t_low=None)
    assert abs(value["value"]) < 1e-9
    assert not set(frames["compare"]["estimator"]) & {"terminal_velocity", "stable_velocity:16"}
