"""A network's velocity on another path than its own, against the exact velocities of Gaussian data on both."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mfdiag.flow.paths import DDPM, LINEAR, TRIGONOMETRIC, Path
from mfdiag.models.path_change import PathChange, noise_share, time_of_share
from mfdiag.models.prediction import as_average_velocity

MEAN = torch.tensor([0.7, -1.1, 0.2], dtype=torch.float64)
VARIANCE = torch.tensor([0.4, 1.3, 0.05], dtype=torch.float64)
BENT = Path("bent", lambda t: 1 - t**2, lambda t: t**1.5)
PATHS = (LINEAR, TRIGONOMETRIC, DDPM, BENT)
NAMED = {"ids": lambda path: path.name}


def ends(path: Path, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """E[x_0 | x_t] and E[x_1 | x_t] for the data N(MEAN, diag(VARIANCE))."""
    a, s = path.alpha(t)[:, None], path.sigma(t)[:, None]
    rest = (x - a * MEAN) / (a**2 * VARIANCE + s**2)
    return MEAN + a * VARIANCE * rest, s * rest


def velocity(path: Path, x: Tensor, t: Tensor) -> Tensor:
    return path.velocity(*ends(path, x, t), t)


class Noise(nn.Module):
    """The exact noise, on the times of a path."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return ends(self.path, x, t)[1]


def teacher(own: Path, path: Path) -> PathChange:
    return PathChange(as_average_velocity(Noise(own), "eps:0", own), own, path)


@pytest.mark.parametrize("path", PATHS, **NAMED)
@pytest.mark.parametrize("own", (DDPM, TRIGONOMETRIC), **NAMED)
def test_exact_noise_gives_the_exact_velocity(own: Path, path: Path) -> None:
    changed = teacher(own, path)
    low, high = changed.range
    t = low + (high - low) * torch.linspace(0.001, 0.999, 301, dtype=torch.float64)
    x = path.point(MEAN + VARIANCE.sqrt() * torch.randn(301, 3).double(), torch.randn(301, 3).double(), t)
    torch.testing.assert_close(changed(x, t, t), velocity(path, x, t), rtol=1e-10, atol=1e-10)


def test_derivatives_are_those_of_the_exact_velocity() -> None:
    changed, (x, t) = teacher(DDPM, LINEAR), (torch.randn(20, 3).double(), 0.02 + 0.9 * torch.rand(20).double())
    along = (torch.randn(20, 3).double(), torch.ones(20).double())
    _, rate = torch.func.jvp(lambda x, t: changed(x, t, t), (x, t), along)
    _, expected = torch.func.jvp(lambda x, t: velocity(LINEAR, x, t), (x, t), along)
    torch.testing.assert_close(rate, expected, rtol=1e-8, atol=1e-8)


def test_beyond_the_ends_of_ddpm_the_nearest_estimate_is_used() -> None:
    """alpha_1 = 0.00635 and sigma_0 = 0.01, so its times are 0.0099 to 0.9937 of the linear path."""
    changed = teacher(DDPM, LINEAR)
    low, high = changed.range
    zero, one = torch.tensor([0.0, 1.0], dtype=torch.float64).split(1)
    assert low == pytest.approx(float(DDPM.sigma(zero) / (DDPM.alpha(zero) + DDPM.sigma(zero))), abs=1e-12)
    assert high == pytest.approx(float(DDPM.sigma(one) / (DDPM.alpha(one) + DDPM.sigma(one))), abs=1e-12)
    assert (low, high) == (pytest.approx(0.0099015, abs=1e-7), pytest.approx(0.9936872, abs=1e-7))
    x = torch.randn(6, 3).double()
    t = torch.tensor([0, low / 2, low, high, (1 + high) / 2, 1], dtype=torch.float64)
    end = (t > 0.5).double()  # the nearest time of the teacher's path, and its point there
    factor = (DDPM.alpha(end) + DDPM.sigma(end))[:, None]
    x0, x1 = ends(DDPM, factor * x, end)
    own = t[:, None]
    below, above = (x1 - x) / (1 - own), (x - x0) / own
    torch.testing.assert_close(changed(x, t, t), torch.where(own > 0.5, above, below), rtol=1e-9, atol=1e-9)


@given(st.sampled_from(PATHS), st.floats(0, 1))
def test_times_are_found_again(path: Path, time: float) -> None:
    t = torch.tensor([time], dtype=torch.float64)
    share = noise_share(path, t)
    torch.testing.assert_close(noise_share(path, time_of_share(path, share)), share, rtol=1e-12, atol=1e-12)
