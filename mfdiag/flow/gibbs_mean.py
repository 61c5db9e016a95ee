"""The mean of the Gibbs kernel exp(-|x_0 - x_1|^2 / eps) over independent pairs: exact where both laws are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
from scipy.special import logsumexp

from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import Data, FiniteData, GaussianData, MixtureData, MomentsData
from mfdiag.flow.data.disk_arrays import tiles
from mfdiag.flow.seeds import uniforms
from mfdiag.flow.sources import Components, MixedSource, Source

__all__ = ["log_mean_kernel"]

_TILE_NUMBERS = 2**20  # coordinates read at once
_DRAWN_NUMBERS = 2**26  # uniform numbers behind a mean that has no closed form, at most
_REPLICATES = 32
_LARGEST_ERROR = 0.005  # of the mean; a variance with squared weights is then 1 % off
_SEED = 0  # the same for every seed of a measurement, so that the weights do not change with it


def log_mean_kernel(eps: float, data: Data, source: Source) -> float:
    """Logarithm of E[exp(-|x_0 - x_1|^2 / eps)] over independent pairs of each label (docs/theory.md#gibbs-mean).

    The expectation over a source of Gaussians is in closed form. That over the data is a sum over all stored samples,
    or in closed form for built-in distributions. Otherwise it is the mean over quasi-random samples.

    Args:
        eps: Temperature, above 0.
        data: Distribution of x_0.
        source: Distribution of x_1.

    Returns:
        The logarithm.

    Raises:
        InputError: A law is unknown, and the mean over samples has a standard error above 0.5 %.
    """
    mixture = _gaussians_of(source, data)
    if mixture is None:
        return _sampled(eps, data, source, None)
    if isinstance(data, FiniteData | MomentsData):
        rows = np.arange(len(data.points if isinstance(data, FiniteData) else data.moments))
        chunks = tiles(rows, max(1, _TILE_NUMBERS // math.prod(data.shape)))
        parts = [_log_kernels(eps, *_stored(data, chunk), mixture) for chunk in chunks]
        return float(logsumexp(np.concatenate(parts)) - np.log(len(rows)))
    if isinstance(data, GaussianData):
        mean, variance = np.full((1, data.dim), data.mean), np.full((1, data.dim), data.std**2)
        return float(_log_kernels(eps, mean, variance, None, mixture)[0])
    if isinstance(data, MixtureData):
        return _dense_mixture(eps, data, mixture)
    return _sampled(eps, data, source, mixture)


def _gaussians_of(source: Source, data: Data) -> Components | None:
    """The source as Gaussians with means [C, K, d] and deviations [C, K] of C labels (1 if it ignores them)."""
    labels = np.arange(data.num_classes) if source.depends_on_label and data.num_classes else None
    law = source.components(labels)
    if law is None and isinstance(source, MixedSource) and (labels is not None or not source.depends_on_label):
        # a Gaussian for each w in [low, high], with w uniform: Gauss-Legendre quadrature over w. In d dimensions the
        # kernel's mean is a function of w with peaks as narrow as 1 / sqrt(d)
        nodes, weights = np.polynomial.legendre.leggauss(64 + 4 * math.isqrt(math.prod(data.shape)))
        levels = source.low + (source.high - source.low) * (nodes + 1) / 2
        parts = [MixedSource(source.means, source.variances, w, w).components(labels) for w in levels]
        known = [part for part in parts if part is not None]
        means, stds = (np.concatenate([getattr(part, name) for part in known], axis=1) for name in ("means", "stds"))
        law = Components(weights / 2, means, stds)
    return None if law is None else law._replace(means=law.means.reshape(*law.means.shape[:2], -1))


def _stored(
    data: FiniteData | MomentsData, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray | float, np.ndarray | None]:
    """Means [n, d] and variances of the stored samples `rows`, and their labels."""
    labels = None if data.labels is None else data.labels[rows]
    if isinstance(data, FiniteData):
        return np.asarray(data.points[rows], dtype=np.float64).reshape(len(rows), -1), 0.0, labels
    mean, std = data.moments[rows]
    return mean.reshape(len(rows), -1), std.reshape(len(rows), -1) ** 2, labels


def _log_kernels(
    eps: float, mean: np.ndarray, variance: np.ndarray | float, labels: np.ndarray | None, source: Components
) -> np.ndarray:
    """log E[exp(-|x_0 - x_1|^2 / eps)] [n] for x_0 ~ N(mean_i, variance_i), coordinate by coordinate [n, d]."""
    row = np.zeros(len(mean), dtype=np.int64) if labels is None or len(source.means) == 1 else labels
    spread = row if len(source.stds) > 1 else np.zeros_like(row)
    logs = np.empty((len(source.weights), len(mean)))
    for k in range(len(logs)):
        # x_0 - x_1 ~ N(delta, v) and E exp(-y^2 / eps) = (1 + 2 v / eps)^(-1/2) exp(-delta^2 / (eps + 2 v))
        v = variance + source.stds[spread, k, None] ** 2
        terms = (mean - source.means[row, k]) ** 2 / (eps + 2 * v) + np.log1p(2 * v / eps) / 2
        logs[k] = -terms.sum(axis=1)
    return np.asarray(logsumexp(logs, axis=0, b=source.weights[:, None]))


def _dense_mixture(eps: float, data: MixtureData, source: Components) -> float:
    """The mean for Gaussians with covariances C: the formula above along the eigenvectors of each C."""
    logs, weights = [], []
    values, vectors = np.linalg.eigh(data.covariances)
    for j, k in product(range(data.components), range(len(source.weights))):
        rotated = (data.means[j] - source.means[0, k]) @ vectors[j]
        v = values[j] + source.stds[0, k] ** 2
        logs.append(-(rotated**2 / (eps + 2 * v) + np.log1p(2 * v / eps) / 2).sum())
        weights.append(data.weights[j] * source.weights[k])
    return float(logsumexp(logs, b=weights))


def _sampled(eps: float, data: Data, source: Source, mixture: Components | None) -> float:
    """The mean over scrambled Sobol samples of x_0, and of x_1 where the source is not a mixture."""
    means = np.array([_replicate_mean(eps, data, source, mixture, b) for b in range(_REPLICATES)])
    log_mean = float(logsumexp(means) - np.log(_REPLICATES))
    error = float(np.exp(means - log_mean).std(ddof=1) / _REPLICATES**0.5)
    if not error <= _LARGEST_ERROR:
        raise InputError(
            f"Expected the mean of exp(-|x_0 - x_1|^2 / {eps:g}) with an error of at most {_LARGEST_ERROR:.1%}, but "
            f"samples of {data.name} and {source.name} give it to {error:.1%}. Pass a larger eps, or a data set and a "
            "source that mfdiag list shows, whose mean is exact."
        )
    return log_mean


def _replicate_mean(eps: float, data: Data, source: Source, mixture: Components | None, replicate: int) -> float:
    logs = []
    for u in _replicate_uniforms(data.width + (source.width if mixture is None else 0), replicate):
        x0, labels = data.sample(u[:, : data.width])
        flat = x0.reshape(len(u), -1)
        if mixture is None:
            x1 = source.sample(u[:, data.width :], labels).reshape(len(u), -1)
            logs.append(-((flat - x1) ** 2).sum(axis=1) / eps)
        else:
            logs.append(_log_kernels(eps, flat, 0.0, labels, mixture))
    log_kernel = np.concatenate(logs)
    return float(logsumexp(log_kernel) - np.log(len(log_kernel)))


def _replicate_uniforms(width: int, replicate: int) -> Iterator[np.ndarray]:
    """One replicate's uniform numbers [n, width] in chunks: evenly spread, or independent in many dimensions."""
    from scipy.stats import qmc  # slow to import

    count = 2 ** int(np.clip(np.log2(_DRAWN_NUMBERS / width / _REPLICATES), 7, 15))
    if width > qmc.Sobol.MAXDIM:
        chunk = max(1, _TILE_NUMBERS // width)
        for index in tiles(np.arange(count), chunk):
            yield uniforms(_SEED, f"gibbs/{replicate}", index, width)
        return
    engine = qmc.Sobol(width, seed=np.random.default_rng([_SEED, replicate]))
    yield np.clip(engine.random(count), 2.0**-53, 1 - 2.0**-53)
