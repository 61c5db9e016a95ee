"""A sampler of (r, t) with other probabilities of its cells, and importance weights that undo the change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mfdiag.errors import InputError
from mfdiag.flow.time_sampler import TimePairs, TimeSampler, time_cells
from mfdiag.flow.time_shares import current_spelling
from mfdiag.storage import expanded
from mfdiag.yamlfile import field_of, line_of, problem_of, read_yaml

__all__ = [
    "SHARE_DRAWS",
    "DensityTimes",
    "cell_numbers",
    "cell_shares",
    "check_base",
    "density_cells",
    "read_density",
    "share_replicates",
]

SHARE_DRAWS = 2**21  # pairs from which `cell_shares` are counted
_SHARE_REPLICATES = 16
_ROUNDING = 1e-6  # shares and bounds go through text and sums; larger deviations are mistakes


@dataclass(frozen=True, eq=False)
class DensityTimes:
    """`base` with the probabilities `drawn` [C] of the cells `density_cells(bins)` instead of its own, `trained` [C].

    Inside a cell, pairs are distributed as under `base`. The importance weight p/q of a pair is therefore
    trained / drawn of its cell, and the density of `base` is not needed: E_q[(p/q) f(r, t)] = E_p[f(r, t)] for any f
    (docs/theory.md#times-density). Cells that `base` never draws from have weight 1.

    Raises:
        InputError: The probabilities do not fit the cells, or `base` is stratified or has weights of its own.
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
                    f"sum to {shares.sum():g}. Write the file again with `mfdiag times`."
                )
        missing = int(((self.trained > 0) & (self.drawn <= 0)).sum())
        if missing:
            raise InputError(
                f"Bad {self.name!r}: {missing} cells that {self.base.name} draws from are never drawn, and no weight "
                "can correct that. Give each of them a share above 0."
            )

    @cached_property
    def ratio(self) -> np.ndarray:
        """q/p of each cell [C]."""
        return np.divide(self.drawn, self.trained, out=np.ones_like(self.drawn), where=self.trained > 0)

    # Rejection sampling. A pair of base that is accepted with a probability proportional to s, and drawn again
    # otherwise, has density p s / E s. After `max_rejections` rejections one more pair is taken without a test, which
    # has density p. Write q/p = floor + (1 - floor) s with floor = min q/p and E s = 1, and accept a pair with
    # probability s / bound. A pair is then accepted with probability 1 / bound on average, and all tests fail with
    # probability (1 - 1/bound)^max_rejections, which equals floor for bound = 1 / (1 - floor^(1/max_rejections)).
    # If max_rejections is so large that bound is at least max s, the density is exactly q.
    @cached_property
    def max_rejections(self) -> int:
        """Pairs of `base` that may be rejected before one is taken without a test."""
        floor, top = self.ratio.min(), self.ratio.max()
        if top - floor < _ROUNDING:
            return 0
        # floor >= (1 - 1/max s)^max_rejections, where 1 - 1/max s = (top - 1) / (top - floor)
        return int(np.ceil(np.log(floor) / np.log((top - 1) / (top - floor))))

    @cached_property
    def acceptance(self) -> np.ndarray:
        """Probability that a tested pair of each cell is accepted [C]."""
        floor = self.ratio.min()
        if not self.max_rejections:
            return np.ones_like(self.ratio)
        return (self.ratio - floor) / (1 - floor) * (1 - floor ** (1 / self.max_rejections))

    @property
    def width(self) -> int:
        """See `TimeSampler.width`. Each tested pair uses one number more for its test; the last pair is not tested."""
        return self.max_rejections * (self.base.width + 1) + self.base.width

    def cell_of(self, r: np.ndarray, t: np.ndarray) -> np.ndarray:
        """Cell number [n] of each pair, see `cell_numbers`."""
        return cell_numbers(r, t, self.bins)

    def sample(self, u: np.ndarray, index: np.ndarray) -> TimePairs:
        """See `TimeSampler.sample`."""
        base_width, index = self.base.width, np.asarray(index)
        tested = self.width - base_width
        r, t = (side.copy() for side in self.base.sample(u[:, tested:], index))
        pending = np.arange(len(u))
        for words in np.split(u[:, :tested], self.max_rejections, axis=1) if self.max_rejections else ():
            r_new, t_new = self.base.sample(words[pending, :base_width], index[pending])
            accepted = words[pending, base_width] < self.acceptance[self.cell_of(r_new, t_new)]
            r[pending[accepted]], t[pending[accepted]] = r_new[accepted], t_new[accepted]
            pending = pending[~accepted]
        return r, t

    def weight(self, r: np.ndarray, t: np.ndarray) -> np.ndarray:
        """See `TimeSampler.weight`."""
        return 1 / self.ratio[self.cell_of(r, t)]


