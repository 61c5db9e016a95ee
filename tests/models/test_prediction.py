"""Predictions: round trips through the path's algebra, agreement at the exact solution, and what wrapping keeps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.flow.paths import LINEAR, TRIGONOMETRIC, Path
from mfdiag.models.networks.gaussian import GaussianAverageVelocity
from mfdiag.models.networks.mlp import MLP
from mfdiag.models.networks.registry import PREDICTIONS
from mfdiag.models.prediction import PredictionAdapter, as_average_velocity, prediction_name

SQUARED = Path("squared", lambda t: 1 - t**2, lambda t: t * (2 - t))
KINDS = pytest.mark.parametrize("kind", ["x", "eps", "v"])
PATHS = pytest.mark.parametrize("path", [LINEAR, TRIGONOMETRIC, SQUARED], ids=lambda path: path.name)


class Returns(nn.Module):
    """A network that returns a fixed tensor."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.answer


def exact_prediction(kind: str, x0: Tensor, x1: Tensor, t: Tensor, path: Path) -> Tensor:
    """What a network of this kind predicts where it knows both ends."""
    alpha, sigma = (f(t)[:, None] for f in (path.alpha, path.sigma))
    return {"x": x0, "eps": x1, "v": alpha * x1 - sigma * x0, "u": path.velocity(x0, x1, t)}[kind]


@PATHS
@KINDS
@given(t=st.floats(0.06, 0.94), seed=st.integers(0, 99))
def test_knowing_the_ends_gives_the_conditional_velocity(path: Path, kind: str, t: float, seed: int) -> None:
    x0, x1 = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    time = torch.full((3,), t, dtype=torch.float64)
    network = as_average_velocity(
        Returns(exact_prediction(kind, x0, x1, time, path)), f"{kind}:0" if kind != "v" else kind, path
    )
    u = network(path.point(x0, x1, time), 0 * time, time)
    torch.testing.assert_close(u, path.velocity(x0, x1, time), rtol=1e-8, atol=1e-8)


@PATHS
@KINDS
def test_round_trip_from_average_velocity(path: Path, kind: str) -> None:
    """u -> the pair of ends that has x_t and u -> prediction -> u, with the ends from a 2 x 2 system."""
    x_t, u = torch.randn(2, 6, 3, dtype=torch.float64)
    t = 0.1 + 0.8 * torch.rand(6, dtype=torch.float64)
    system = torch.stack([torch.stack([path.alpha(t), path.sigma(t)], 1), torch.stack(path.rates(t), 1)], 1)
    x0, x1 = torch.linalg.solve(system, torch.stack([x_t, u], 1)).unbind(1)
    network = PredictionAdapter(Returns(exact_prediction(kind, x0, x1, t, path)), kind, path)
    torch.testing.assert_close(network(x_t, t / 2, t), u, rtol=1e-8, atol=1e-8)


def test_linear_forms() -> None:
    """x: (x_t - x) / t; eps: (eps - x_t) / (1 - t), each above the floor; u: the network itself."""
    x_t, answer = torch.randn(2, 5, 2, dtype=torch.float64)
    t = torch.tensor([0.0, 0.02, 0.5, 0.97, 1.0], dtype=torch.float64)
    velocities = {kind: PredictionAdapter(Returns(answer), kind, LINEAR)(x_t, 0 * t, t) for kind in ("x", "eps")}
    torch.testing.assert_close(velocities["x"], (x_t - answer) / t.clamp_min(0.05)[:, None])
    torch.testing.assert_close(velocities["eps"], (answer - x_t) / (1 - t).clamp_min(0.05)[:, None])
    network = MLP(2)
    assert as_average_velocity(network, "u", LINEAR) is network


def test_on_the_trigonometric_path_v_is_the_velocity_but_for_its_speed() -> None:
    x_t, answer = torch.randn(2, 5, 2, dtype=torch.float64)
    t = torch.rand(5, dtype=torch.float64)
    torch.testing.assert_close(PredictionAdapter(Returns(answer), "v", TRIGONOMETRIC)(x_t, t, t), torch.pi / 2 * answer)


def test_the_exact_denoiser_gives_the_exact_velocity() -> None:
    """N(m, s^2): E[x_0 | x_t] = m + (1-t) s^2 / s_t^2 (x_t - (1-t) m)."""
    m, s = 0.5, 2.0
    x = torch.randn(7, 2, dtype=torch.float64)
    t = 0.1 + 0.9 * torch.rand(7, dtype=torch.float64)
    time = t[:, None]
    denoised = m + (1 - time) * s**2 / ((1 - time) ** 2 * s**2 + time**2) * (x - (1 - time) * m)
    exact = GaussianAverageVelocity(m, s, (2,)).double()
    torch.testing.assert_close(
        PredictionAdapter(Returns(denoised), "x", LINEAR)(x, t, t), exact(x, t, t).detach(), rtol=1e-6, atol=1e-6
    )


@KINDS
def test_derivatives_go_through(kind: str) -> None:
    torch.manual_seed(0)
    model = PredictionAdapter(MLP(2, hidden=8).double(), kind, SQUARED)
    x, dx = torch.randn(2, 4, 2, dtype=torch.float64)
    r, t = torch.rand(4, dtype=torch.float64) / 3, 0.4 + torch.rand(4, dtype=torch.float64) / 3
    _, along = torch.func.jvp(lambda x, t: model(x, r, t), (x, t), (dx, torch.ones_like(t)))
    h = 1e-6
    difference = (model(x + h * dx, r, t + h) - model(x - h * dx, r, t - h)) / (2 * h)
    torch.testing.assert_close(along, difference, rtol=1e-6, atol=1e-7)


def test_wrapping_keeps_classes_and_passes_labels() -> None:
    network = MLP(2, hidden=8, num_classes=3)
    wrapped = PredictionAdapter(network, "v", TRIGONOMETRIC)
    x, t, y = torch.randn(3, 2), torch.rand(3), torch.arange(3)
    assert wrapped.num_classes == 3
    torch.testing.assert_close(wrapped(x, t, t, y), torch.pi / 2 * network(x, t, t, y))
    assert not torch.allclose(wrapped(x, t, t, y), wrapped(x, t, t))


def test_names() -> None:
    assert [prediction_name(kind) for kind in PREDICTIONS] == list(PREDICTIONS)
    assert prediction_name("x:0.050") == "x" and prediction_name("eps:floor=0.1") == "eps:0.1"
    for spec, message in (
        ("epsilon", "Did you mean 'eps'"),
        ("v:0.1", "v takes no arguments"),
        ("x:1", r"a floor in \[0, 1\) in 'x:1', but got 1"),
    ):
        with pytest.raises(InputError, match=message):
            prediction_name(spec)
