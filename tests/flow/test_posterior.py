"""Exact posteriors against brute force: weighted draws from the prior, the closed form, the dense softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from mfdiag.flow.data.datasets import load_data
from mfdiag.flow.draw import posterior_of
from mfdiag.flow.posterior import FinitePosterior, MixturePosterior
from mfdiag.flow.seeds import uniforms
from mfdiag.models.networks.gaussian import GaussianAverageVelocity


def full(time: float, n: int = 1) -> Tensor:
    return torch.full((n,), time, dtype=torch.float64)


def words(n: int, width: int, seed: int = 0) -> Tensor:
    return torch.as_tensor(uniforms(seed, "test", np.arange(n), width))


# -- Gaussian and mixture -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(mean=st.floats(-3, 3), std=st.floats(0.05, 4), t=st.floats(1e-3, 1), seed=st.integers(0, 99))
def test_gaussian_closed_form(mean: float, std: float, t: float, seed: int) -> None:
    """From regression on x_t, with cov(x_0, x_t) = (1-t) s^2 and cov(x_1, x_t) = t."""
    x = 2 * torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    velocity = MixturePosterior.gaussian(mean, std, 3)(x, full(t, 5), words(5, 4))
    s_t2 = (1 - t) ** 2 * std**2 + t**2
    centred = x - (1 - t) * mean
    v = t / s_t2 * centred - (mean + (1 - t) * std**2 / s_t2 * centred)
    torch.testing.assert_close(velocity.mean, v, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(velocity.variance, torch.full_like(x, std**2 / s_t2), rtol=1e-10, atol=0)
    model = GaussianAverageVelocity(0, 1, (3,)).double()
    torch.nn.init.constant_(model.mean, mean)
    torch.nn.init.constant_(model.std, std)
    torch.testing.assert_close(velocity.mean, model(x, full(t, 5), full(t, 5)).detach(), rtol=1e-9, atol=1e-9)


def test_gaussian_draws_have_their_moments() -> None:
    n, t = 20_000, 0.6
    posterior = MixturePosterior.gaussian(0.5, 0.7, 2)
    x = torch.tensor([[0.3, -1.1]], dtype=torch.float64).expand(n, 2)
    velocity = posterior(x, full(t, n), words(n, posterior.width))
    z = ((velocity.draw - velocity.mean) / velocity.variance.sqrt()).numpy()
    assert all(stats.kstest(z[:, k], "norm").pvalue > 1e-3 for k in range(2))
    assert stats.pearsonr(z[:, 0], z[:, 1]).pvalue > 1e-3


@pytest.mark.parametrize("t", [0.25, 0.6, 0.95])
def test_mixture_equals_weighted_draws_from_the_prior(t: float) -> None:
    """Self-normalised importance sampling: x_0 from the mixture, weight N(x_t; (1-t) x_0, t^2 I)."""
    data = load_data("mixture:2,3")
    posterior = posterior_of(data)
    assert posterior is not None
    rng = np.random.default_rng(0)
    count = 200_000
    component = rng.choice(3, count, p=data.weights)
    normal = np.stack([rng.multivariate_normal(np.zeros(2), c, count) for c in data.covariances])
    x0 = data.means[component] + normal[component, np.arange(count)]
    points = (1 - t) * data.means + t * rng.normal(size=(3, 2))
    n = 20_000
    for point in points:
        log_weight = -((point - (1 - t) * x0) ** 2).sum(1) / (2 * t**2)
        weight = np.exp(log_weight - log_weight.max())
        weight /= weight.sum()
        v_c = (point - x0) / t

        def expectation(f: np.ndarray, weight: np.ndarray = weight) -> tuple[np.ndarray, np.ndarray]:
            mean = weight @ f
            return mean, np.sqrt(weight**2 @ (f - mean) ** 2)

        x = torch.as_tensor(point)[None].expand(n, 2)
        velocity = posterior(x, full(t, n), words(n, posterior.width))
        mean, error = expectation(v_c)
        assert (np.abs(velocity.mean[0].numpy() - mean) <= 4 * error).all()
        variance, error = expectation((v_c - velocity.mean[0].numpy()) ** 2)
        assert (np.abs(velocity.variance[0].numpy() - variance) <= 4 * error).all()
        # draws: mean, variances and covariance of the same law
        draws = velocity.draw.numpy()
        products = [draws[:, 0], draws[:, 1], draws[:, 0] ** 2, draws[:, 1] ** 2, draws[:, 0] * draws[:, 1]]
        truths = [v_c[:, 0], v_c[:, 1], v_c[:, 0] ** 2, v_c[:, 1] ** 2, v_c[:, 0] * v_c[:, 1]]
        for ours, theirs in zip(products, truths, strict=True):
            mean, error = expectation(theirs)
            assert abs(ours.mean() - mean) <= 4 * np.hypot(error, ours.std() / n**0.5)


def test_mixture_draws_fall_into_components_by_their_posterior_weights() -> None:
    """Components so far apart that a draw tells where it came from."""
    means = torch.tensor([[-9.0, 0], [0, 0], [9, 0]], dtype=torch.float64)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    posterior = MixturePosterior.of_covariances(weights, means, 0.01 * torch.eye(2).expand(3, 2, 2))
    n, t, x = 20_000, 0.95, torch.tensor([[0.2, 0.0]], dtype=torch.float64)
    velocity = posterior(x.expand(n, 2), full(t, n), words(n, 3))
    x0 = x - t * velocity.draw
    counts = torch.bincount((x0[:, 0] / 9).round().long() + 1, minlength=3).numpy()
    s2 = (1 - t) ** 2 * 0.01 + t**2
    density = weights * torch.exp(-((x - (1 - t) * means) ** 2).sum(1) / (2 * s2))
    assert stats.chisquare(counts, n * (density / density.sum()).numpy()).pvalue > 1e-3


def test_equal_components_are_one_gaussian() -> None:
    one = MixturePosterior.gaussian(0.4, 0.8, 2)
    twice = MixturePosterior.of_covariances(
        torch.tensor([0.3, 0.7]), torch.full((2, 2), 0.4), 0.64 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    )
    x, t, u = torch.randn(6, 2, dtype=torch.float64), torch.rand(6, dtype=torch.float64), words(6, 3)
    for name in ("mean", "variance"):
        torch.testing.assert_close(getattr(one(x, t, u), name), getattr(twice(x, t, u), name), rtol=1e-6, atol=1e-6)


# -- finite data ----------------------------------------------------------------------------------------------------


def dense(points: Tensor, x: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [n, N], mean and variance of v_c from the plain softmax."""
    logits = -((x[:, None] - (1 - t) * points) ** 2).sum(2) / (2 * t**2)
    weight = torch.softmax(logits, 1)
    v_c = (x[:, None] - points) / t
    mean = (weight[:, :, None] * v_c).sum(1)
    return weight, mean, (weight[:, :, None] * (v_c - mean[:, None]) ** 2).sum(1)


