"""Densities of (r, t): the law that is drawn, weights that undo it, shares of cells, and the files that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import load_data
from mfdiag.flow.density import DensityTimes, cell_numbers, cell_shares, density_cells, share_replicates
from mfdiag.flow.draw import Draws
from mfdiag.flow.seeds import uniforms
from mfdiag.flow.time_sampler import TimePairs, TimeSamplerBase
from mfdiag.flow.times import parse_times

BINS = (2, 3)
BASES = ["logit_normal:-0.4,1,0.5", "uniform:r_ne_t=0.7", "restricted:0.4", "alpha_flow:0.5"]


def density_of(base: str = "uniform:r_ne_t=0.7", bins: tuple[int, int] = BINS, seed: int = 0) -> DensityTimes:
    """`base` in random shares, some a tenth of its own, some several times them."""
    sampler = parse_times(base)
    trained = cell_shares(sampler, bins)
    drawn = trained * np.random.default_rng(seed).lognormal(0, 1.5, len(trained))
    return DensityTimes("density:x", sampler, bins, trained, 0.1 * trained + 0.9 * drawn / drawn.sum())


def draw(times: DensityTimes, count: int) -> TimePairs:
    index = np.arange(count)
    return times.sample(uniforms(0, "times", index, times.width), index)


def written(folder: Path, old: str = "", new: str = "") -> str:
    cells = [
        {"r": [float(a), float(b)], "t": [float(c), float(d)], "trained": 0.25, "drawn": drawn}
        for (a, b, c, d), drawn in zip(density_cells((1, 2)), (0.1, 0.2, 0.3, 0.4), strict=True)
    ]
    text = yaml.safe_dump({"times": "uniform:0.5", "bins": [1, 2], "cells": cells}, sort_keys=False)
    assert old in text
    (folder / "times.yaml").write_text(text.replace(old, new, 1) if old else text)
    return f"density:{folder / 'times.yaml'}"


def test_cells_hold_the_pairs_that_their_bounds_say() -> None:
    r, t = parse_times("uniform:r_ne_t=0.7").sample(uniforms(0, "times", np.arange(2000), 3), np.arange(2000))
    cells = density_cells(BINS)
    assert len(cells) == 4 + 1 + 3  # r in the lower half meets all bins of t, in the upper half two
    for (r_low, r_high, t_low, t_high), apart, one_r, one_t in zip(
        cells[cell_numbers(r, t, BINS)], cell_numbers(r, t, BINS) < len(cells) - 3, r, t, strict=True
    ):
        assert r_low <= one_r <= r_high and t_low <= one_t <= t_high and apart == (one_r < one_t)


def test_shares_of_the_uniform_law() -> None:
    """Uniform on the triangle, of density 2, with a share of 0.3 moved to r = t, where t has density 2 t."""
    edges = np.arange(5) / 4
    squares = {(i, j): (1 if i < j else 0.5) * 2 / 16 for i in range(4) for j in range(i, 4)}
    expected = [0.7 * squares[key] for key in sorted(squares)] + list(0.3 * np.diff(edges**2))
    np.testing.assert_allclose(cell_shares(parse_times("uniform:r_ne_t=0.7"), (4, 4)), expected, rtol=0, atol=1e-5)


def test_the_error_of_shares_is_seen_between_replicates() -> None:
    """Uniform times on 10 x 10 cells: squares hold 2 / 100 of the pairs, triangles on the diagonal half of that."""
    shares = share_replicates(parse_times("uniform"), (10, 10))
    cells = density_cells((10, 10))[: 10 * 11 // 2]
    exact = np.where(cells[:, 0] == cells[:, 2], 0.01, 0.02)
    mean, error = shares.mean(0), shares.std(0, ddof=1) / len(shares) ** 0.5
    assert (error < 1.5e-5).all() and (error[len(cells) :] == 0).all()
    missed = np.abs(mean[: len(cells)] - exact) > stats.t.ppf(0.975, len(shares) - 1) * error[: len(cells)]
    assert missed.sum() <= stats.binom.ppf(0.999, len(cells), 0.05)


@pytest.mark.parametrize("base", BASES)
def test_law(base: str) -> None:
    """Cells have their shares; inside one the law is the base's; weights undo the change."""
    times = density_of(base)
    r, t = draw(times, 40_000)
    assert (r >= 0).all() and (r <= t).all() and (t <= 1).all()
    cell = times.cell_of(r, t)
    met = times.trained > 1e-3
    counts = np.bincount(cell, minlength=len(met))
    assert stats.chisquare(counts[met], times.drawn[met] / times.drawn[met].sum() * counts[met].sum()).pvalue > 1e-4
    r_base, t_base = times.base.sample(uniforms(1, "times", np.arange(40_000), times.base.width), np.arange(40_000))
    largest = np.argmax(times.drawn)
    for drawn, own in ((r, r_base), (t, t_base)):
        inside = own[times.cell_of(r_base, t_base) == largest]
        assert stats.ks_2samp(drawn[cell == largest], inside).pvalue > 1e-4
    weight = times.weight(r, t)
    for f in (np.ones_like, lambda t: t, lambda t: np.cos(9 * t)):
        values, plain = weight * f(t), f(t_base)
        error = np.hypot(values.std(), plain.std()) / 200
        assert abs(values.mean() - plain.mean()) <= 4 * error + 1e-5


