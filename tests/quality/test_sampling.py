"""n-step sampling against the exact flow of Gaussian data, and against the steps written out."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mfdiag.models.networks.gaussian import GaussianAverageVelocity
from mfdiag.models.networks.mlp import MLP
from mfdiag.quality.sampling import sample


@settings(max_examples=25, deadline=None)
@given(nfe=st.integers(1, 9), mean=st.floats(-2, 2), std=st.floats(0.1, 3), seed=st.integers(0, 99))
def test_the_exact_average_velocity_leads_to_the_data_in_any_number_of_steps(
    nfe: int, mean: float, std: float, seed: int
) -> None:
    noise = torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    exact = GaussianAverageVelocity(mean, std, shape=(3,)).double()
    torch.testing.assert_close(sample(exact, noise, nfe), mean + std * noise, atol=1e-6, rtol=1e-5)  # x_0 of the flow


def test_the_steps_written_out() -> None:
    model, noise, labels = MLP(2, hidden=8, depth=1, num_classes=3), torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])
    half, one, zero = torch.full((5,), 0.5), torch.ones(5), torch.zeros(5)
    with torch.no_grad():
        single = noise - model(noise, zero, one, labels)
        middle = noise - 0.5 * model(noise, half, one, labels)
        double = middle - 0.5 * model(middle, zero, half, labels)
    torch.testing.assert_close(sample(model, noise, 1, labels), single)
    torch.testing.assert_close(sample(model, noise, 2, labels), double)
    assert not sample(model, noise).requires_grad
