"""(r, t) drawn in other shares than a given sampler's, cell by cell, with importance weights that undo the change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mfdiag.errors import InputError
from mfdiag.flow.time_sampler import Pair, TimeSampler, time_cells
from mfdiag.yamlfile import field_of, line_of, problem_of, read_yaml

__all__ = ["MASS_DRAWS", "DensityTimes", "cell_numbers", "cell_shares", "check_base", "density_cells", "read_density"]

MASS_DRAWS = 2**20  # pairs behind a cell's share
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class DensityTimes:
    """`base` with the cells of `density_cells(bins)` drawn in the shares `drawn` [C] instead of its own, `trained` [C].

    Inside a cell the law is base's, so that the importance weight p/q is one number for each, trained / drawn, and no
    density of base need be known: E_q[(p/q) f(r, t)] = E_p[f(r, t)] for any f. Cells that base never meets weigh 1.
    Raises InputError where shares do not fit, and for a base that draws strata or has weights of its own.
    """

    kind: ClassVar[str] = "density"
    stratified: ClassVar[bool] = False
    name: str
    base: TimeSampler
    bins: tuple[int, int]
    trained: np.ndarray
    drawn: np.ndarray

    def __post_init__(self) -> None:
        check_base(self.base)
        count = len(density_cells(self.bins))
        for shares in (self.trained, self.drawn):
            if shares.shape != (count,) or not (shares >= 0).all() or abs(shares.sum() - 1) > _ROUNDING:
                raise InputError(
                    f"Bad {self.name!r}: expected {count} shares of at least 0 that sum to 1, got {len(shares)} that "
                    f"sum to {shares.sum():g}; write the file again with `mfdiag times`."
                )
        lost = int(((self.trained > 0) & (self.drawn <= 0)).sum())
        if lost:
            raise InputError(
                f"Bad {self.name!r}: {lost} cells that {self.base.name} draws from are never drawn, which no weight "
                "can make up for; give each a share."
            )

    @cached_property
    def ratio(self) -> np.ndarray:
        """q/p of each cell [C]."""
        return np.divide(self.drawn, self.trained, out=np.ones_like(self.drawn), where=self.trained > 0)

    # The law of a sample. A pair of base that is kept with a chance proportional to s, and drawn again otherwise, has
    # density p s / E s; after `tries` in vain one more pair is taken as it is, with density p. So for
    # q/p = floor + (1 - floor) s with floor = min q/p and E s = 1, let a try be kept with chance s / bound; it is kept
    # with chance 1 / bound in all, and `tries` are in vain with chance (1 - 1/bound)^tries = floor for
    # bound = 1 / (1 - floor^(1/tries)). Enough tries make bound at least max s, and the law is exactly q.
    @cached_property
    def tries(self) -> int:
        """Pairs of base that may be rejected before one is taken as it is."""
        floor, top = self.ratio.min(), self.ratio.max()
        if top - floor < _ROUNDING:
            return 0
        # floor >= (1 - 1/max s)^tries, where 1 - 1/max s = (top - 1) / (top - floor)
        return int(np.ceil(np.log(floor) / np.log((top - 1) / (top - floor))))

    @cached_property
    def kept(self) -> np.ndarray:
        """Chance that a try in each cell is kept [C]."""
        floor = self.ratio.min()
        if not self.tries:
            return np.ones_like(self.ratio)
        return (self.ratio - floor) / (1 - floor) * (1 - floor ** (1 / self.tries))

    @property
    def width(self) -> int:
        """See `TimeSampler.width`: the tries and a coin for each, then the pair that is taken as it is."""
        return self.tries * (self.base.width + 1) + self.base.width

    def cell_of(self, r: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Which cell each pair [n] lies in."""
        return cell_numbers(r, t, self.bins)

    def sample(self, u: np.ndarray, index: np.ndarray) -> Pair:
        """See `TimeSampler.sample`."""
        w, index = self.base.width, np.asarray(index)
        r, t = (side.copy() for side in self.base.sample(u[:, self.width - w :], index))
        waiting = np.arange(len(u))
        for words in np.split(u[:, : self.width - w], self.tries, axis=1) if self.tries else ():
            r_new, t_new = self.base.sample(words[waiting, :w], index[waiting])
            chosen = words[waiting, w] < self.kept[self.cell_of(r_new, t_new)]
            r[waiting[chosen]], t[waiting[chosen]] = r_new[chosen], t_new[chosen]
            waiting = waiting[~chosen]
        return r, t

    def weight(self, r: np.ndarray, t: np.ndarray) -> np.ndarray:
        """See `TimeSampler.weight`."""
        return 1 / self.ratio[self.cell_of(r, t)]


