"""Posteriors on other paths and from other sources against enumeration, Gaussian regression, and their own draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mfdiag.flow.couplings import INDEPENDENT, MinibatchOT
from mfdiag.flow.data.datasets import FiniteData, load_data
from mfdiag.flow.draw import Draws, posterior_of, why_posterior_unknown
from mfdiag.flow.paths import LINEAR, TRIGONOMETRIC, Path
from mfdiag.flow.seeds import uniforms
from mfdiag.flow.sources import Components, GaussianSource, MixtureSource, parse_source
from mfdiag.flow.times import parse_times
from mfdiag.flow.transformed_posterior import TransformedPosterior

SQUARED = Path("squared", lambda t: 1 - t**2, lambda t: t * (2 - t))
PATHS = pytest.mark.parametrize("path", [LINEAR, TRIGONOMETRIC, SQUARED], ids=lambda path: path.name)
TIMES = pytest.mark.parametrize("t", [1e-3, 0.2, 0.6, 0.95, 1.0])
POINTS = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MEANS = np.array([[-1.0, 0.5], [2.0, 0.0], [0.0, -1.0]])
MIXTURE = MixtureSource("mixture", MEANS, 0.7)
LABELLED = FiniteData("labelled", POINTS.numpy(), np.arange(30) % 3)
DATA = {"gaussian": load_data("gaussian:2,0.5,2"), "mixture": load_data("mixture:2,3"), "finite": LABELLED}


def full(time: float, n: int) -> Tensor:
    return torch.full((n,), time, dtype=torch.float64)


def words(n: int, width: int, seed: int = 0) -> Tensor:
    return torch.as_tensor(uniforms(seed, "test", np.arange(n), width))


def numbers(path: Path, t: float) -> tuple[float, float, float, float]:
    """alpha, sigma and their slopes."""
    time = full(t, 1)
    return tuple(float(v) for v in (path.alpha(time), path.sigma(time), *path.rates(time)))  # type: ignore[return-value]


def places(path: Path, t: float, source: MixtureSource | GaussianSource, n: int = 8) -> Tensor:
    """Points x_t that occur."""
    x0 = POINTS[torch.arange(n) % len(POINTS)]
    x1 = torch.as_tensor(source.sample(uniforms(1, "test", np.arange(n), source.width), None))
    return path.point(x0, x1, full(t, n))


def enumerated(
    points: Tensor, law: Components, path: Path, x: Tensor, t: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights [n, J, K] of all pairs (point, component), v_c of each, mean and variance: the plain sum."""
    a, s, da, ds = numbers(path, t)
    dim = x.shape[1]
    centre, std = torch.as_tensor(law.means[0]), torch.as_tensor(law.stds[0])
    rest = x[:, None, None] - a * points[None, :, None] - s * centre[None, None]  # s c z
    logits = torch.as_tensor(law.weights).log() - rest.square().sum(3) / (2 * (s * std) ** 2) - dim * (s * std).log()
    weight = torch.softmax(logits.flatten(1), 1).view(logits.shape)
    v = da * points[None, :, None] + ds * (x[:, None, None] - a * points[None, :, None]) / s
    v = v.expand(*weight.shape, dim)
    mean = (weight[..., None] * v).sum((1, 2))
    return weight, v, mean, (weight[..., None] * (v - mean[:, None, None]) ** 2).sum((1, 2))


def transformed(data: str, path: Path, source: MixtureSource | GaussianSource) -> TransformedPosterior:
    base = posterior_of(DATA[data])
    assert base is not None
    return TransformedPosterior(base, path, lambda labels: source.components(None))


