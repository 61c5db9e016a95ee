"""Data sets by name or path: the distributions of x_0. Sample i is a function of its own uniform numbers alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.special import ndtri

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.data.condition_arrays import require_rows, row_groups
from mfdiag.flow.data.disk_arrays import Points
from mfdiag.flow.data.files import as_condition
from mfdiag.flow.data.scaling import LatentMoments, Numbers, ScaledPoints, make_scaling
from mfdiag.flow.data.stored_data import is_stored_data, parse_numbers, read_stored_data
from mfdiag.flow.data.toy import SEED, toy_points
from mfdiag.flow.data.user_data import Advance, is_user_data, parse_user_data, read_items, read_user_data
from mfdiag.flow.seeds import normals, uniforms
from mfdiag.flow.specs import format_spec, parse_arguments
from mfdiag.inputs import reading

__all__ = [
    "DATASETS",
    "Data",
    "FiniteData",
    "GaussianData",
    "MixtureData",
    "MomentsData",
    "as_data",
    "condition_groups",
    "conditions_of",
    "load_data",
    "with_conditions",
]

DATASETS: dict[str, str] = {
    "swiss_roll": "2-D spiral with noise, 100,000 points",
    "checkerboard": "2-D board of alternating uniform squares, 100,000 points",
    "pinwheel": "2-D pinwheel of five curved arms, 100,000 points",
    "eight_gaussians": "2-D ring of eight Gaussians, 100,000 points",
    "two_moons": "2-D pair of interleaved half circles, 100,000 points",
    "two_spirals": "2-D pair of intertwined spirals, 100,000 points",
    "digits": "1,797 handwritten digits of 8 x 8 pixels in [-1, 1], ten classes",
    "patches": "33,390 patches of 3 x 8 x 8 pixels in [-1, 1], from the two photographs of scikit-learn",
    "gaussian": "N(mean, std^2 I) in d dimensions, in closed form: gaussian:d,mean,std",
    "mixture": "k Gaussians of equal weight with dense covariances in d dimensions, in closed form: mixture:d,k",
}

_MAX_COVARIANCES = 2**25  # numbers in all covariance matrices of a mixture: 256 MiB in float64


class Data(Protocol):
    """A distribution of x_0, sampled by transforming uniform numbers."""

    @property
    def name(self) -> str:
        """The specification that `load_data` reads."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 if there are no labels."""

    @property
    def width(self) -> int:
        """Uniform numbers that one sample uses."""

    def sample(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Samples float64 [n, *shape] and labels int64 [n] (or None) from uniform numbers `u` [n, width] in (0, 1)."""


@dataclass(frozen=True, eq=False)
class FiniteData:
    """The uniform distribution on `points` [N, *shape], float32 or float64, in memory or on disk.

    `labels` are int64 [N] or None, `conditions` are arrays [N, ...] by name.
    """

    name: str
    points: np.ndarray | Points
    labels: np.ndarray | None = None
    conditions: Mapping[str, Points] = field(default_factory=dict)
    width: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if len(self.points.shape) < 2 or 0 in self.points.shape:
            raise InputError(f"{self.name}: expected samples of at least one number, got shape {self.points.shape}.")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.points.shape[1:]

    @cached_property
    def num_classes(self) -> int:
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def rows(self, u: np.ndarray) -> np.ndarray:
        """The point number [n] of each sample that `sample` makes of `u`."""
        return _rows(u[:, 0], len(self.points))

    def sample(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Point number floor(u N) for each row of `u` [n, 1]; see `Data.sample`."""
        index = self.rows(u)
        return np.asarray(self.points[index], dtype=np.float64), None if self.labels is None else self.labels[index]


@dataclass(frozen=True, eq=False)
class MomentsData:
    """The mixture of N(m_j, s_j^2), j = 1..N, with equal weights: latents of a variational encoder.

    `moments` are m and s, each [N, *shape]. `labels` are int64 [N] or None, `conditions` are arrays [N, ...] by name.
    """

    name: str
    moments: LatentMoments
    labels: np.ndarray | None = None
    conditions: Mapping[str, Points] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.moments.shape[1:]

    @cached_property
    def num_classes(self) -> int:
        return 0 if self.labels is None else int(self.labels.max()) + 1

    @property
    def width(self) -> int:
        return 1 + math.prod(self.shape)

    def rows(self, u: np.ndarray) -> np.ndarray:
        """The component number [n] of each sample that `sample` makes of `u`."""
        return _rows(u[:, 0], len(self.moments))

    def sample(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """m_j + s_j ndtri(u_1..d) with j = floor(u_0 N), for `u` [n, 1 + d]; see `Data.sample`."""
        index = self.rows(u)
        mean, std = self.moments[index]
        return mean + std * ndtri(u[:, 1:]).reshape(mean.shape), None if self.labels is None else self.labels[index]


def _rows(u: np.ndarray, count: int) -> np.ndarray:
    """floor(u N) [n]."""
    return np.minimum((u * count).astype(np.int64), count - 1)  # u N can round up to N


@dataclass(frozen=True)
class GaussianData:
    """N(mean, std^2 I) in `dim` dimensions, with the same `mean` and `std` for every coordinate."""

    dim: int
    mean: float
    std: float
    num_classes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise InputError(f"Bad {self.name!r}: std must be above 0, got {self.std:g}.")

    @property
    def name(self) -> str:
        return format_spec("gaussian", self.dim, self.mean, self.std)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    def width(self) -> int:
        return self.dim

    def sample(self, u: np.ndarray) -> tuple[np.ndarray, None]:
        """mean + std ndtri(u), for `u` [n, dim]; see `Data.sample`."""
        return self.mean + self.std * ndtri(u), None


class MixtureData:
    """A mixture of Gaussians of equal weight with dense covariance matrices (docs/theory.md#mixture).

    Component j depends on a fixed seed and j alone. Its mean is N(0, I). Its covariance is Q diag(e) Q^T with
    eigenvalues e uniform in [0.05, 0.3] and a random rotation Q. The mixture is then shifted and scaled, in closed
    form, to zero mean and unit overall standard deviation (trace of the total covariance = dim). Samples have no
    labels.

    Attributes:
        dim: Number of dimensions, d.
        components: Number of components, k.
        weights: float64 [k].
        means: float64 [k, d].
        covariances: float64 [k, d, d].

    Raises:
        InputError: k d^2 exceeds 2^25 numbers.
    """

    num_classes = 0

    def __init__(self, dim: int, components: int) -> None:
        self.dim, self.components = dim, components
        self.name, self.shape, self.width = f"mixture:{dim},{components}", (dim,), dim + 1
        if components * dim**2 > _MAX_COVARIANCES:
            raise InputError(f"Bad {self.name!r}: k d^2 must be at most 2^25. Use fewer components or dimensions.")
        index = np.arange(components)
        eigenvalues = 0.05 + 0.25 * uniforms(SEED, "mixture/eigenvalues", index, dim)
        rotations = np.linalg.qr(normals(SEED, "mixture/rotations", index, dim * dim).reshape(-1, dim, dim))[0]
        means = normals(SEED, "mixture/means", index, dim)
        means -= means.mean(axis=0)
        scale = np.sqrt((means**2).mean() + eigenvalues.mean())
        self.weights = np.full(components, 1 / components)
        self.means = means / scale
        self.covariances = (rotations * eigenvalues[:, None, :]) @ rotations.transpose(0, 2, 1) / scale**2
        self._factors = np.linalg.cholesky(self.covariances)

    def sample(self, u: np.ndarray) -> tuple[np.ndarray, None]:
        """Component floor(u_0 k), then its mean + Cholesky factor times ndtri(u_1..d), for `u` [n, dim + 1]."""
        component = np.minimum((u[:, 0] * self.components).astype(np.int64), self.components - 1)
        z = ndtri(u[:, 1:])
        x = self.means[component]
        for k in range(self.components):
            rows = np.flatnonzero(component == k)
            part, factor = np.ascontiguousarray(z[rows].T), self._factors[k]
            shifted = np.ascontiguousarray(x[rows].T)
            for column in range(self.dim):  # not a matrix product: its rounding depends on the number of samples
                shifted[column:] += factor[column:, column, None] * part[column]
            x[rows] = shifted.T
        return x, None


def as_data(data: Any, conditions: Collection[str] = ()) -> Data:
    """Data given in memory: `data` itself, what `load_data` loads, or arrays or a torch Dataset as finite data."""
    if isinstance(data, str):
        return load_data(data, conditions=conditions)
    if hasattr(data, "sample") and hasattr(data, "num_classes"):
        return data
    if isinstance(data, np.memmap):  # not read whole
        return FiniteData("array", data)
    name = "array" if isinstance(data, np.ndarray) or hasattr(data, "detach") else type(data).__name__
    return FiniteData(name, *read_items(data, name))


def conditions_of(data: Data) -> Mapping[str, Points]:
    """Arrays of conditions [N, ...] by name, one row for each stored sample; none for closed-form distributions."""
    return getattr(data, "conditions", {})


def with_conditions(data: Data, conditions: Mapping[str, Any]) -> Data:
    """The data set with arrays in memory as its conditions, in place of those it has under the same names.

    Args:
        data: A data set of stored samples.
        conditions: Arrays or tensors [N, ...] by name, one row for each stored sample.

    Returns:
        The data set.

    Raises:
        InputError: The samples are not stored, or an array does not fit them.
    """
    if not isinstance(data, FiniteData | MomentsData):
        raise InputError(
            f"Expected stored samples for conditions, but {data.name} is drawn from a closed form. Pass an array of "
            "samples, with one row of each condition per sample."
        )
    arrays = {name: as_condition(name, values, "conditions") for name, values in conditions.items()}
    for name, array in arrays.items():
        require_rows(name, array, len(data.points if isinstance(data, FiniteData) else data.moments), data.name)
    return replace(data, conditions={**data.conditions, **arrays})


@lru_cache(maxsize=4)
def condition_groups(data: FiniteData | MomentsData, names: tuple[str, ...], with_labels: bool) -> np.ndarray:
    """Number of the distinct condition of each stored sample, int64 [N].

    Args:
        data: The data set.
        names: The conditions.
        with_labels: Whether class labels are a part of the condition.

    Returns:
        Numbers 0, 1, ... in the order in which the values first appear.
    """
    labels = data.labels if with_labels else None
    count = len(data.points if isinstance(data, FiniteData) else data.moments)
    return row_groups({name: data.conditions[name] for name in names}, labels, count)


def load_data(
    spec: str,
    *,
    scale: Numbers | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    conditions: Collection[str] = (),
    advance: Advance | None = None,
) -> Data:
    """Loads a data set: a built-in one by name, or data on disk.

    Args:
        spec: A name from `mfdiag list datasets` with its arguments (`gaussian:2,0,1`), or `PATH[:key=value,...]` for
            data on disk, or `FILE.py:factory[:key=value,...]` for a data set by code, which is run (docs/data.md).
        scale: For data on disk, x_0 = scale (z - mean) / std of a stored z, as a model's card says. Applies if `spec`
            sets none of scale, mean, std and statistics. One number, or one per channel.
        mean: See `scale`.
        std: See `scale`.
        conditions: For data on disk or by code, names of the arrays of conditions that the network takes.
        advance: Receives (items read, items in all or 0) for data by code.

    Returns:
        The data set.

    Raises:
        InputError: An unknown name, wrong arguments, or data that cannot be used.
    """
    name = spec.partition(":")[0]
    if name == "gaussian":
        arguments = parse_arguments(spec, {"d": None, "mean": None, "std": None}, integers={"d"})
        return GaussianData(int(arguments["d"]), arguments["mean"], arguments["std"])
    if name == "mixture":
        arguments = parse_arguments(spec, {"d": None, "k": None}, integers={"d", "k"})
        return MixtureData(int(arguments["d"]), int(arguments["k"]))
    if name in DATASETS:
        parse_arguments(spec, {})
        images = {"digits": _digits, "patches": _patches}
        return images[name]() if name in images else FiniteData(name, toy_points(name))
    if is_user_data(spec):
        return _user_data(spec, scale, mean, std, tuple(conditions), advance)
    if is_stored_data(spec):
        with reading("data", spec):
            points, labels, arrays = read_stored_data(spec, scale=scale, mean=mean, std=std, needed=conditions)
        if isinstance(points, LatentMoments):
            return MomentsData(spec, points, labels, arrays)
        return FiniteData(spec, points, labels, arrays)
    raise did_you_mean("data set", name, DATASETS)


def _user_data(
    spec: str,
    scale: Numbers | None,
    mean: Numbers | None,
    std: Numbers | None,
    needed: tuple[str, ...],
    advance: Advance | None,
) -> FiniteData:
    """Data of the user's code, on the scale of its keys or else of the model's card."""
    points: np.ndarray | Points
    options = parse_user_data(spec).options
    points, labels, conditions = read_user_data(spec, needed, advance)
    if options.keys() & {"scale", "mean", "std"}:
        scale, mean, std = (parse_numbers(spec, key, options.get(key)) for key in ("scale", "mean", "std"))
    scaling = make_scaling(spec, points.shape[1:], scale, mean, std)
    return FiniteData(spec, points if scaling.identity else ScaledPoints(points, scaling, False), labels, conditions)


def _digits() -> FiniteData:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return FiniteData("digits", bunch.images[:, None] / 8 - 1, bunch.target.astype(np.int64))


def _patches() -> FiniteData:
    """All squares of 8 x 8 pixels at every fourth row and column of the photographs china.jpg and flower.jpg."""
    from sklearn.datasets import load_sample_images

    squares = [
        sliding_window_view(image, (8, 8), axis=(0, 1))[::4, ::4].reshape(-1, 3, 8, 8)
        for image in load_sample_images().images
    ]
    return FiniteData("patches", np.concatenate(squares) / np.float32(127.5) - 1)
