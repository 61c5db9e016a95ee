"""Guided velocities as their papers write them, what is drawn under guidance, and posteriors of dropped labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import FiniteData
from mfdiag.flow.draw import Draws
from mfdiag.flow.guidance import GUIDANCES, Guidance, GuidanceScale, parse_guidance
from mfdiag.flow.times import parse_times

CLASSES, NULL = 3, 5
POINTS = np.random.default_rng(0).standard_normal((24, 2)) + 2 * np.array([[1, 0], [0, 1], [-1, -1]])[np.arange(24) % 3]
DATA = FiniteData("points", POINTS, np.arange(24) % CLASSES)
NUMBERS = np.arange(2000)

# (v_c, velocity with the label, velocity with the null label, omega) -> v_g inside the interval
FORMULAS: dict[str, Callable[[float, float, float, float], float]] = {
    "meanflow:2,0.3,0.2,0.7": lambda v, own, null, w: w * v + 0.3 * own + (1 - w - 0.3) * null,
    "meanflow_apart:2,0.3,0.2,0.7": lambda v, own, null, w: w * v + 0.3 * own + (1 - w - 0.3) * null,
    "re_meanflow:0.5,2": lambda v, own, null, w: w * v + (1 - w / 2) * own + (1 - w - (1 - w / 2)) * null,
    "model_guidance:0.4,0.2,0.7": lambda v, own, null, w: v + w * (own - null),
    "soflow:3,0.4,0.7": lambda v, own, null, w: 0.4 * (w * v - (w - 1) * null) + 0.6 * own,
    "improved:3,0.2,0.7": lambda v, own, null, w: v + (1 - 1 / w) * (own - null),
    "improved_power": lambda v, own, null, w: v + (1 - 1 / w) * (own - null),
    "improved_uniform": lambda v, own, null, w: v + (1 - 1 / w) * (own - null),
    "facm:1.75,0.2,0.7": lambda v, own, null, w: null + w * (v - null),
    "teacher:1.5,0.2,0.7": lambda v, own, null, w: null + w * (own - null),
}


def law_of(spec: str) -> Guidance:
    law = parse_guidance(spec)
    assert law is not None
    return law


def draws_of(spec: str, times: str = "uniform:0.5", seed: int = 3) -> Draws:
    return Draws(DATA, parse_times(times), seed, guidance=law_of(spec), null_label=NULL)


@pytest.mark.parametrize("spec", FORMULAS)
def test_factors_make_the_formula(spec: str) -> None:
    law, (v, own, null) = law_of(spec), (1.7, -0.6, 0.4)
    omega = 0.5 if spec.startswith("re_meanflow") else 2.5
    for low, high, t, inside in ((0.2, 0.7, 0.2, True), (0.2, 0.7, 0.7, True), (0.2, 0.7, 0.71, False)):
        for dropped in (False, True):
            scale = GuidanceScale(*(torch.tensor([a], dtype=torch.float64) for a in (omega, low, high)))
            at = torch.tensor([t], dtype=torch.float64)
            factors = law.factors(scale, at, torch.tensor([dropped]))
            if spec.startswith("soflow") and not inside:
                continue  # it decays, see below
            guided = inside and (not dropped or spec.startswith("re_meanflow"))
            outside = {"teacher": own, "facm": 1.75 * v - 0.75 * own}.get(spec.partition(":")[0], v)
            expected = FORMULAS[spec](v, own, null, omega) if guided else outside
            assert float(factors.data * v + factors.labeled * own + factors.null * null) == pytest.approx(expected)
            assert float(sum(factors)) == pytest.approx(1)  # equal velocities are left as they are


def test_every_guidance_is_tested_and_listed() -> None:
    assert {"none", *(spec.partition(":")[0] for spec in FORMULAS)} == set(GUIDANCES)
    assert parse_guidance("none") is None


@given(st.floats(0.1, 8), st.floats(-1, 1), st.floats(0, 0.5), st.floats(0.5, 1), st.floats(0, 1))
def test_names_read_back(omega: float, kappa: float, low: float, high: float, drop: float) -> None:
    law = law_of(f"meanflow:{omega},{kappa},low={low},high={high},drop={drop}")
    again = law_of(law.name)
    assert again.name == law.name and again.drop == law.drop == drop
    assert again.factors_inside(torch.tensor(omega)) == law.factors_inside(torch.tensor(omega))


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("menflow:2", "Did you mean 'meanflow'"),
        ("meanflow", "no value for omega"),
        ("meanflow:0", "omega must be above 0"),
        ("meanflow:2,drop=1.5", r"drop must be in \[0, 1\]"),
        ("meanflow:2,low=0.6,high=0.2", "low must not be above high"),
        ("improved_uniform:5,1", "least must not be above most"),
        ("none:1", "takes no arguments"),
    ],
)
def test_bad_specifications(spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_guidance(spec)


def test_a_label_is_dropped_by_seed_and_number_alone() -> None:
    draws, other = draws_of("meanflow:2,drop=0.3"), draws_of("meanflow:3,drop=0.3", seed=4)
    plain = Draws(DATA, parse_times("uniform:0.5"), 3)
    whole = draws.batch(NUMBERS)
    assert whole.dropped is not None and whole.labels is not None
    mixed = np.random.default_rng(0).permutation(NUMBERS)[:50]
    part = draws.batch(mixed)
    assert part.dropped is not None and torch.equal(part.dropped, whole.dropped[mixed])
    assert abs(float(whole.dropped.double().mean()) - 0.3) < 4 * (0.3 * 0.7 / len(NUMBERS)) ** 0.5
    unguided = plain.batch(NUMBERS)
    assert unguided.labels is not None and torch.equal(unguided.x_t, whole.x_t)
    assert torch.equal(whole.labels, torch.where(whole.dropped, NULL, unguided.labels))
    assert not torch.equal(other.batch(NUMBERS).dropped, whole.dropped)  # type: ignore[arg-type]


def test_pairs_with_r_equal_to_t_keep_v_c() -> None:
    draws, everywhere = draws_of("meanflow_apart:2,0.3,0.2,0.7"), draws_of("meanflow:2,0.3,0.2,0.7")
    batch, plain = draws.batch(NUMBERS), everywhere.batch(NUMBERS)
    assert batch.scale is not None and plain.scale is not None and batch.dropped is not None
    factors = law_of("meanflow_apart:2,0.3,0.2,0.7").factors(batch.scale, batch.t, batch.dropped)
    equal = batch.r == batch.t
    assert (factors.data[equal] == 1).all() and (factors.null[equal] == 0).all()
    expected = law_of("meanflow:2,0.3,0.2,0.7").factors(plain.scale, plain.t, batch.dropped)
    assert all(torch.equal(a[~equal], b[~equal]) for a, b in zip(factors, expected, strict=True))
    assert (factors.data[~equal] == 2).any() and equal.any()


def test_soflows_strength_decays_to_zero() -> None:
    """As its code writes it: all of it up to the time of decay, 1 - exp(-0.025 q / (1 - q)) after it."""
    law, t = law_of("soflow:3,0.4,0.6"), torch.tensor([0.3, 0.6, 0.65, 0.8, 0.99, 1.0], dtype=torch.float64)
    scale = GuidanceScale(*(torch.full_like(t, number) for number in (3, 0, 1)))
    factors = law.factors(scale, t, torch.zeros(6, dtype=torch.bool))
    q = ((1 - t[2:]) / 0.4).clamp(max=1 - 1e-6)
    strength = torch.cat([torch.ones(2), 1 - torch.exp(-0.025 * (q / (1 - q)))]) * 2
    torch.testing.assert_close(factors.data, 0.4 * (1 + strength))
    torch.testing.assert_close(factors.null, -0.4 * strength)
    assert (factors.labeled == 0.6).all() and factors.null[-1] == 0
    assert law.factors(scale, t, torch.ones(6, dtype=torch.bool)).data.tolist() == [1] * 6


def test_strengths_drawn_for_each_sample() -> None:
    batch = draws_of("improved_power:7,0.1").batch(NUMBERS)
    scale, equal = batch.scale, batch.r == batch.t
    assert scale is not None and 0.4 < float(equal.double().mean()) < 0.6
    # omega = (1 + 7)^U, so log_8 omega is uniform
    assert abs(float(scale.omega.log().mean() / np.log(8)) - 0.5) < 4 / (12 * len(NUMBERS)) ** 0.5
    assert (scale.low[equal] == 0).all() and (scale.high[equal] == 1).all()
    assert (scale.low[~equal] > 0).all() and (scale.low <= 0.5).all() and (scale.high >= 0.5).all()
    drawn = draws_of("improved_uniform:2,4,0.6,0.2").batch(NUMBERS)
    assert drawn.scale is not None and drawn.dropped is not None
    omega = drawn.scale.omega
    assert (omega[drawn.dropped] == 1).all()
    assert abs(float((omega[~drawn.dropped] > 1).double().mean()) - 0.6) < 0.05
    assert ((omega == 1) | ((omega >= 2) & (omega <= 4))).all()


def test_the_posterior_of_a_dropped_label_is_over_all_data() -> None:
    draws = draws_of("meanflow:2,drop=0.5", times="uniform")
    batch = draws.batch(NUMBERS[:40])
    known = draws.velocity_posterior(batch)
    assert known is not None and batch.dropped is not None and batch.labels is not None
    assert 5 < int(batch.dropped.sum()) < 35
    points, labels = torch.as_tensor(POINTS), torch.arange(24) % CLASSES
    for i in range(40):
        t, x = batch.t[i], batch.x_t[i]
        near = points if batch.dropped[i] else points[labels == batch.labels[i]]
        weights = torch.softmax(-((x - (1 - t) * near) ** 2).sum(1) / (2 * t**2), 0)
        velocities = (x - (1 - t) * near) / t - near
        mean = weights @ velocities
        torch.testing.assert_close(known.mean[i], mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(known.variance[i], weights @ (velocities - mean) ** 2, rtol=1e-5, atol=1e-6)
        assert (velocities - known.draw[i]).abs().sum(1).min() < 1e-6  # a velocity that was possible