def check_base(base: TimeSampler) -> None:
    """InputError for a sampler whose shares cannot be changed."""
    if base.stratified:
        raise InputError(
            f"Expected a sampler of (r, t) that draws every sample from one law, got {base.name!r}, which fills cells "
            "in turn; name the sampler that the model is trained with, see `mfdiag list times`."
        )
    if isinstance(base, DensityTimes):
        raise InputError(
            f"Expected a sampler of (r, t) without weights, got {base.name!r}; pass the one it was made for, "
            f"--times {base.base.name}."
        )


def density_cells(bins: tuple[int, int]) -> np.ndarray:
    """r_low, r_high, t_low, t_high of the cells of a density, float64 [C, 4].

    Those of `time_cells` for pairs with r < t; then the bins of t, which r shares, for pairs with r = t.
    """
    cells, edges = time_cells(*bins), np.arange(bins[1] + 1) / bins[1]
    return np.concatenate([cells, np.stack([edges[:-1], edges[1:]] * 2, axis=1)])


def cell_numbers(r: np.ndarray, t: np.ndarray, bins: tuple[int, int]) -> np.ndarray:
    """Which of `density_cells(bins)` each pair [n] lies in."""
    r_bins, t_bins = bins
    inside = np.arange(r_bins)[:, None] * t_bins < (np.arange(t_bins) + 1) * r_bins  # r_low < t_high
    number = np.cumsum(inside).reshape(inside.shape) - 1
    j = np.minimum((t * t_bins).astype(int), t_bins - 1)
    i = np.minimum((r * r_bins).astype(int), ((j + 1) * r_bins - 1) // t_bins)  # where rounding would put r above t
    return np.where(r < t, number[i, j], inside.sum() + j)


@cache
def cell_shares(base: TimeSampler, bins: tuple[int, int]) -> np.ndarray:
    """Share of each cell [C] under `base`, by 2^20 points of a scrambled Sobol sequence: error about 1e-5."""
    from scipy.stats import qmc  # slow to import

    u = qmc.Sobol(max(base.width, 1), seed=0).random(MASS_DRAWS)[:, : base.width]
    r, t = base.sample(np.clip(u, 2.0**-53, 1 - 2.0**-53), np.arange(MASS_DRAWS))
    return np.bincount(cell_numbers(r, t, bins), minlength=len(density_cells(bins))) / MASS_DRAWS


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


_Bounds = tuple[float, float]
_Bins = Annotated[int, Field(ge=1, le=100)]


class _Cell(_Strict):
    r: _Bounds
    t: _Bounds
    trained: float = Field(ge=0)
    drawn: float = Field(ge=0)


class _Density(_Strict):
    """What a file holds: the sampler, the bins of r and t, and the cells of `density_cells` in their order."""

    times: str
    bins: tuple[_Bins, _Bins]
    cells: list[_Cell]


def read_density(spec: str, parse: Callable[[str], TimeSampler]) -> DensityTimes:
    """The sampler `density:FILE`, as `mfdiag times` writes the file; `parse` reads the name of the sampler in it.

    Raises InputError, with line and field, for a file that is missing or holds something else.
    """
    place = spec.partition(":")[2]
    if not place:
        raise InputError(f"Bad {spec!r}: expected a file that `mfdiag times` wrote, as in density:times-model.yaml.")
    path = Path(place).expanduser()
    root, values = read_yaml(path, "a density of (r, t) that `mfdiag times` wrote", _Density)
    try:
        found = _Density.model_validate(values)
    except ValidationError as error:
        where, problem = problem_of(error, _Density)
        raise InputError(f"{path}, line {line_of(root, where)}, {field_of(where)}: {problem}") from error
    bounds = np.array([(*cell.r, *cell.t) for cell in found.cells]).reshape(-1, 4)
    expected = density_cells(found.bins)
    if bounds.shape != expected.shape or not np.allclose(bounds, expected, rtol=0, atol=_ROUNDING):
        raise InputError(
            f"{path}, line {line_of(root, ('cells',))}, cells: expected the {len(expected)} cells of "
            f"{found.bins[0]} x {found.bins[1]} bins in order, got others; write the file again with `mfdiag times`."
        )
    trained, drawn = (np.array([getattr(cell, name) for cell in found.cells]) for name in ("trained", "drawn"))
    return DensityTimes(spec, parse(found.times), found.bins, trained, drawn)
