"""Couplings: joint distributions of x_0 and x_1. Sample i depends on the seed and its number (or group) alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import numpy as np

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.data.datasets import Data, FiniteData, MomentsData, conditions_of
from mfdiag.flow.data.disk_arrays import Points, tiles
from mfdiag.flow.data.pairs import read_pairs
from mfdiag.flow.gibbs_mean import log_mean_kernel
from mfdiag.flow.seeds import uniforms
from mfdiag.flow.sources import Source
from mfdiag.flow.specs import format_spec, parse_arguments
from mfdiag.inputs import reading
from mfdiag.storage import expanded

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.flow.conditions import Condition

__all__ = [
    "COUPLINGS",
    "INDEPENDENT",
    "REVERSED",
    "CoupledPairs",
    "Coupling",
    "FilePairs",
    "Gibbs",
    "Independent",
    "Marginals",
    "MinibatchOT",
    "Reflow",
    "TeacherVelocity",
    "parse_coupling",
]

COUPLINGS: dict[str, str] = {
    "independent": "x_0 and x_1 are drawn independently",
    "minibatch_ot": "optimal transport under the squared distance within groups of k consecutive samples, across "
    "labels (OT-CFM, arXiv 2302.00482): minibatch_ot:k",
    "reflow": "x_0 is the end of a teacher's ODE dx/dt = u(x, t, t) that starts at x_1, in n Runge-Kutta steps of "
    "order four (rectified flow, arXiv 2209.03003; Re-MeanFlow): reflow:CHECKPOINT[,n=32]",
    "pairs": "x_0 and x_1 (and labels) from a file or a .json list of files, such as reflow pairs that another program "
    "wrote: pairs:FILE",
    "gibbs": "independent pairs with loss weight exp(-|x_0 - x_1|^2 / eps), divided by its mean (W-CFM, arXiv "
    "2507.22270): gibbs:eps",
    "reversed": "x_0 is noise and x_1 is a sample of the data, drawn independently: for networks trained with the "
    "point at the data's end of the interval",
}

TeacherVelocity = Callable[["Tensor", "Tensor", "Condition"], "Tensor"]
"""Maps x [n, *shape], t [n] and labels [n], `Conditions` or None to the velocity [n, *shape].