@pytest.fixture
def points() -> Tensor:
    return torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spread", ["apart", "close"])
@pytest.mark.parametrize("t", [1e-4, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-6, 1.0])
def test_finite_equals_the_dense_softmax(points: Tensor, t: float, spread: str) -> None:
    """Also where the softmax is sharp: points about t apart, at the smallest times."""
    if spread == "close":
        points = 1 + t * points
    generator = torch.Generator().manual_seed(1)
    x = (1 - t) * points[:40] + t * torch.randn(40, 3, dtype=torch.float64, generator=generator)
    velocity = FinitePosterior(points)(x, full(t, 40), words(40, 1))
    weight, mean, variance = dense(points, x, t)
    assert spread == "apart" or (weight.amax(1) < 0.999).all(), "the softmax should be undecided here"
    torch.testing.assert_close(velocity.mean, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(velocity.variance, variance, rtol=1e-6, atol=1e-6)
    assert torch.isfinite(velocity.draw).all()


@settings(max_examples=12, deadline=None)
@given(tile=st.integers(1, 210), queries=st.integers(1, 50), t=st.floats(0.05, 1), seed=st.integers(0, 99))
def test_tiles_and_queries_change_nothing(tile: int, queries: int, t: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(200, 3, dtype=torch.float64, generator=generator)
    x, u = torch.randn(40, 3, dtype=torch.float64, generator=generator), words(40, 1, seed)
    labels, sample_labels = torch.arange(200) % 3, torch.arange(40) % 3
    for restriction in (None, sample_labels):
        whole = FinitePosterior(points, labels)(x, full(t, 40), u, restriction)
        parts = FinitePosterior(points, labels, tile=tile, queries=queries)(x, full(t, 40), u, restriction)
        for ours, theirs in zip(parts, whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_labels_restrict(points: Tensor) -> None:
    labels, sample_labels = torch.arange(200) % 4, torch.tensor([3, 0, 2, 0, 3])
    x, t, u = torch.randn(5, 3, dtype=torch.float64), 0.7, words(5, 1)
    velocity = FinitePosterior(points, labels)(x, full(t, 5), u, sample_labels)
    for k, label in enumerate(sample_labels):
        one = slice(k, k + 1)
        _, mean, variance = dense(points[labels == label], x[one], t)
        torch.testing.assert_close(velocity.mean[one], mean)
        torch.testing.assert_close(velocity.variance[one], variance)
        alone = FinitePosterior(points[labels == label])(x[one], full(t), u[one])
        torch.testing.assert_close(velocity.draw[one], alone.draw)
    free = FinitePosterior(points, labels)(x, full(t, 5), u)
    torch.testing.assert_close(free.mean, dense(points, x, t)[1])


@pytest.mark.parametrize("tile", [3, 2048])
def test_finite_draws_have_the_posterior_frequencies(tile: int) -> None:
    points = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    n, t, x = 20_000, 0.8, torch.tensor([[0.2, -0.4]], dtype=torch.float64)
    velocity = FinitePosterior(points, tile=tile)(x.expand(n, 2), full(t, n), words(n, 1))
    drawn = (x - t * velocity.draw)[:, None].sub(points).norm(dim=2)
    assert drawn.amin(1).max() < 1e-9, "a draw is one of the points"
    counts = torch.bincount(drawn.argmin(1), minlength=12).numpy()
    weight = dense(points, x, t)[0][0].numpy()
    assert stats.chisquare(counts, n * weight).pvalue > 1e-3


def test_shapes_and_float32_data() -> None:
    images = torch.randn(30, 1, 4, 4)
    x = torch.randn(6, 1, 4, 4, dtype=torch.float64)
    velocity = FinitePosterior(images)(x, full(0.5, 6), words(6, 1))
    assert all(part.shape == x.shape and part.dtype == torch.float64 for part in velocity[:3])
    assert velocity.log_density.shape == (6,)
    _, mean, _ = dense(images.double().flatten(1), x.flatten(1), 0.5)
    torch.testing.assert_close(velocity.mean.flatten(1), mean)