@given(
    trained=st.lists(st.floats(1e-3, 1), min_size=8, max_size=8),
    drawn=st.lists(st.floats(1e-3, 1), min_size=8, max_size=8),
)
def test_probability_of_a_cell_is_its_share(trained: list[float], drawn: list[float]) -> None:
    """Sum over the tests: rejected so far, then accepted here; then the pair that is taken without a test."""
    p, q = (np.array(shares) / sum(shares) for shares in (trained, drawn))
    times = DensityTimes("density:x", parse_times("uniform"), BINS, p, q)
    assert (times.acceptance <= 1 + 1e-9).all()
    rejected = 1 - p @ times.acceptance if times.max_rejections else 0.0
    probability = sum((rejected**k * p * times.acceptance for k in range(times.max_rejections)), start=0 * p)
    probability = probability + (rejected**times.max_rejections if times.max_rejections else 1.0) * p
    np.testing.assert_allclose(probability, q, rtol=0, atol=2e-6)


@dataclass(frozen=True)
class TwoPairs(TimeSamplerBase):
    """(0, 0.2) or (0, 0.8), half each."""

    kind: ClassVar[str] = "two_pairs"
    width: ClassVar[int] = 1

    def sample(self, u: np.ndarray, index: np.ndarray) -> TimePairs:
        return np.zeros(len(u)), np.where(u[:, 0] < 0.5, 0.2, 0.8)


def test_expectation_on_a_finite_toy_is_exact() -> None:
    """All that one try, its coin and the last pair can be, on a lattice that resolves every decision."""
    p, q = np.array([0.5, 0.5, 0, 0]), np.array([0.4, 0.6, 0, 0])
    times = DensityTimes("density:x", TwoPairs(), (1, 2), p, q)
    assert (times.max_rejections, times.width) == (1, 3)
    assert times.acceptance[:2] == pytest.approx([0, 0.4])
    half, tenth = (0.25, 0.75), (np.arange(10) + 0.5) / 10
    u = np.array([(first, coin, last) for first in half for coin in tenth for last in half])
    r, t = times.sample(u, np.arange(len(u)))
    assert np.mean(t == 0.8) == pytest.approx(0.6, abs=1e-12)
    for f in (t, t**2, np.exp(t)):
        expected = (f[t == 0.2][0] + f[t == 0.8][0]) / 2
        assert np.mean(times.weight(r, t) * f) == pytest.approx(expected, rel=1e-12)


def test_a_sample_depends_on_seed_and_number_alone() -> None:
    times = density_of()
    r, t = draw(times, 30)
    for index in (np.arange(30)[::-1], np.array([17])):
        pairs = times.sample(uniforms(0, "times", index, times.width), index)
        np.testing.assert_array_equal(pairs, (r[index], t[index]))


