"""Sources: their laws, what they are fitted to, and what their components say of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import mfdiag.flow.sources as sources
from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import FiniteData, load_data
from mfdiag.flow.draw import Draws
from mfdiag.flow.seeds import normals, uniforms
from mfdiag.flow.sources import MixedSource, MixtureSource, Source, parse_source
from mfdiag.flow.times import parse_times

N = 20_000
RNG = np.random.default_rng(0)
LABELS = np.arange(900) % 3
LABELLED = FiniteData("labelled", RNG.normal(size=(900, 2)) * (1 + LABELS[:, None]) + 4 * LABELS[:, None], LABELS)
PLAIN = load_data("gaussian:3,0.5,2")
SOURCES = {
    spec: parse_source(spec, LABELLED) for spec in ("gaussian", "gaussian:2.5", "mixture", "mixed", "norm_aligned")
}
CODE = """
import torch
from torch import nn

class Shift(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = nn.Embedding(3, 2)

    def forward(self, z, labels):
        return 0.5 * z + self.mean(labels)

class Flat(nn.Module):
    def forward(self, z, labels):
        return z.flatten()

def shift():
    torch.manual_seed(0)
    return Shift()

def flat():
    return Flat()

def number():
    return 3
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    (tmp_path / "source.py").write_text(CODE)
    return tmp_path / "source.py"


def sample(source: Source, count: int = N, labels: np.ndarray | None = None) -> np.ndarray:
    return source.sample(uniforms(0, "noise", np.arange(count), source.width), labels)


def test_gaussian_is_the_stream_of_normal_numbers() -> None:
    source = parse_source("gaussian", load_data("digits"))
    np.testing.assert_array_equal(sample(source, 5), normals(0, "noise", np.arange(5), 64).reshape(5, 1, 8, 8))


def test_mixture_lies_around_the_means_of_the_data() -> None:
    source = parse_source("mixture:k=8,std=0.05", load_data("eight_gaussians"))
    assert isinstance(source, MixtureSource)
    ring = load_data("eight_gaussians").points.reshape(-1, 2)
    nearest = ((source.means[:, None] - ring[None, :4000]) ** 2).sum(2).argmin(0)
    assert (np.bincount(nearest, minlength=8) > 400).all(), "each mean stands in a cluster of its own"
    x1 = sample(source)
    distance = ((x1[:, None] - source.means) ** 2).sum(2)
    counts = np.bincount(distance.argmin(1), minlength=8)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert stats.kstest(distance.min(1) / 0.05**2, stats.chi2(2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("data", ["gaussian:3,0.5,2", "digits", "two_moons"])
def test_norm_aligned_has_the_mean_norm_of_the_data(data: str) -> None:
    law = load_data(data)
    x1 = np.linalg.norm(sample(parse_source("norm_aligned", law)).reshape(N, -1), axis=1)
    x0 = np.linalg.norm(law.sample(uniforms(5, "data", np.arange(N), law.width))[0].reshape(N, -1), axis=1)
    error = np.hypot(x1.std(), x0.std()) / N**0.5
    assert abs(x1.mean() - x0.mean()) <= 4 * error


def test_mixed_goes_from_noise_to_the_data_of_the_label() -> None:
    labels = np.arange(N) % 3
    noise = sample(parse_source("mixed:0,0", LABELLED), labels=labels)
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    fitted = sample(parse_source("mixed:1,1", LABELLED), labels=labels)
    for label in range(3):
        own, points = fitted[labels == label], LABELLED.points[label::3]
        np.testing.assert_allclose(own.mean(0), points.mean(0), atol=0.1)
        assert own.var(0).mean() == pytest.approx(points.var(0).mean(), rel=0.05)


def test_mixed_variance_is_linear_in_w() -> None:
    """E[x_1] = E[w] m and Var[x_1] = E[w s^2 + 1 - w] + Var[w] m^2, with w uniform."""
    source = parse_source("mixed:0.2,0.8", PLAIN)
    assert isinstance(source, MixedSource)
    x1, (m,), (s2,) = sample(source), source.means, source.variances
    np.testing.assert_allclose(x1.mean(0), 0.5 * m, atol=4 * x1.std() / N**0.5)
    np.testing.assert_allclose(x1.var(0), 0.5 * s2 + 0.5 + m**2 * 0.6**2 / 12, rtol=0.05)


def test_statistics_of_all_data_without_labels() -> None:
    source = parse_source("mixed", PLAIN)
    assert isinstance(source, MixedSource) and not source.depends_on_label
    np.testing.assert_array_equal(source.means, np.full((1, 3), 0.5))
    np.testing.assert_array_equal(source.variances, [4])


@pytest.mark.parametrize("data", ["mixture:3,5", "two_moons"])
def test_statistics_are_those_of_the_whole_law(data: str) -> None:
    """A known mixture is standardized in closed form, and so are the points of a built-in data set."""
    source = parse_source("mixed", load_data(data))
    assert isinstance(source, MixedSource)
    np.testing.assert_allclose(source.means, 0, atol=1e-6)
    np.testing.assert_allclose(source.variances, [1], rtol=1e-6)


def test_mean_norm_of_a_gaussian_is_exact_to_four_digits() -> None:
    law = load_data("gaussian:3,0.5,2")
    truth = 2 * stats.ncx2(3, 3 * 0.25**2).expect(np.sqrt)
    source = parse_source("norm_aligned", law)
    assert isinstance(source, MixtureSource)
    assert source.std * stats.chi(3).mean() == pytest.approx(truth, rel=1e-4)


def test_centers_are_the_means_of_the_points_next_to_them() -> None:
    """A fixed point of Lloyd's algorithm over all points, on which another start cannot improve."""
    points = load_data("eight_gaussians").points.reshape(-1, 2).astype(np.float64)
    source = parse_source("mixture:8,0.1", load_data("eight_gaussians"))
    assert isinstance(source, MixtureSource)
    nearest = ((points[:, None] - source.means) ** 2).sum(2).argmin(1)
    means = np.array([points[nearest == k].mean(0) for k in range(8)])
    np.testing.assert_allclose(source.means, means, rtol=1e-9, atol=1e-12)


def test_centers_of_more_points_than_fit_are_near_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass of mini-batch k-means; four standard errors of a center are 4 x 0.1 / 1000^(1/2)."""
    rng = np.random.default_rng(4)
    corners = np.array([[0, 0], [3, 0], [0, 3], [3, 3.0]])
    points = np.concatenate([corner + 0.1 * rng.normal(size=(1000, 2)) for corner in corners])  # sorted, as files are
    monkeypatch.setattr(sources, "_MOST_CENTERS", 500)
    monkeypatch.setattr(sources, "_DRAWN_NUMBERS", 1000)
    centers = sources._centers(points, 4)
    order = np.lexsort(centers.round().T)
    exact = points.reshape(4, 1000, 2).mean(1)
    np.testing.assert_allclose(centers[order], exact[np.lexsort(exact.round().T)], atol=0.005)


def test_learned_is_the_module_of_noise_and_labels(code: Path) -> None:
    source, labels = parse_source(f"{code}:shift", LABELLED), np.arange(6) % 3
    x1 = sample(source, 6, labels)
    means = source.module.mean.weight.detach().numpy()  # type: ignore[attr-defined]
    np.testing.assert_allclose(x1, 0.5 * normals(0, "noise", np.arange(6), 2) + means[labels], rtol=1e-12)
    assert source.depends_on_label and source.components(labels) is None
    np.testing.assert_array_equal(sample(source, 4, labels[:4]), x1[:4])


@pytest.mark.parametrize("spec", ["gaussian", "gaussian:2.5", "mixture:3,0.2", "norm_aligned", "mixed:0.4,0.4"])
def test_components_are_the_law(spec: str) -> None:
    """Moments of the samples against those of the mixture of components."""
    source, labels = parse_source(spec, LABELLED), np.arange(N) % 3
    x1, law = sample(source, labels=labels), source.components(labels)
    assert law is not None
    mean = np.einsum("k,nkd->nd", law.weights, np.broadcast_to(law.means, (N, *law.means.shape[1:])))
    second = law.weights @ (law.means**2 + law.stds[..., None] ** 2)
    for label in range(3):
        of_label = labels == label
        for values, truth in ((x1, mean), (x1**2, np.broadcast_to(second, x1.shape))):
            error = values[of_label].std(0) / of_label.sum() ** 0.5
            assert (np.abs(values[of_label].mean(0) - truth[of_label].mean(0)) <= 4.5 * error).all()


@pytest.mark.parametrize("spec", SOURCES)
@settings(max_examples=10, deadline=None)
@given(index=st.lists(st.integers(0, 10**6), min_size=1, max_size=5))
def test_a_sample_depends_on_its_own_numbers_alone(spec: str, index: list[int]) -> None:
    source = SOURCES[spec]
    together = source.sample(uniforms(0, "noise", np.array(index), source.width), np.array(index) % 3)
    for place, number in enumerate(index):
        alone = source.sample(uniforms(0, "noise", np.array([number]), source.width), np.array([number]) % 3)
        np.testing.assert_array_equal(alone[0], together[place])


@pytest.mark.parametrize("spec", ["gaussian", "gaussian:2.5", "mixture:3,0.2", "norm_aligned", "mixed:0.1,0.9"])
def test_names_read_back(spec: str) -> None:
    name = parse_source(spec, PLAIN).name
    assert parse_source(name, PLAIN).name == name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gausian", "Did you mean 'gaussian'"),
        ("gaussian:0", "std must be above 0"),
        ("mixture:0", "whole number of at least 1"),
        ("mixture:5000", "k at most 4,096"),
        ("mixture:3,0", "std must be above 0"),
        ("mixed:0.5,0.2", "expected 0 <= low <= high <= 1"),
        ("norm_aligned:2", "takes no arguments"),
        ("nowhere.py:make", "nowhere.py does not exist"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_source(spec, PLAIN)


def test_bad_code_and_labels(code: Path) -> None:
    with pytest.raises(InputError, match=r"torch.nn.Module for --source, but it returned int"):
        parse_source(f"{code}:number", PLAIN)
    with pytest.raises(InputError, match=r"to map noise of shape \[4, 3\] to that shape, but it returned shape \[12\]"):
        sample(parse_source(f"{code}:flat", PLAIN), 4)
    with pytest.raises(InputError, match="none of label 1"):
        parse_source("mixed", FiniteData("gaps", np.zeros((4, 2)), np.array([0, 0, 2, 2])))


def test_the_posterior_from_a_scaled_gaussian_is_in_closed_form() -> None:
    """N(m, s^2) to N(0, c^2): E[x_0 | x_t] and E[x_1 | x_t] by linear regression on x_t."""
    m, s, c = 0.5, 2.0, 2.5
    draws = Draws(PLAIN, parse_times("uniform"), 0, source=parse_source("gaussian:2.5", PLAIN))
    batch = draws.batch(np.arange(200))
    known = draws.velocity_posterior(batch)
    assert known is not None
    t = batch.t[:, None]
    off = (batch.x_t - (1 - t) * m) / ((1 - t) ** 2 * s**2 + t**2 * c**2)
    torch.testing.assert_close(known.mean, t * c**2 * off - (m + (1 - t) * s**2 * off))
