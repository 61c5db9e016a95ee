"""The exact flow map against its closed form for a Gaussian, and against scipy's solver for a mixture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import load_data
from mfdiag.flow.draw import posterior_of
from mfdiag.quality.flow_map import exact_flow_map


def points(n: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    end, start = torch.rand(n, 2, generator=generator, dtype=torch.float64).sort(dim=1).values.T
    start[0], end[0], end[1] = 1, 0, start[1]
    return x, start, end


def test_gaussian_in_closed_form() -> None:
    """Points keep their quantile: (x_t - mean_t) / std_t is constant, docs/theory.md#gaussian-truth."""
    x, start, end = points(20, 3)

    def law(t: Tensor) -> tuple[Tensor, Tensor]:
        return (1 - t) * 0.5, ((1 - t) ** 2 * 0.3**2 + t**2).sqrt()

    (mean_t, std_t), (mean_r, std_r) = law(start), law(end)
    expected = mean_r[:, None] + (std_r / std_t)[:, None] * (x - mean_t[:, None])
    actual = exact_flow_map(load_data("gaussian:3,0.5,0.3"), x, start, end)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_mixture_against_an_adaptive_solver() -> None:
    data = load_data("mixture:2,8")
    x, start, end = points(5, 2)
    posterior = posterior_of(data)
    assert posterior is not None

    def rate(t: float, flat: np.ndarray) -> np.ndarray:
        point = torch.as_tensor(flat)[None]
        return posterior(point, torch.tensor([t]), torch.full((1, 3), 0.5)).mean[0].numpy()

    actual = exact_flow_map(data, x, start, end)
    for i in range(len(x)):
        solved = solve_ivp(rate, (float(start[i]), float(end[i])), x[i].numpy(), rtol=1e-9, atol=1e-9).y[:, -1]
        np.testing.assert_allclose(actual[i], solved, rtol=1e-4, atol=1e-4)


def test_data_without_a_closed_form_are_refused() -> None:
    with pytest.raises(InputError, match="closed form"):
        exact_flow_map(load_data("two_moons"), *points(4, 2))
