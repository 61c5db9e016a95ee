"""Sources: the distributions of x_1. Sample i is a function of its own uniform numbers and its label alone."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from scipy.special import gammaln, ndtri

from mfdiag.errors import InputError, did_you_mean, first_line
from mfdiag.flow.data.datasets import Data, FiniteData, GaussianData, MixtureData
from mfdiag.flow.data.disk_arrays import Points, tiles
from mfdiag.flow.seeds import uniforms
from mfdiag.flow.specs import format_spec, parse_arguments
from mfdiag.usercode import call_user_factory, is_user_code

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "SOURCES",
    "Components",
    "GaussianSource",
    "LearnedSource",
    "MixedSource",
    "MixtureSource",
    "Source",
    "parse_source",
]

SOURCES: dict[str, str] = {
    "gaussian": "N(0, std^2 I): gaussian:[std=1]",
    "mixture": "MeanFuser's noise (arXiv 2602.20060): k isotropic Gaussians of equal weight at the k-means centers of "
    "the data: mixture:[k=8],[std=0.1]",
    "mixed": "MixFlow's source (arXiv 2604.09181): N(w m, w s^2 + 1 - w) with w uniform in [low, high], from N(0, I) "
    "at w = 0 to mean m and variance s^2 of the data of the label (without labels: of all data) at w = 1: "
    "mixed:[low=0],[high=1]",
    "norm_aligned": "N(0, s^2 I) with the mean norm of the data (arXiv 2512.18184)",
    "FILE.py:factory": "a learned source: x_1 = module(z, labels) with noise z ~ N(0, I) [n, *shape] and labels [n] or "
    "None; the factory returns the module",
}

_DRAWN_NUMBERS = 2**24  # coordinates of the sample of a distribution that a source is fitted to, at most
_MOST_CENTERS = 4096  # of k-means
_REFERENCE_SEED = 0  # the same for every seed of a measurement, so that the source does not change with it


class Components(NamedTuple):
    """An isotropic Gaussian mixture, given the labels of n samples.

    Attributes:
        weights: float64 [K], the same for all samples.
        means: float64 [n, K, *shape], or [1, K, *shape] if they do not depend on the label.
        stds: float64 [n, K] or [1, K].
    """

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray


class Source(Protocol):
    """A distribution of x_1, sampled by transforming uniform numbers."""

    @property
    def name(self) -> str:
        """The specification that `parse_source` reads."""

    @property
    def width(self) -> int:
        """Uniform numbers that one sample uses."""

    @property
    def depends_on_label(self) -> bool:
        """Whether the distribution of x_1 depends on the label."""

    def sample(self, u: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """Samples float64 [n, *shape] from uniform numbers `u` [n, width] in (0, 1) and labels [n] (or None)."""

    def components(self, labels: np.ndarray | None) -> Components | None:
        """The distribution for labels [n] if it is a Gaussian mixture, else None."""


@dataclass(frozen=True)
class GaussianSource:
    """N(0, std^2 I) of the given shape."""

    shape: tuple[int, ...]
    std: float = 1.0
    depends_on_label: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        return "gaussian" if self.std == 1 else format_spec("gaussian", self.std)

    @property
    def width(self) -> int:
        return int(np.prod(self.shape))

    def sample(self, u: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """See `Source.sample`."""
        return self.std * ndtri(u).reshape(len(u), *self.shape)

    def components(self, labels: np.ndarray | None) -> Components:
        """One component: the distribution itself."""
        return Components(np.ones(1), np.zeros((1, 1, *self.shape)), np.full((1, 1), self.std))


@dataclass(frozen=True, eq=False)
class MixtureSource:
    """Gaussians of equal weight with `means` [K, *shape] and one standard deviation `std`."""

    name: str
    means: np.ndarray
    std: float
    depends_on_label: bool = field(default=False, init=False)

    @property
    def width(self) -> int:
        return 1 + self.means[0].size

    def sample(self, u: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """Component floor(u_0 K), then mean + std ndtri(u_1..d)."""
        count = len(self.means)
        component = np.minimum((u[:, 0] * count).astype(np.int64), count - 1)
        return self.means[component] + self.std * ndtri(u[:, 1:]).reshape(len(u), *self.means.shape[1:])

    def components(self, labels: np.ndarray | None) -> Components:
        """The components, the same for every label."""
        count = len(self.means)
        return Components(np.full(count, 1 / count), self.means[None], np.full((1, count), self.std))


@dataclass(frozen=True, eq=False)
class MixedSource:
    """MixFlow's source (arXiv 2604.09181): x_1 ~ N(w m_y, (w s_y^2 + 1 - w) I) with w ~ U(low, high).

    The label y replaces the paper's signal kappa, and the mean and variance of the label's data replace the learned
    ones.

    Attributes:
        means: float64 [C, *shape], one for each of C labels; C = 1 without labels.
        variances: float64 [C], per coordinate.
        low: Smallest w, in [0, 1].
        high: Largest w, in [low, 1].
    """

    means: np.ndarray
    variances: np.ndarray
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise InputError(f"Bad {self.name!r}: expected 0 <= low <= high <= 1, got {self.low:g} and {self.high:g}.")

    @property
    def name(self) -> str:
        return format_spec("mixed", self.low, self.high)

    @property
    def width(self) -> int:
        return 1 + self.means[0].size

    @property
    def depends_on_label(self) -> bool:
        return len(self.means) > 1

    def _means_and_stds(self, w: np.ndarray, labels: np.ndarray | None, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Means [n, *shape] and standard deviations [n]."""
        index = np.zeros(count, dtype=np.int64) if labels is None or not self.depends_on_label else labels
        w_column = w.reshape(-1, *[1] * (self.means.ndim - 1))
        return w_column * self.means[index], np.sqrt(w * self.variances[index] + 1 - w)

    def sample(self, u: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """See `Source.sample`."""
        w = self.low + (self.high - self.low) * u[:, 0]
        means, stds = self._means_and_stds(w, labels, len(u))
        return means + stds.reshape(-1, *[1] * (means.ndim - 1)) * ndtri(u[:, 1:]).reshape(means.shape)

    def components(self, labels: np.ndarray | None) -> Components | None:
        """One Gaussian for each label if w is fixed, else None."""
        if self.low < self.high or (labels is None and self.depends_on_label):
            return None
        count = 1 if labels is None else len(labels)
        means, stds = self._means_and_stds(np.full(count, self.low), labels, count)
        return Components(np.ones(1), means[:, None], stds[:, None])


@dataclass(frozen=True, eq=False)
class LearnedSource:
    """x_1 = module(z, labels) with z ~ N(0, I): any source, by reparameterization.

    The module runs in float64, without gradients. `sample` raises InputError if the module fails or
    changes the shape.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    depends_on_label: bool = field(default=True, init=False)

    @property
    def width(self) -> int:
        return int(np.prod(self.shape))

    def sample(self, u: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """See `Source.sample`."""
        import torch

        z = torch.as_tensor(ndtri(u).reshape(len(u), *self.shape))
        try:
            with torch.no_grad():
                x1 = self.module(z, None if labels is None else torch.as_tensor(labels))
        except Exception as error:  # the user's code
            reason = first_line(error)
            raise InputError(
                f"Expected source {self.name} to be called as module(z, labels) on noise of shape {list(z.shape)}, but "
                f"it raised {type(error).__name__}: {reason}. Correct the module."
            ) from error
        if not isinstance(x1, torch.Tensor) or x1.shape != z.shape:
            output = f"shape {list(x1.shape)}" if isinstance(x1, torch.Tensor) else type(x1).__name__
            raise InputError(
                f"Expected source {self.name} to map noise of shape {list(z.shape)} to that shape, but it returned "
                f"{output}. Correct the module."
            )
        return x1.double().numpy()

    def components(self, labels: np.ndarray | None) -> None:
        """Unknown: None."""


def parse_source(spec: str, data: Data) -> Source:
    """The source of a specification: a key of `SOURCES` or a user's factory, fitted to `data` if it depends on them.

    Raises InputError for an unknown name, a wrong argument, or code that does not return a module.
    """
    if is_user_code(spec):
        return _learned(spec, data)
    name = spec.partition(":")[0]
    if name == "gaussian":
        std = parse_arguments(spec, {"std": 1.0})["std"]
        if not std > 0:
            raise InputError(f"Bad {spec!r}: std must be above 0, got {std:g}.")
        return GaussianSource(data.shape, std)
    if name == "mixture":
        return _mixture(spec, data)
    if name == "mixed":
        interval = parse_arguments(spec, {"low": 0.0, "high": 1.0})
        return MixedSource(*_statistics(data), interval["low"], interval["high"])
    if name == "norm_aligned":
        parse_arguments(spec, {})
        half = math.prod(data.shape) / 2
        # E|z| of z ~ N(0, I) in d dimensions is the mean of the chi distribution, sqrt(2) Gamma((d+1)/2) / Gamma(d/2)
        mean_norm = np.sqrt(2) * np.exp(gammaln(half + 0.5) - gammaln(half))
        return MixtureSource(name, np.zeros((1, *data.shape)), float(_mean_norm(data) / mean_norm))
    raise did_you_mean("source", name, SOURCES)


def _reference(data: Data) -> np.ndarray | Points:
    """What a source is fitted to without labels [n, *shape]: all points of finite data, else a large even sample."""
    if isinstance(data, FiniteData):
        return data.points
    from scipy.stats import qmc  # slow to import

    count = 2 ** int(np.clip(np.log2(_DRAWN_NUMBERS / data.width), 12, 16))
    if data.width > qmc.Sobol.MAXDIM:
        return data.sample(uniforms(_REFERENCE_SEED, "source/data", np.arange(count), data.width))[0]
    u = qmc.Sobol(data.width, seed=_REFERENCE_SEED).random(count)
    return data.sample(np.clip(u, 2.0**-53, 1 - 2.0**-53))[0]


def _mixture(spec: str, data: Data) -> MixtureSource:
    arguments = parse_arguments(spec, {"k": 8, "std": 0.1}, integers={"k"})
    k, std = int(arguments["k"]), arguments["std"]
    points = _reference(data)
    if not std > 0 or k > min(len(points), _MOST_CENTERS):
        raise InputError(f"Bad {spec!r}: std must be above 0 and k at most {min(len(points), _MOST_CENTERS):,}.")
    return MixtureSource(format_spec("mixture", k, std), _centers(points, k).reshape(-1, *data.shape), std)


def _centers(points: np.ndarray | Points, k: int) -> np.ndarray:
    """The k-means centers [k, d] of points [N, *shape], each the mean of the points next to it.

    Where the points are too many for the memory, the centers of a random part of them start one pass of mini-batch
    k-means over all.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    width = math.prod(points.shape[1:])
    order = np.random.default_rng(_REFERENCE_SEED).permutation(len(points))
    at_once = max(_MOST_CENTERS, _DRAWN_NUMBERS // width)
    part = np.asarray(points[np.sort(order[:at_once])], dtype=np.float64).reshape(-1, width)
    model = KMeans(k, n_init=4, tol=0, random_state=_REFERENCE_SEED).fit(part)
    if len(points) <= at_once:
        # the same mean again, summed in order: k-means sums in parallel, so that its last digits vary
        size = np.bincount(model.labels_, minlength=k)
        return np.stack([np.bincount(model.labels_, column, k) / size for column in part.T], axis=1)
    batches = MiniBatchKMeans(k, init=model.cluster_centers_, n_init=1, random_state=_REFERENCE_SEED)
    for rows in tiles(order, at_once):
        if len(rows) >= k:
            batches.partial_fit(np.asarray(points[np.sort(rows)], dtype=np.float64).reshape(len(rows), -1))
    return np.asarray(batches.cluster_centers_)


def _mean_norm(data: Data) -> float:
    """E|x_0|."""
    points = _reference(data)
    norms = [np.linalg.norm(points[rows].reshape(len(rows), -1), axis=1) for rows in tiles(np.arange(len(points)))]
    return float(np.concatenate(norms).mean(dtype=np.float64))


def _statistics(data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Mean [C, *shape] and variance per coordinate [C] of each label's data; C = 1 without labels."""
    if isinstance(data, FiniteData) and data.labels is not None:
        groups = [(data.points, np.flatnonzero(data.labels == label)) for label in range(data.num_classes)]
        empty = [label for label, (_, rows) in enumerate(groups) if not len(rows)]
        if empty:
            raise InputError(
                f"Source mixed needs data of every label, but {data.name} has none of label {empty[0]}. Pass another "
                "--source."
            )
    elif data.num_classes:
        raise InputError(
            f"Source mixed needs the data points of each label, and {data.name} stores none. Pass another --source."
        )
    elif isinstance(data, GaussianData):
        return np.full((1, data.dim), data.mean), np.array([data.std**2])
    elif isinstance(data, MixtureData):
        mean = data.weights @ data.means
        inside = np.trace(data.covariances, axis1=1, axis2=2) + ((data.means - mean) ** 2).sum(axis=1)
        return mean[None], np.array([data.weights @ inside / data.dim])
    else:
        points = _reference(data)
        groups = [(points, np.arange(len(points)))]
    means, variances = zip(*(_moments(points, rows) for points, rows in groups), strict=True)
    return np.stack(means), np.array(variances)


def _moments(points: np.ndarray | Points, rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean [*shape] and mean variance per coordinate of the points `rows`, in two passes, a tile at a time."""
    mean = sum(points[tile].sum(axis=0, dtype=np.float64) for tile in tiles(rows)) / len(rows)
    square = sum(float(np.sum((points[tile] - mean) ** 2)) for tile in tiles(rows))
    return mean, square / (len(rows) * mean.size)


def _learned(spec: str, data: Data) -> LearnedSource:
    from torch import nn

    module = call_user_factory(spec, "--source")
    if not isinstance(module, nn.Module):
        raise InputError(
            f"Expected {spec} to return a torch.nn.Module for --source, but it returned {type(module).__name__}. "
            "Return the module itself."
        )
    return LearnedSource(spec, copy.deepcopy(module).double().eval().requires_grad_(False), data.shape)