def test_equal_shares_are_the_base_itself() -> None:
    base = parse_times("uniform:r_ne_t=0.7")
    p = cell_shares(base, BINS)
    times = DensityTimes("density:x", base, BINS, p, p.copy())
    assert times.width == base.width and times.max_rejections == 0
    u = uniforms(0, "times", np.arange(50), 3)
    np.testing.assert_array_equal(times.sample(u, np.arange(50)), base.sample(u, np.arange(50)))
    np.testing.assert_allclose(times.weight(*draw(times, 50)), 1)
    single = density_of("point:0.1,0.6")  # one cell, no uniform numbers
    assert single.width == 0 and single.weight(*draw(single, 5)) == pytest.approx(1)


def test_a_batch_has_the_weight_beside_the_couplings_own(tmp_path: Path) -> None:
    from mfdiag.flow.couplings import Gibbs
    from mfdiag.flow.sources import GaussianSource

    data, times, index = load_data("gaussian:2,0,1"), parse_times(written(tmp_path)), np.arange(20)
    gibbs = Gibbs.fit(4.0, data, GaussianSource((2,)))
    plain = Draws(data, parse_times("uniform"), 0, coupling=gibbs).batch(index)
    both = Draws(data, times, 0, coupling=gibbs).batch(index)
    weight = times.weight(both.r.numpy(), both.t.numpy())
    assert weight is not None and set(weight.round(9)) <= {2.5, 1.25, round(0.25 / 0.3, 9), 0.625}
    assert plain.weight is not None and both.weight is not None
    np.testing.assert_allclose(both.weight.numpy(), plain.weight.numpy() * weight)
    assert Draws(data, parse_times("uniform"), 0).batch(index).weight is None


def test_a_file_reads_back(tmp_path: Path) -> None:
    spec = written(tmp_path)
    times = parse_times(spec)
    assert isinstance(times, DensityTimes) and times.name == spec and times.base == parse_times("uniform:0.5")
    np.testing.assert_array_equal(times.drawn, [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_array_equal(times.trained, [0.25] * 4)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("drawn: 0.1", "drawn: 0.2", "expected 4 shares of at least 0 that sum to 1, got 4 that sum to 1.1"),
        ("drawn: 0.1", "drawn: -0.1", "line 13, cells.0.drawn: "),
        ("drawn: 0.1", "share: 0.1", "line 13, cells.0.share: Unknown field 'share'"),
        ("bins:\n- 1\n- 2", "bins: [2, 2]", "expected the 5 cells of 2 x 2 bins in order"),
        ("times: uniform:0.5", "times: unifrom", "Did you mean 'uniform'"),
        (
            "times: uniform:0.5",
            "times: grid:2,2",
            "one distribution for all samples, but got the stratified 'grid:2,2'",
        ),
    ],
)
def test_bad_files(tmp_path: Path, old: str, new: str, expected: str) -> None:
    with pytest.raises(InputError) as error:
        parse_times(written(tmp_path, old, new))
    assert expected in str(error.value)


def test_every_cell_that_is_met_must_be_drawn() -> None:
    p = np.array([0.5, 0.5, 0, 0])
    with pytest.raises(InputError, match="1 cells that two_pairs draws from are never drawn"):
        DensityTimes("density:x", TwoPairs(), (1, 2), p, np.array([1.0, 0, 0, 0]))


def test_no_file_and_no_density_of_a_density(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a file that `mfdiag times` wrote"):
        parse_times("density")
    with pytest.raises(InputError, match="No such file"):
        parse_times(f"density:{tmp_path / 'absent.yaml'}")
    inner = written(tmp_path)
    (tmp_path / "outer.yaml").write_text((tmp_path / "times.yaml").read_text().replace("uniform:0.5", inner))
    with pytest.raises(InputError, match=r"Pass the sampler it was made for: --times uniform:r_ne_t=0\.5"):
        parse_times(f"density:{tmp_path / 'outer.yaml'}")