@pytest.mark.parametrize("data", DATA)
def test_nothing_changes_without_a_change_of_variables(data: str) -> None:
    base, x, t = posterior_of(DATA[data]), torch.randn(6, 2, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    assert base is not None
    same = transformed(data, LINEAR, GaussianSource((2,)))
    u = words(6, same.width)
    for ours, theirs in zip(same(x, t, u), base(x, t, u[:, 1:]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@PATHS
@TIMES
@pytest.mark.parametrize("source", [GaussianSource((2,)), MIXTURE], ids=["gaussian", "mixture"])
def test_finite_data_equal_enumeration(path: Path, t: float, source: MixtureSource | GaussianSource) -> None:
    x = places(path, t, source)
    posterior = transformed("finite", path, source)
    velocity = posterior(x, full(t, len(x)), words(len(x), posterior.width))
    _, _, mean, variance = enumerated(POINTS, source.components(None), path, x, t)
    torch.testing.assert_close(velocity.mean, mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(velocity.variance, variance, rtol=1e-6, atol=1e-6)


@PATHS
@TIMES
def test_gaussian_data_equal_regression(path: Path, t: float) -> None:
    """(v_c, x_t) is jointly Gaussian within a component of the source, which has probability ~ w_k N(x_t)."""
    a, s, da, ds = numbers(path, t)
    m, std, c = 0.5, 2.0, MIXTURE.std
    x = 2 * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    var_x, cov, var_v = a**2 * std**2 + s**2 * c**2, a * da * std**2 + s * ds * c**2, da**2 * std**2 + ds**2 * c**2
    centre = torch.as_tensor(MEANS)
    rest = x[:, None] - a * m - s * centre
    weight = torch.softmax(-rest.square().sum(2) / (2 * var_x), 1)[..., None]
    means = da * m + ds * centre + cov / var_x * rest
    mean = (weight * means).sum(1)
    posterior = transformed("gaussian", path, MIXTURE)
    velocity = posterior(x, full(t, 5), words(5, posterior.width))
    torch.testing.assert_close(velocity.mean, mean, rtol=1e-9, atol=1e-9)
    variance = (weight * (var_v - cov**2 / var_x + (means - mean[:, None]) ** 2)).sum(1)
    torch.testing.assert_close(velocity.variance, variance, rtol=1e-8, atol=1e-9)


def test_draws_have_the_frequencies_of_the_enumeration() -> None:
    n, t, path = 20_000, 0.7, TRIGONOMETRIC
    x = places(path, t, MIXTURE, 1).expand(n, 2)
    posterior = transformed("finite", path, MIXTURE)
    drawn = posterior(x, full(t, n), words(n, posterior.width)).draw
    weight, v, _, _ = enumerated(POINTS, MIXTURE.components(None), path, x[:1], t)
    own = (drawn[:, None] - v[0, :, 0]).norm(dim=2)  # v_c tells the point apart, not the component
    assert own.amin(1).max() < 1e-9
    expected = n * weight[0].sum(1).numpy()
    counts = torch.bincount(own.argmin(1), minlength=len(POINTS)).numpy()
    assert expected.min() > 5 and stats.chisquare(counts, expected).pvalue > 1e-3


@PATHS
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("t", [0.1, 0.6, 1.0])
def test_log_density_is_that_of_x_t(path: Path, data: str, t: float) -> None:
    """Up to one constant, against the density of a x_0 + s x_1 written out."""
    a, s, _, _ = numbers(path, t)
    std, other_t = MIXTURE.std, 0.4
    law = DATA[data]

    def truth(x: np.ndarray, a: float, s: float) -> float:
        noise = s**2 * std**2 * np.eye(2)
        if data == "gaussian":
            parts = [(1.0, np.full(2, 0.5), 4 * np.eye(2))]
        elif data == "mixture":
            parts = list(zip(law.weights, law.means, law.covariances, strict=True))  # type: ignore[attr-defined]
        else:
            parts = [(1 / 30, p, np.zeros((2, 2))) for p in POINTS.numpy()]
        return np.log(
            sum(
                w / 3 * stats.multivariate_normal(a * mean + s * centre, a**2 * cov + noise).pdf(x)
                for w, mean, cov in parts
                for centre in MEANS
            )
        )

    posterior = transformed(data, path, MIXTURE)
    x, other = (places(path, time, MIXTURE, 1) for time in (t, other_t))
    log_density = [
        float(posterior(p, full(time, 1), words(1, posterior.width)).log_density)
        for p, time in ((x, t), (other, other_t))
    ]
    a2, s2, _, _ = numbers(path, other_t)
    assert log_density[0] - log_density[1] == pytest.approx(
        truth(x[0].numpy(), a, s) - truth(other[0].numpy(), a2, s2), abs=1e-7
    )


COMBINATIONS = [
    ("gaussian", "mixture:3,0.5", TRIGONOMETRIC),
    ("mixture", "gaussian", SQUARED),
    ("mixture", "norm_aligned", LINEAR),
    ("finite", "mixture:2,0.3", TRIGONOMETRIC),
    ("finite", "mixed:0.6,0.6", TRIGONOMETRIC),
]


@pytest.mark.parametrize(("data", "source", "path"), COMBINATIONS, ids=lambda part: getattr(part, "name", part))
def test_the_second_draw_is_a_fresh_one_of_the_same_law(data: str, source: str, path: Path) -> None:
    """Given x_t both draws scatter alike around the marginal velocity, and independently of each other."""
    law = DATA[data]
    draws = Draws(law, parse_times("point:0,0.7"), 0, source=parse_source(source, law), path=path)
    batch = draws.batch(np.arange(20_000))
    known = draws.velocity_posterior(batch)
    assert known is not None
    own, fresh, n = batch.velocity - known.mean, known.draw - known.mean, len(batch.t)
    for noise in (own, fresh):
        excess = noise**2 - known.variance
        assert (noise.mean(0).abs() <= 4 * noise.std(0) / n**0.5).all()
        assert (excess.mean(0).abs() <= 4 * excess.std(0) / n**0.5).all()
    together = own * fresh
    assert (together.mean(0).abs() <= 4 * together.std(0) / n**0.5).all()
    correlation = own * known.mean  # the marginal velocity is the best guess, not only an unbiased one
    assert (correlation.mean(0).abs() <= 4 * correlation.std(0) / n**0.5).all()


def test_labels_choose_the_source_and_restrict_the_data() -> None:
    """mixed at fixed w, label by label, against the enumeration over the points of that label."""
    t, path, source = 0.6, TRIGONOMETRIC, parse_source("mixed:0.6,0.6", LABELLED)
    draws = Draws(LABELLED, parse_times(f"point:0,{t}"), 0, source=source, path=path)
    batch = draws.batch(np.arange(12))
    known = draws.velocity_posterior(batch)
    assert known is not None and batch.labels is not None
    for k, label in enumerate(batch.labels.tolist()):
        law = source.components(np.array([label]))
        assert law is not None
        _, _, mean, variance = enumerated(POINTS[label::3], law, path, batch.x_t[k : k + 1], t)
        torch.testing.assert_close(known.mean[k], mean[0], rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(known.variance[k], variance[0], rtol=1e-6, atol=1e-7)


def test_reasons_why_it_is_unknown() -> None:
    gaussian, mixed = GaussianSource((2,)), parse_source("mixed", LABELLED)
    fixed = parse_source("mixed:0.5,0.5", LABELLED)
    assert why_posterior_unknown(LABELLED, gaussian, INDEPENDENT, True) is None
    assert why_posterior_unknown(LABELLED, fixed, INDEPENDENT, True) is None
    for source, coupling, conditional, reason in (
        (gaussian, MinibatchOT(4), True, "the coupling minibatch_ot:4"),
        (mixed, INDEPENDENT, True, "source mixed:0,1 is not a Gaussian mixture"),
        (fixed, INDEPENDENT, False, "is not a Gaussian mixture for each label"),
    ):
        explanation = why_posterior_unknown(LABELLED, source, coupling, conditional)
        assert explanation is not None and reason in explanation
        draws = Draws(LABELLED, parse_times("uniform"), 0, conditional, source=source, coupling=coupling)
        assert draws.velocity_posterior(draws.batch(np.arange(4))) is None
