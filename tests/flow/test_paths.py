"""Paths: ends, slopes, user functions, and what is refused as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path as File

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mfdiag.errors import InputError
from mfdiag.flow.paths import DDPM, LINEAR, PATHS, TRIGONOMETRIC, Path, end_note, parse_path

SQUARED = Path("squared", lambda t: 1 - t**2, lambda t: t * (2 - t))
BUILT_IN = pytest.mark.parametrize("path", [LINEAR, TRIGONOMETRIC], ids=lambda path: path.name)
EVERY = pytest.mark.parametrize("path", [LINEAR, TRIGONOMETRIC, SQUARED], ids=lambda path: path.name)


def times(count: int = 7) -> torch.Tensor:
    return torch.linspace(0, 1, count, dtype=torch.float64)


@EVERY
def test_data_at_zero_and_noise_at_one(path: Path) -> None:
    x0, x1 = torch.randn(2, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(path.point(x0, x1, torch.zeros(2, dtype=torch.float64)), x0)
    torch.testing.assert_close(path.point(x0, x1, torch.ones(2, dtype=torch.float64)), x1)


@BUILT_IN
def test_slopes_are_those_of_forward_mode(path: Path) -> None:
    for own, derived in zip(path.rates(times()), replace(path, slopes=None).rates(times()), strict=True):
        torch.testing.assert_close(own, derived)


@EVERY
@given(t=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_the_velocity_is_the_slope_of_the_point(path: Path, t: float, seed: int) -> None:
    x0, x1 = torch.randn(2, 2, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    time, h = torch.full((2,), t, dtype=torch.float64), 1e-6
    difference = (path.point(x0, x1, time + h) - path.point(x0, x1, time - h)) / (2 * h)
    torch.testing.assert_close(path.velocity(x0, x1, time), difference, rtol=1e-7, atol=1e-7)


def test_the_trigonometric_path_keeps_unit_variance() -> None:
    alpha, sigma = TRIGONOMETRIC.alpha(times()), TRIGONOMETRIC.sigma(times())
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))


def test_the_steps_of_ddpm() -> None:
    """Its variances multiplied one by one, at the times of its 1,000 steps, and the slope between them."""
    steps = torch.arange(1000, dtype=torch.float64)
    abar = (1 - (1e-4 + steps * (0.02 - 1e-4) / 999)).cumprod(0)
    torch.testing.assert_close(DDPM.alpha(steps / 999), abar.sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(DDPM.sigma(steps / 999), (1 - abar).sqrt(), rtol=1e-7, atol=0)
    middle = (steps[1:] - 0.5) / 999
    torch.testing.assert_close(DDPM.rates(middle)[0], DDPM.alpha(steps / 999).diff() * 999, rtol=1e-4, atol=1e-6)


def test_what_is_left_at_the_ends_is_said(file: File) -> None:
    note = end_note(DDPM)
    assert note is not None and "alpha(1) = 0.0064" in note and "sigma(0) = 0.01" in note and "2e-05 nats" in note
    assert end_note(LINEAR) is None and end_note(TRIGONOMETRIC) is None
    short = end_note(parse_path(f"{file}:short"))
    assert short is not None and "alpha(1) = 0.02" in short


FUNCTIONS = """
import torch

def squared():
    return (lambda t: 1 - t**2), (lambda t: t * (2 - t))

def short():
    return (lambda t: 1 - 0.98 * t), (lambda t: t)

def backwards():
    return (lambda t: t), (lambda t: 1 - t)

def dented():
    return (lambda t: 1 - t), (lambda t: t + torch.sin(2 * torch.pi * t))

def infinite():
    return (lambda t: 1 - t), (lambda t: torch.where((t > 0.4) & (t < 0.6), torch.nan, t))

def single():
    return lambda t: t

def constant():
    return (lambda t: 1), (lambda t: 0)

def summed():
    return (lambda t: 1 - t.sum()), (lambda t: t)
"""


@pytest.fixture
def file(tmp_path: File) -> File:
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    return tmp_path / "functions.py"


def test_two_functions_of_the_user(file: File) -> None:
    path = parse_path(f"{file}:squared")
    assert path.name == f"{file}:squared"
    torch.testing.assert_close(path.rates(times())[0], -2 * times())
    torch.testing.assert_close(path.rates(times())[1], 2 - 2 * times())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("backwards", r"expected alpha\(0\), alpha\(1\), sigma\(0\), sigma\(1\) = 1, 0, 0, 1, got 0, 1, 1, 0"),
        ("dented", "is not valid at t = 0.3"),
        ("infinite", "is not valid at t = 0.4"),
        ("single", "return two functions"),
        ("constant", "cannot be evaluated"),
        ("summed", r"must map times \[n\] to \[n\]"),
        ("missing", "it defines squared"),
    ],
)
def test_what_is_no_path(file: File, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_path(f"{file}:{name}")


def test_names() -> None:
    assert [parse_path(name).name for name in PATHS if ":" not in name] == ["linear", "trigonometric", "ddpm"]
    with pytest.raises(InputError, match="Did you mean 'trigonometric'"):
        parse_path("trigonometry")
    with pytest.raises(InputError, match="linear takes no arguments"):
        parse_path("linear:2")