def check_base(base: TimeSampler) -> None:
    """Raises InputError for a sampler whose cell probabilities cannot be changed."""
    if base.stratified:
        raise InputError(
            f"Expected a sampler of (r, t) with one distribution for all samples, but got the stratified "
            f"{base.name!r}. Pass the sampler that the model is trained with; `mfdiag list times` lists them."
        )
    if isinstance(base, DensityTimes):
        raise InputError(
            f"Expected a sampler of (r, t) without weights, but got {base.name!r}. Pass the sampler it was made for: "
            f"--times {base.base.name}."
        )


def density_cells(bins: tuple[int, int]) -> np.ndarray:
    """r_low, r_high, t_low, t_high of the cells of a density, float64 [C, 4].

    First the cells of `time_cells`, for pairs with r < t. Then the bins of t, for pairs with r = t.
    """
    cells, edges = time_cells(*bins), np.arange(bins[1] + 1) / bins[1]
    return np.concatenate([cells, np.stack([edges[:-1], edges[1:]] * 2, axis=1)])


def cell_numbers(r: np.ndarray, t: np.ndarray, bins: tuple[int, int]) -> np.ndarray:
    """The cell of each pair.

    Args:
        r: float64 [n], with r <= t.
        t: float64 [n] in [0, 1].
        bins: Number of bins of r and of t.

    Returns:
        int [n], row numbers of `density_cells(bins)`.
    """
    r_bins, t_bins = bins
    inside = np.arange(r_bins)[:, None] * t_bins < (np.arange(t_bins) + 1) * r_bins  # r_low < t_high
    number = np.cumsum(inside).reshape(inside.shape) - 1
    j = np.minimum((t * t_bins).astype(int), t_bins - 1)
    i = np.minimum((r * r_bins).astype(int), ((j + 1) * r_bins - 1) // t_bins)  # rounding must not put r above t
    return np.where(r < t, number[i, j], inside.sum() + j)


@cache
def share_replicates(base: TimeSampler, bins: tuple[int, int]) -> np.ndarray:
    """Fractions of pairs in each cell under `base`, in independent scrambled Sobol sequences.

    Args:
        base: A sampler with one distribution for all samples.
        bins: Number of bins of r and of t.

    Returns:
        [B, C], unbiased; their spread is the error of the mean.
    """
    from scipy.stats import qmc  # slow to import

    count, cells = SHARE_DRAWS // _SHARE_REPLICATES, len(density_cells(bins))
    shares = np.empty((_SHARE_REPLICATES, cells))
    for b in range(_SHARE_REPLICATES):
        u = qmc.Sobol(max(base.width, 1), seed=b).random(count)[:, : base.width]
        r, t = base.sample(np.clip(u, 2.0**-53, 1 - 2.0**-53), np.arange(count))
        shares[b] = np.bincount(cell_numbers(r, t, bins), minlength=cells) / count
    return shares


def cell_shares(base: TimeSampler, bins: tuple[int, int]) -> np.ndarray:
    """Probability of each cell [C] under `base`, the mean of `share_replicates`: error at most about 1e-5."""
    return share_replicates(base, bins).mean(axis=0)


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


_Bounds = tuple[float, float]
_Bins = Annotated[int, Field(ge=1, le=100)]


class _Cell(_StrictModel):
    r: _Bounds
    t: _Bounds
    trained: float = Field(ge=0)
    drawn: float = Field(ge=0)


class _DensityFile(_StrictModel):
    """Contents of a file: the sampler, the numbers of bins, and the cells in the order of `density_cells`."""

    times: str
    bins: tuple[_Bins, _Bins]
    cells: list[_Cell]


def read_density(spec: str, parse: Callable[[str], TimeSampler]) -> DensityTimes:
    """The sampler `density:FILE`, from a file that `mfdiag times` wrote.

    `parse` maps the specification of the sampler in the file to that sampler. Raises InputError, with line and field,
    for a file that is missing or does not hold a density.
    """
    location = spec.partition(":")[2]
    if not location:
        raise InputError(f"Bad {spec!r}: expected a file that `mfdiag times` wrote, as in density:times-model.yaml.")
    path = expanded(location)
    root, values = read_yaml(path, "a density of (r, t) that `mfdiag times` wrote", _DensityFile)
    try:
        content = _DensityFile.model_validate(values)
    except ValidationError as error:
        field_path, problem = problem_of(error, _DensityFile)
        raise InputError(f"{path}, line {line_of(root, field_path)}, {field_of(field_path)}: {problem}") from error
    bounds = np.array([(*cell.r, *cell.t) for cell in content.cells]).reshape(-1, 4)
    expected = density_cells(content.bins)
    if bounds.shape != expected.shape or not np.allclose(bounds, expected, rtol=0, atol=_ROUNDING):
        raise InputError(
            f"{path}, line {line_of(root, ('cells',))}, cells: expected the {len(expected)} cells of "
            f"{content.bins[0]} x {content.bins[1]} bins in order, got others. Write the file again with "
            "`mfdiag times`."
        )
    trained, drawn = (np.array([getattr(cell, name) for cell in content.cells]) for name in ("trained", "drawn"))
    return DensityTimes(spec, parse(current_spelling(content.times, stored=True)), content.bins, trained, drawn)
