"""Couplings: which x_0 meets which x_1. Sample i depends on the seed and its own number, or its own group, alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

import numpy as np
from scipy.special import logsumexp

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.data.datasets import Data
from mfdiag.flow.data.disk_arrays import Points, tiles
from mfdiag.flow.data.pairs import read_pairs
from mfdiag.flow.seeds import uniforms
from mfdiag.flow.sources import Source
from mfdiag.flow.specs import format_spec, parse_arguments

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "COUPLINGS",
    "INDEPENDENT",
    "Coupling",
    "Ends",
    "FilePairs",
    "Gibbs",
    "Independent",
    "MinibatchOT",
    "Pairs",
    "Reflow",
    "Velocity",
    "parse_coupling",
]

COUPLINGS: dict[str, str] = {
    "independent": "x_0 and x_1 drawn apart",
    "minibatch_ot": "optimal transport under the squared distance within groups of k consecutive samples, whatever "
    "their labels (OT-CFM, arXiv 2302.00482): minibatch_ot:k",
    "reflow": "x_0 = end of a teacher's ODE dx/dt = u(x, t, t) from x_1, in n Runge-Kutta steps of order four "
    "(rectified flow, arXiv 2209.03003; Re-MeanFlow): reflow:CHECKPOINT[,n=32]",
    "pairs": "x_0 and x_1 (and labels) read from a file or a .json list of files, such as reflow pairs made elsewhere: "
    "pairs:FILE",
    "gibbs": "drawn apart, with loss weight exp(-|x_0 - x_1|^2 / eps) over its mean (W-CFM, arXiv 2507.22270): "
    "gibbs:eps",
}

Velocity = Callable[["Tensor", "Tensor", "Tensor | None"], "Tensor"]
"""(x [n, *shape], t [n], labels [n] or None) -> velocity [n, *shape]."""

_REFERENCE = 4096  # pairs whose mean is the unit of Gibbs weights
_NUMBERS = 2**22  # coordinates drawn at once where only labels are wanted


class Pairs(NamedTuple):
    """x0, x1 float64 [n, *shape]; labels int64 [n] or None; weight [n] of the loss, mean 1, or None where all are 1."""

    x0: np.ndarray
    x1: np.ndarray
    labels: np.ndarray | None
    weight: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Ends:
    """The two laws a coupling couples, drawn by number: streams `{streams}data` and `{streams}noise` of the seed."""

    data: Data
    source: Source
    seed: int
    streams: str = ""

    def data_of(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """x_0 [n, *shape] and labels [n] (or None) of the samples `index`."""
        return self.data.sample(uniforms(self.seed, f"{self.streams}data", index, self.data.width))

    def noise_of(self, index: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """x_1 [n, *shape] of the samples `index`, given their labels."""
        return self.source.sample(uniforms(self.seed, f"{self.streams}noise", index, self.source.width), labels)


class Coupling(Protocol):
    """A joint law of (x_0, x_1)."""

    @property
    def name(self) -> str:
        """The specification `parse_coupling` reads."""

    @property
    def dependent(self) -> bool:
        """Whether x_0 and x_1 depend on each other (also through a weight), so that no exact posterior is known."""

    def pairs(self, ends: Ends, index: np.ndarray) -> Pairs:
        """The samples `index` [n]."""

    def labels(self, ends: Ends, index: np.ndarray) -> np.ndarray | None:
        """The labels `pairs` gives, without the cost of the pairs."""


class _FromData:
    """Couplings whose labels are those of the data."""

    dependent: ClassVar[bool] = True

    def labels(self, ends: Ends, index: np.ndarray) -> np.ndarray | None:
        """See `Coupling.labels`; the samples are drawn a few at a time, for all of them may not fit in memory."""
        if not ends.data.num_classes:
            return None
        few = tiles(index, max(1, _NUMBERS // math.prod(ends.data.shape)))
        return np.concatenate([np.asarray(ends.data_of(part)[1]) for part in few])


@dataclass(frozen=True)
class Independent(_FromData):
    """x_0 and x_1 given the label drawn apart."""

    name: ClassVar[str] = "independent"
    dependent: ClassVar[bool] = False

    def pairs(self, ends: Ends, index: np.ndarray) -> Pairs:
        """See `Coupling.pairs`."""
        x0, labels = ends.data_of(index)
        return Pairs(x0, ends.noise_of(index, labels), labels)


INDEPENDENT = Independent()


@dataclass(frozen=True)
class MinibatchOT(_FromData):
    """Optimal transport within groups of `k`: samples gk to gk + k - 1 permute their noise (arXiv 2302.00482).

    Both marginals stay what they are. Raises InputError for a source that depends on the label, which moves with x_0.
    """

    k: int

    @property
    def name(self) -> str:
        return format_spec("minibatch_ot", self.k)

    def pairs(self, ends: Ends, index: np.ndarray) -> Pairs:
        """See `Coupling.pairs`."""
        from scipy.optimize import linear_sum_assignment  # slow to import
        from scipy.spatial.distance import cdist

        groups, shape = index // self.k, (len(index), *ends.data.shape)
        x0, x1 = np.empty(shape), np.empty(shape)
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            members = group * self.k + np.arange(self.k)
            data, labels = ends.data_of(members)
            noise = ends.noise_of(members, labels)
            cost = cdist(data.reshape(self.k, -1), noise.reshape(self.k, -1), "sqeuclidean")
            partner = linear_sum_assignment(cost)[1]  # member j's data meets the noise of member partner[j]
            own = index[rows] - group * self.k
            x0[rows], x1[rows] = data[own], noise[partner[own]]
        return Pairs(x0, x1, self.labels(ends, index))


@dataclass(frozen=True, eq=False)
class Reflow(_FromData):
    """x_0 = x(0) of the teacher's ODE dx/dt = velocity(x, t, labels) from x(1) = x_1, in `steps` steps of order four.

    Labels are drawn with the data, which are not used otherwise.
    """

    name: str
    velocity: Velocity = field(repr=False)
    steps: int = 32

    def pairs(self, ends: Ends, index: np.ndarray) -> Pairs:
        """See `Coupling.pairs`."""
        import torch
        from torchdiffeq import odeint

        labels = self.labels(ends, index)
        x1 = ends.noise_of(index, labels)
        given = None if labels is None else torch.as_tensor(labels)

        def field_of(t: Tensor, x: Tensor) -> Tensor:
            return self.velocity(x, t.expand(len(x)), given)

        with torch.no_grad():  # fixed steps, so that no sample's error decides another's step
            way = odeint(
                field_of,
                torch.as_tensor(x1),
                torch.tensor([1.0, 0.0], dtype=torch.float64),
                method="rk4",
                options={"step_size": 1 / self.steps},
            )
        return Pairs(way[-1].numpy(), x1, labels)


@dataclass(frozen=True, eq=False)
class FilePairs:
    """Pairs x0, x1 [N, *shape] with labels [N] or None, drawn like the points of a data file."""

    name: str
    x0: np.ndarray | Points
    x1: np.ndarray | Points
    given: np.ndarray | None
    dependent: ClassVar[bool] = True

    def _rows(self, ends: Ends, index: np.ndarray) -> np.ndarray:
        u = uniforms(ends.seed, f"{ends.streams}data", index, 1)[:, 0]
        return np.minimum((u * len(self.x0)).astype(np.int64), len(self.x0) - 1)

    def pairs(self, ends: Ends, index: np.ndarray) -> Pairs:
        """See `Coupling.pairs`."""
        rows = self._rows(ends, index)
        x0, x1 = (np.asarray(side[rows], dtype=np.float64) for side in (self.x0, self.x1))
        return Pairs(x0, x1, None if self.given is None else self.given[rows])

    def labels(self, ends: Ends, index: np.ndarray) -> np.ndarray | None:
        """See `Coupling.labels`."""
        return None if self.given is None else self.given[self._rows(ends, index)]


@dataclass(frozen=True)
class Gibbs(_FromData):
    """Pairs drawn apart whose loss weighs w = exp(-|x_0 - x_1|^2 / eps) / E[exp(...)] (W-CFM, arXiv 2507.22270).

    `log_mean` is the logarithm of that expectation. Weighted pairs stand for the coupling proportional to the weight,
    whose marginals are tilted.
    """

    eps: float
    log_mean: float

    @classmethod
    def of(cls, eps: float, data: Data, source: Source) -> Gibbs:
        """With the expectation over a fixed sample of pairs."""
        if not eps > 0:
            raise InputError(f"Bad 'gibbs:{eps:g}': eps must be above 0.")
        plain = INDEPENDENT.pairs(Ends(data, source, 0, "gibbs/"), np.arange(_REFERENCE))
        return cls(eps, float(logsumexp(-_square(plain) / eps) - np.log(_REFERENCE)))

    @property
    def name(self) -> str:
        return format_spec("gibbs", self.eps)

    def pairs(self, ends: Ends, index: np.ndarray) -> Pairs:
        """See `Coupling.pairs`."""
        plain = INDEPENDENT.pairs(ends, index)
        return plain._replace(weight=np.exp(-_square(plain) / self.eps - self.log_mean))


def _square(pairs: Pairs) -> np.ndarray:
    """|x_0 - x_1|^2 [n], summed over coordinates."""
    return ((pairs.x0 - pairs.x1) ** 2).reshape(len(pairs.x0), -1).sum(axis=1)


def parse_coupling(spec: str, data: Data, source: Source, teacher: Callable[[str], Velocity]) -> Coupling:
    """The coupling `spec` names, for these ends; `teacher` turns a checkpoint's path into its velocity.

    Raises InputError for an unknown name, wrong arguments, or a file that does not fit the data.
    """
    name, _, rest = spec.partition(":")
    if name == "independent":
        parse_arguments(spec, {})
        return INDEPENDENT
    if name == "minibatch_ot":
        if source.labelled:
            raise InputError(
                f"Coupling {spec} pairs samples of different labels, so the source must not depend on the label as "
                f"{source.name} does; choose another --source or --coupling."
            )
        return MinibatchOT(int(parse_arguments(spec, {"k": None}, integers={"k"})["k"]))
    if name == "gibbs":
        return Gibbs.of(parse_arguments(spec, {"eps": None})["eps"], data, source)
    if name == "reflow":
        place, _, steps = rest.partition(",")
        if not place:
            raise InputError(f"Bad {spec!r}: expected the teacher's checkpoint, as in reflow:teacher.safetensors,32.")
        n = parse_arguments(f"reflow:{steps}", {"n": 32}, integers={"n"})["n"]
        return Reflow(spec, teacher(place), int(n))
    if name == "pairs":
        if not rest:
            raise InputError(f"Bad {spec!r}: expected a file with arrays x0 and x1, as in pairs:reflow.npz.")
        return _from_file(spec, rest, data)
    raise did_you_mean("coupling", name, COUPLINGS)


def _from_file(spec: str, place: str, data: Data) -> FilePairs:
    x0, x1, labels = read_pairs(Path(place).expanduser())
    if x0.shape[1:] != data.shape:
        raise InputError(
            f"{place} holds pairs of shape {list(x0.shape[1:])}, but {data.name} has samples of shape "
            f"{list(data.shape)}; name the data they were made of."
        )
    if not data.num_classes:
        return FilePairs(spec, x0, x1, None)
    if labels is None or labels.max() >= data.num_classes:
        came = "none" if labels is None else f"some up to {labels.max()}"
        raise InputError(
            f"{place} must hold labels 0 to {data.num_classes - 1} as {data.name} does, but it has {came}; "
            "add an array named labels."
        )
    return FilePairs(spec, x0, x1, labels)
