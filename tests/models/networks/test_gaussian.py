"""The closed form against the MeanFlow identity, the flow's map, and exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfdiag.errors import InputError
from mfdiag.models.networks.gaussian import GaussianAverageVelocity

STDS = st.floats(0.05, 4.0)
TIMES = st.floats(0.0, 1.0)


def model_of(mean: float, std: float) -> GaussianAverageVelocity:
    return GaussianAverageVelocity(mean, std, (3,)).double()


def points(n: int) -> torch.Tensor:
    return 2 * torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@settings(max_examples=60, deadline=None)
@given(mean=st.floats(-3, 3), std=STDS, first=TIMES, second=TIMES, equal=st.booleans())
def test_satisfies_the_meanflow_identity(mean: float, std: float, first: float, second: float, equal: bool) -> None:
    model = model_of(mean, std)
    x = points(4)
    r = torch.full((4,), min(first, second), dtype=torch.float64)
    t = r.clone() if equal else torch.full_like(r, max(first, second))
    v = model(x, t, t)
    u, derivative = torch.func.jvp(model, (x, r, t), (v, torch.zeros_like(r), torch.ones_like(t)))
    torch.testing.assert_close(u, v - (t - r)[:, None] * derivative, rtol=1e-10, atol=1e-10)


@settings(max_examples=60, deadline=None)
@given(std=STDS, t=st.integers(0, 1000), gap=st.sampled_from([0.0, 1e-15, 1e-12, 1e-8, 1e-4, 1e-2]))
def test_is_accurate_near_equal_times(std: float, t: int, gap: float) -> None:
    """Against rho from integer square roots of 60 digits."""
    model = model_of(0.0, std)
    times = (max(t / 1000 - gap, 0.0), t / 1000)
    at = [torch.full((1,), value, dtype=torch.float64) for value in times]
    u = model(torch.ones(1, 3, dtype=torch.float64), *at)[0, 0].item()
    s, tr, tt = (Fraction(value) for value in (model.std.item(), *times))
    s_r2, s_t2 = ((1 - time) ** 2 * s**2 + time**2 for time in (tr, tt))
    root_r, root_t = square_root(s_r2), square_root(s_t2)
    exact = (tt - s**2 * (1 - tt)) / s_t2 if tt == tr else (1 - root_r / root_t) / (tt - tr)
    # the slope crosses zero where its two terms cancel, so the error is held against the larger of them
    size = max(abs(exact), (tt + tr) / (root_t * (root_t + root_r)))
    assert abs(Fraction(u) - exact) <= Fraction(1, 10**10) * size


def square_root(value: Fraction) -> Fraction:
    scale = 10**60
    return Fraction(isqrt(value.numerator * scale**2 // value.denominator), scale)


@pytest.mark.parametrize(("mean", "std", "r", "t"), [(0.0, 0.5, 0.0, 1.0), (1.5, 2.0, 0.2, 0.9), (-1.0, 0.1, 0.0, 0.3)])
def test_transports_samples(mean: float, std: float, r: float, t: float) -> None:
    model = model_of(mean, std)
    n = 40_000
    generator = torch.Generator().manual_seed(0)
    x0 = mean + std * torch.randn(n, 3, dtype=torch.float64, generator=generator)
    x_t = (1 - t) * x0 + t * torch.randn(n, 3, dtype=torch.float64, generator=generator)
    x_r = x_t - (t - r) * model(x_t, torch.full((n,), r).double(), torch.full((n,), t).double())
    spread = ((1 - r) ** 2 * std**2 + r**2) ** 0.5
    assert x_r.std().item() == pytest.approx(spread, rel=0.01)
    assert x_r.mean().item() == pytest.approx((1 - r) * mean, abs=0.02 * max(spread, 0.1))


def test_parameters_get_gradients() -> None:
    model = model_of(0.3, 0.7)
    time = torch.full((2,), 0.5, dtype=torch.float64)
    model(points(2), time, time).square().sum().backward()
    assert model.mean.grad is not None and model.mean.grad.abs().min() > 0
    assert model.std.grad is not None and model.std.grad.abs() > 0


def test_mean_may_be_nested_and_bad_arguments_are_refused() -> None:
    assert GaussianAverageVelocity([1.0, 2.0], 0.5, (2,)).mean.tolist() == [1.0, 2.0]
    with pytest.raises(InputError, match="std above 0"):
        GaussianAverageVelocity(0.0, 0.0)
    with pytest.raises(InputError, match=r"shape \[3\], but got shape \[2\]"):
        GaussianAverageVelocity([1.0, 2.0], 0.5, (3,))
