"""The mean of the Gibbs kernel: each closed form against a sum or an integral written out, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

import mfdiag.flow.gibbs_mean as gibbs_mean
from mfdiag.errors import InputError
from mfdiag.flow.couplings import INDEPENDENT, Gibbs, Marginals
from mfdiag.flow.data.datasets import Data, FiniteData, MomentsData, load_data
from mfdiag.flow.data.scaling import LatentMoments, Scaling
from mfdiag.flow.gibbs_mean import log_mean_kernel
from mfdiag.flow.sources import GaussianSource, MixedSource, parse_source

RNG = np.random.default_rng(0)
LABELS = np.arange(60) % 3
POINTS = RNG.normal(size=(60, 2)) + 2 * LABELS[:, None]
LABELLED = FiniteData("labelled", POINTS, LABELS)
MOMENTS = MomentsData(
    "moments", LatentMoments(RNG.normal(size=(5, 4, 1, 2)), Scaling(np.ones(1), np.zeros(1)), False, False)
)


def kernel_mean(x0: np.ndarray, mean: float, std: float, eps: float) -> float:
    """E exp(-(x_0 - x_1)^2 / eps) over x_1 ~ N(mean, std^2) and equally likely x_0 [n], by numerical integration."""
    value = integrate.quad(
        lambda x: float(np.exp(-((x0 - x) ** 2) / eps).mean() * stats.norm.pdf(x, mean, std)), -12, 12, limit=400
    )
    return float(value[0])


@settings(max_examples=25, deadline=None)
@given(eps=st.floats(0.05, 20), std=st.floats(0.3, 2), points=st.lists(st.floats(-3, 3), min_size=1, max_size=4))
def test_finite_data_against_an_integral(eps: float, std: float, points: list[float]) -> None:
    x0 = np.array(points)
    mine = log_mean_kernel(eps, FiniteData("points", x0[:, None]), GaussianSource((1,), std))
    assert np.exp(mine) == pytest.approx(kernel_mean(x0, 0, std, eps), rel=1e-6)


@pytest.mark.parametrize("eps", [0.1, 2.0])
def test_the_law_of_each_label(eps: float) -> None:
    """A source that depends on the label: each point counts with the Gaussian of its own label."""
    source = parse_source("mixed:0.4,0.4", LABELLED)
    assert isinstance(source, MixedSource)
    total = 0.0
    for x, y in zip(POINTS, LABELS, strict=True):
        v = 0.4 * source.variances[y] + 0.6
        total += np.prod(np.exp(-((x - 0.4 * source.means[y]) ** 2) / (eps + 2 * v)) / np.sqrt(1 + 2 * v / eps))
    assert np.exp(log_mean_kernel(eps, LABELLED, source)) == pytest.approx(total / 60, rel=1e-12)


@pytest.mark.parametrize("dim", [1, 40])
def test_a_range_of_w_is_the_mean_over_w(dim: int) -> None:
    data = FiniteData("points", np.random.default_rng(1).normal(2, 0.3, size=(50, dim)))
    source = parse_source("mixed:0.1,0.9", data)
    assert isinstance(source, MixedSource)

    def at(w: float) -> float:
        fixed = MixedSource(source.means, source.variances, w, w)
        return float(np.exp(log_mean_kernel(0.5, data, fixed)))

    expected = integrate.quad(at, 0.1, 0.9, epsabs=0, epsrel=1e-10)[0] / 0.8
    assert np.exp(log_mean_kernel(0.5, data, source)) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("source", ["gaussian:1.5", "mixture:3,0.4", "mixed", "norm_aligned"])
@pytest.mark.parametrize("data", ["gaussian:2,0.5,2", "mixture:2,3", "moments", "labelled", "two_moons"])
def test_exact_means_are_those_of_samples(data: str, source: str) -> None:
    law: Data = {"moments": MOMENTS, "labelled": LABELLED}.get(data) or load_data(data)
    fitted = parse_source(source, law)
    pairs = INDEPENDENT.pairs(Marginals(law, fitted, 3), np.arange(40_000))
    kernel = np.exp(-((pairs.x0 - pairs.x1) ** 2).reshape(40_000, -1).sum(1) / 1.5)
    error = kernel.std() / 200
    assert abs(kernel.mean() - np.exp(log_mean_kernel(1.5, law, fitted))) <= 4 * error


def test_the_ring_of_eight_at_a_low_temperature() -> None:
    """The mean weight was 1.21 here when the mean came from 4,096 pairs."""
    coupling = Gibbs.fit(0.05, load_data("eight_gaussians"), GaussianSource((2,)))
    radius2 = (load_data("eight_gaussians").points.astype(np.float64) ** 2).sum(1)  # type: ignore[attr-defined]
    assert coupling.log_mean == pytest.approx(np.log(np.exp(-radius2 / 2.05).mean() / 41), rel=1e-6)
    assert coupling.log_mean == pytest.approx(-4.662, abs=5e-4)


class Cube:
    """Uniform on [0, 1]^d, a distribution that only samples are known of."""

    name, num_classes = "cube", 0

    def __init__(self, dim: int) -> None:
        self.shape, self.width = (dim,), dim

    def sample(self, u: np.ndarray) -> tuple[np.ndarray, None]:
        return u, None


@pytest.mark.parametrize("eps", [0.02, 1.0])
def test_data_that_only_samples_are_known_of(eps: float) -> None:
    """The Gaussian side is exact, so that even a narrow kernel has a small error."""
    one = integrate.quad(lambda x: np.exp(-(x**2) / (eps + 2)) / np.sqrt(1 + 2 / eps), 0, 1)[0]
    assert log_mean_kernel(eps, Cube(2), GaussianSource((2,))) == pytest.approx(2 * np.log(one), abs=1e-4)


def test_a_mean_that_samples_do_not_give_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gibbs_mean, "_DRAWN_NUMBERS", 2**16)
    path = tmp_path / "source.py"
    path.write_text(
        "import torch\n\ndef same():\n    return Same()\n\nclass Same(torch.nn.Module):\n"
        "    def forward(self, z, labels):\n        return z\n"
    )
    source, data = parse_source(f"{path}:same", load_data("gaussian:2,0,1")), load_data("gaussian:2,0,1")
    assert log_mean_kernel(8.0, data, source) == pytest.approx(np.log(1 / 1.5), abs=0.02)
    with pytest.raises(InputError, match=r"error of at most 0\.5%.*Pass a larger eps"):
        log_mean_kernel(1e-4, data, source)


def test_many_coordinates_without_a_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the dimensions of Sobol's tables, samples are independent."""
    monkeypatch.setattr(gibbs_mean, "_REPLICATES", 4)
    monkeypatch.setattr(gibbs_mean, "_DRAWN_NUMBERS", 2**20)
    dim = 21_300
    one = integrate.quad(lambda x: np.exp(-(x**2) / (1e5 + 2)) / np.sqrt(1 + 2e-5), 0, 1)[0]
    assert log_mean_kernel(1e5, Cube(dim), GaussianSource((dim,))) == pytest.approx(dim * np.log(one), abs=1e-3)