An attribute `condition_names`, if it has one, lists the arrays of the data that it takes.
"""

_LABEL_CHUNK = 2**22  # coordinates drawn at once if only labels are needed: 32 MiB in float64


class CoupledPairs(NamedTuple):
    """n samples of (x_0, x_1).

    Attributes:
        x0: float64 [n, *shape].
        x1: float64 [n, *shape].
        labels: int64 [n], or None.
        weight: Weight of each sample's loss [n], with mean 1, or None if all weights are 1.
    """

    x0: np.ndarray
    x1: np.ndarray
    labels: np.ndarray | None
    weight: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Marginals:
    """The distributions of x_0 and x_1, sampled by number from the random streams of `seed`.

    `stream_prefix` starts the names of the streams, which end in `data` and `noise`.
    """

    data: Data
    source: Source
    seed: int
    stream_prefix: str = ""

    def data_of(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """x_0 [n, *shape] and labels [n] (or None) of the samples `index`."""
        return self.data.sample(uniforms(self.seed, f"{self.stream_prefix}data", index, self.data.width))

    def rows_of(self, index: np.ndarray) -> np.ndarray:
        """The number [n] of the stored sample that each of the samples `index` is."""
        assert isinstance(self.data, FiniteData | MomentsData), "only stored samples have numbers"
        return self.data.rows(uniforms(self.seed, f"{self.stream_prefix}data", index, self.data.width))

    def conditions_of(self, index: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The conditions `names` [n, ...] of the samples `index`; none for no names."""
        rows = self.rows_of(index) if names else index
        return {name: conditions_of(self.data)[name][rows] for name in names}

    def noise_of(self, index: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """x_1 [n, *shape] of the samples `index` with these labels."""
        return self.source.sample(uniforms(self.seed, f"{self.stream_prefix}noise", index, self.source.width), labels)


class Coupling(Protocol):
    """A joint distribution of (x_0, x_1)."""

    @property
    def name(self) -> str:
        """The specification that `parse_coupling` reads."""

    @property
    def dependent(self) -> bool:
        """Whether x_0 and x_1 depend on each other, also by a weight. If so, no exact posterior is known."""

    def pairs(self, marginals: Marginals, index: np.ndarray) -> CoupledPairs:
        """The samples `index` [n]."""

    def labels(self, marginals: Marginals, index: np.ndarray) -> np.ndarray | None:
        """The labels that `pairs` returns, without the cost of the pairs."""

    def conditions(self, marginals: Marginals, index: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The conditions of the samples, which belong to their x_0.

        Args:
            marginals: The distributions of x_0 and x_1.
            index: Sample numbers [n].
            names: Names of the conditions.

        Returns:
            Arrays [n, ...] by name.
        """


class _DataLabels:
    """Base of couplings whose labels are those of the data."""

    dependent: ClassVar[bool] = True

    def labels(self, marginals: Marginals, index: np.ndarray) -> np.ndarray | None:
        """See `Coupling.labels`. The samples are drawn in chunks, because all of them may not fit in memory."""
        if not marginals.data.num_classes:
            return None
        chunks = tiles(index, max(1, _LABEL_CHUNK // math.prod(marginals.data.shape)))
        return np.concatenate([np.asarray(marginals.data_of(chunk)[1]) for chunk in chunks])

    def conditions(self, marginals: Marginals, index: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """See `Coupling.conditions`."""
        return marginals.conditions_of(index, names)


@dataclass(frozen=True)
class Independent(_DataLabels):
    """x_0 and x_1 are independent given the label."""

    name: ClassVar[str] = "independent"
    dependent: ClassVar[bool] = False

    def pairs(self, marginals: Marginals, index: np.ndarray) -> CoupledPairs:
        """See `Coupling.pairs`."""
        x0, labels = marginals.data_of(index)
        return CoupledPairs(x0, marginals.noise_of(index, labels), labels)


INDEPENDENT = Independent()


@dataclass(frozen=True)
class Reversed(_DataLabels):
    """Independent pairs in which noise and data change places: x_0 is noise, and x_1 with its label is of the data.

    The point of an interval [r, t] lies at t, which then is the data's end. No posterior is computed for such pairs.
    """

    name: ClassVar[str] = "reversed"

    def pairs(self, marginals: Marginals, index: np.ndarray) -> CoupledPairs:
        """See `Coupling.pairs`."""
        data, noise, labels, weight = INDEPENDENT.pairs(marginals, index)
        return CoupledPairs(noise, data, labels, weight)


REVERSED = Reversed()


@dataclass(frozen=True)
class MinibatchOT(_DataLabels):
    """Optimal transport within groups of `k`: samples gk to gk + k - 1 permute their noise (arXiv 2302.00482).

    Both marginals are unchanged if the source does not depend on the label. Labels stay with x_0.
    """

    k: int

    @property
    def name(self) -> str:
        return format_spec("minibatch_ot", self.k)

    def pairs(self, marginals: Marginals, index: np.ndarray) -> CoupledPairs:
        """See `Coupling.pairs`."""
        from scipy.optimize import linear_sum_assignment  # slow to import
        from scipy.spatial.distance import cdist

        groups, shape = index // self.k, (len(index), *marginals.data.shape)
        x0, x1 = np.empty(shape), np.empty(shape)
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            group_index = group * self.k + np.arange(self.k)
            data, labels = marginals.data_of(group_index)
            noise = marginals.noise_of(group_index, labels)
            cost = cdist(data.reshape(self.k, -1), noise.reshape(self.k, -1), "sqeuclidean")
            partner = linear_sum_assignment(cost)[1]  # x_0 of the j-th sample is paired with noise[partner[j]]
            position = index[rows] - group * self.k
            x0[rows], x1[rows] = data[position], noise[partner[position]]
        return CoupledPairs(x0, x1, self.labels(marginals, index))


@dataclass(frozen=True, eq=False)
class Reflow(_DataLabels):
    """x_0 = x(0) of the teacher's ODE dx/dt = velocity(x, t, labels) from x(1) = x_1, in `steps` steps of order four.

    Labels, and the arrays that the teacher takes, are drawn with the data. The data are not used otherwise.
    """

    name: str
    velocity: TeacherVelocity = field(repr=False)
    steps: int = 32

    def pairs(self, marginals: Marginals, index: np.ndarray) -> CoupledPairs:
        """See `Coupling.pairs`."""
        import torch
        from torchdiffeq import odeint

        from mfdiag.flow.conditions import Conditions

        labels = self.labels(marginals, index)
        x1 = marginals.noise_of(index, labels)
        label_tensor = None if labels is None else torch.as_tensor(labels)
        condition: Condition = label_tensor
        if names := getattr(self.velocity, "condition_names", ()):
            arrays = self.conditions(marginals, index, names)
            condition = Conditions(label_tensor, {name: torch.as_tensor(rows) for name, rows in arrays.items()})

        def derivative(t: Tensor, x: Tensor) -> Tensor:
            v = self.velocity(x, t.expand(len(x)), condition)
            if v.shape != x.shape:  # it would broadcast
                raise InputError(
                    f"Expected the teacher of {self.name} to return samples of shape {list(x.shape[1:])}, but it "
                    f"returned shape {list(v.shape[1:])}. Pass a teacher of the same data."
                )
            return v

        with torch.no_grad():  # fixed steps: with adaptive ones, a sample would depend on the others in its batch
            trajectory = odeint(
                derivative,
                torch.as_tensor(x1),
                torch.tensor([1.0, 0.0], dtype=torch.float64),
                method="rk4",
                options={"step_size": 1 / self.steps},
            )
        return CoupledPairs(trajectory[-1].numpy(), x1, labels)


@dataclass(frozen=True, eq=False)
class FilePairs:
    """Stored pairs, sampled like the points of a data file.

    Attributes:
        name: The specification.
        x0: [N, *shape], in memory or on disk.
        x1: [N, *shape], in memory or on disk.
        stored_labels: int64 [N], or None.
        stored_conditions: Conditions [N, ...] by name.
    """

    name: str
    x0: np.ndarray | Points
    x1: np.ndarray | Points
    stored_labels: np.ndarray | None
    stored_conditions: Mapping[str, Points] = field(default_factory=dict)
    dependent: ClassVar[bool] = True

    def _rows(self, marginals: Marginals, index: np.ndarray) -> np.ndarray:
        u = uniforms(marginals.seed, f"{marginals.stream_prefix}data", index, 1)[:, 0]
        return np.minimum((u * len(self.x0)).astype(np.int64), len(self.x0) - 1)

    def pairs(self, marginals: Marginals, index: np.ndarray) -> CoupledPairs:
        """See `Coupling.pairs`."""
        rows = self._rows(marginals, index)
        x0, x1 = (np.asarray(side[rows], dtype=np.float64) for side in (self.x0, self.x1))
        return CoupledPairs(x0, x1, None if self.stored_labels is None else self.stored_labels[rows])

    def labels(self, marginals: Marginals, index: np.ndarray) -> np.ndarray | None:
        """See `Coupling.labels`."""
        return None if self.stored_labels is None else self.stored_labels[self._rows(marginals, index)]

    def conditions(self, marginals: Marginals, index: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The conditions of the pairs.

        Args:
            marginals: The distributions whose random streams choose the pairs.
            index: Sample numbers [n].
            names: Names of the conditions.

        Returns:
            Arrays [n, ...] by name.

        Raises:
            InputError: The file lacks one.
        """
        rows = self._rows(marginals, index)
        for name in names:
            if name not in self.stored_conditions:
                present = ", ".join(self.stored_conditions) or "none"
                raise InputError(
                    f"Expected array {name!r} beside x0 and x1 of {self.name}, because the network takes it, but the "
                    f"other arrays are {present}. Add it, one row per pair."
                )
        return {name: self.stored_conditions[name][rows] for name in names}


@dataclass(frozen=True)
class Gibbs(_DataLabels):
    """Independent pairs with loss weight w = exp(-|x_0 - x_1|^2 / eps) / E[exp(...)] (W-CFM, arXiv 2507.22270).

    The weighted pairs represent the coupling whose density is proportional to the weight. Its marginals are tilted.

    Attributes:
        eps: Temperature, above 0.
        log_mean: Logarithm of the expectation.
    """

    eps: float
    log_mean: float

    @classmethod
    def fit(cls, eps: float, data: Data, source: Source) -> Gibbs:
        """Computes the expectation, see `log_mean_kernel`.

        Args:
            eps: Temperature, above 0.
            data: Distribution of x_0.
            source: Distribution of x_1.

        Returns:
            The coupling.

        Raises:
            InputError: `eps` is not above 0, or the expectation cannot be computed to 0.5 %.
        """
        if not eps > 0:
            raise InputError(f"Bad 'gibbs:{eps:g}': eps must be above 0.")
        return cls(eps, log_mean_kernel(eps, data, source))

    @property
    def name(self) -> str:
        return format_spec("gibbs", self.eps)

    def pairs(self, marginals: Marginals, index: np.ndarray) -> CoupledPairs:
        """See `Coupling.pairs`."""
        pairs = INDEPENDENT.pairs(marginals, index)
        return pairs._replace(weight=np.exp(-_squared_distance(pairs) / self.eps - self.log_mean))


def _squared_distance(pairs: CoupledPairs) -> np.ndarray:
    """|x_0 - x_1|^2 [n], summed over coordinates."""
    return ((pairs.x0 - pairs.x1) ** 2).reshape(len(pairs.x0), -1).sum(axis=1)


def parse_coupling(spec: str, data: Data, source: Source, teacher: Callable[[str], TeacherVelocity]) -> Coupling:
    """The coupling of a specification: a key of `COUPLINGS` with arguments.

    Args:
        spec: The specification.
        data: Distribution of x_0.
        source: Distribution of x_1.
        teacher: Maps the path of a checkpoint to its velocity. Called for `reflow` alone.

    Returns:
        The coupling.

    Raises:
        InputError: An unknown name, wrong arguments, or a file that does not fit the data.
    """
    name, _, text = spec.partition(":")
    if name == "independent":
        parse_arguments(spec, {})
        return INDEPENDENT
    if name == "reversed":
        parse_arguments(spec, {})
        return REVERSED
    if name == "minibatch_ot":
        if source.depends_on_label:
            raise InputError(
                f"Coupling {spec} pairs samples across labels, so it needs a source that does not depend on the label, "
                f"but {source.name} does. Pass another --source or --coupling."
            )
        return MinibatchOT(int(parse_arguments(spec, {"k": None}, integers={"k"})["k"]))
    if name == "gibbs":
        return Gibbs.fit(parse_arguments(spec, {"eps": None})["eps"], data, source)
    if name == "reflow":
        checkpoint, _, steps = text.partition(",")
        if not checkpoint:
            raise InputError(f"Bad {spec!r}: expected the teacher's checkpoint, as in reflow:teacher.safetensors,32.")
        n = parse_arguments(f"reflow:{steps}", {"n": 32}, integers={"n"})["n"]
        return Reflow(spec, teacher(checkpoint), int(n))
    if name == "pairs":
        if not text:
            raise InputError(f"Bad {spec!r}: expected a file with arrays x0 and x1, as in pairs:reflow.npz.")
        with reading("data", spec):
            return _file_pairs(spec, expanded(text), data)
    raise did_you_mean("coupling", name, COUPLINGS)


def _file_pairs(spec: str, path: Path, data: Data) -> FilePairs:
    x0, x1, labels, conditions = read_pairs(path)
    if x0.shape[1:] != data.shape:
        raise InputError(
            f"Expected pairs of shape {list(data.shape)} as in {data.name}, but {path} has {list(x0.shape[1:])}. Pass "
            "--data that the pairs were made from."
        )
    if not data.num_classes:
        return FilePairs(spec, x0, x1, None, conditions)
    if labels is None or labels.max() >= data.num_classes:
        problem = "no labels" if labels is None else f"labels up to {labels.max()}"
        raise InputError(
            f"Expected labels 0 to {data.num_classes - 1} in {path}, as in {data.name}, but it has {problem}. Add an "
            "array named labels."
        )
    return FilePairs(spec, x0, x1, labels, conditions)
