"""Moments against explicit per-sample gradients, left out block by block and added up pair by pair."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import accumulated, one_cell
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mfdiag.gradients.accumulate import Accumulator, layer_of, sum_layers
from mfdiag.gradients.cells import Cells, make_cells
from mfdiag.gradients.factors import Dense, Factors, NoGradient, Outer
from mfdiag.gradients.intervals import jackknife
from mfdiag.gradients.moments import BlockMoments


def gradients_of(groups: int, k: int, n: int, d: int, seed: int = 0) -> torch.Tensor:
    """[groups * k, n, d] with means, unequal scales and correlated cotangents."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(groups * k, n, d, dtype=torch.float64, generator=generator)
    return base + 0.7 * base.roll(1, 0) + torch.arange(groups * k).view(-1, 1, 1) / 3


def plain(gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """S, M, Q [K, K] of gradients [K, n, d], from np.cov and the pairs i != j."""
    _, n, d = gradients.shape
    covariance = sum(np.atleast_2d(np.cov(gradients[:, :, j])) for j in range(d))
    pairs = np.einsum("kid,ljd->klij", gradients, gradients)
    apart = pairs.sum((2, 3)) - np.trace(pairs, axis1=2, axis2=3)
    return np.asarray(covariance), apart / (n * (n - 1)), np.trace(pairs, axis1=2, axis2=3) / n


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 3), k=st.integers(1, 3), n=st.integers(4, 90), d=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_replicates_leave_one_block_out(groups: int, k: int, n: int, d: int, seed: int) -> None:
    """n below, at and above the number of blocks: single samples, equal and unequal blocks."""
    gradients, cells = gradients_of(groups, k, n, d, seed), one_cell(n)
    actual = accumulated(gradients, groups, cells).moments[0]["w"].replicates()
    split = gradients.numpy().reshape(groups, k, n, d)
    np.testing.assert_array_equal(actual.count, np.bincount(cells.block))
    for replicate in range(cells.blocks + 1):
        remaining = cells.block != replicate - 1
        for group in range(groups):
            expected = plain(split[group][:, remaining])
            got = (actual.S[replicate, group], actual.M[replicate, group], actual.Q[replicate, group])
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_covariance_and_mean_product_are_unbiased() -> None:
    """Six samples at a time, 20,000 times over: every replication is a group."""
    repeats, n = 20_000, 6
    rng = np.random.default_rng(0)
    mix, mean = np.array([[1.0, 0.5], [-0.3, 0.8]]), np.array([[0.4, -0.2, 0.0], [0.1, 0.3, 0.2]])
    noise = rng.lognormal(0, 0.5, size=(repeats, 2, n, 3)) - np.exp(0.125)
    gradients = np.einsum("kl,rlnd->rknd", mix, noise) + mean[:, None]
    actual = accumulated(torch.as_tensor(gradients).flatten(0, 1), repeats, one_cell(n)).moments[0]["w"].replicates()
    variance = (np.exp(0.25) - 1) * np.exp(0.25)
    for estimate, truth in ((actual.S[0], 3 * variance * mix @ mix.T), (actual.M[0], mean @ mean.T)):
        error = estimate.std(0) / repeats**0.5
        assert (np.abs(estimate.mean(0) - truth) <= 4 * error).all()
        assert (error < 0.05 * np.abs(truth).max()).all()


@pytest.fixture(scope="module")
def times() -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.sort(np.random.default_rng(1).uniform(size=(300, 2)), axis=1).T)  # type: ignore[return-value]


@pytest.mark.parametrize("bins", [(1, 4), (3, 3), (2, 5)])
def test_cells_merge_into_their_parents_and_into_everything(
    times: tuple[np.ndarray, np.ndarray], bins: tuple[int, int]
) -> None:
    gradients = gradients_of(2, 2, 300, 3)
    cells = make_cells(*times, bins)
    actual = accumulated(gradients, 2, cells)
    whole = accumulated(gradients, 2, make_cells(*times, None)).moments[0]["w"].replicates()
    root = actual.moments[len(cells.parent) - 1]["w"].replicates()
    for which in ("S", "M", "Q", "count"):
        np.testing.assert_allclose(getattr(root, which), getattr(whole, which), rtol=1e-10, atol=1e-12)
    r, t = times
    for cell, box in enumerate(cells.boxes[:-1]):
        inside = (r >= (box.r_low or 0)) & (r < (box.r_high or 2)) & (t >= (box.t_low or 0)) & (t < (box.t_high or 2))
        np.testing.assert_array_equal(cells.members(cell), inside)
        if inside.sum() < 2:
            continue
        moments = actual.moments[cell]["w"].replicates()
        assert moments.count.sum() == inside.sum()
        for group in range(2):
            expected = plain(gradients.numpy()[2 * group : 2 * group + 2, inside])
            got = (moments.S[0, group], moments.M[0, group], moments.Q[0, group])
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_empty_cells_leave_nothing() -> None:
    cells = make_cells(np.full(10, 0.1), np.full(10, 0.9), (2, 2))
    actual = accumulated(gradients_of(1, 1, 10, 2), 1, cells)
    filled = [tuple(cells.boxes[cell]) for cell in sorted(actual.moments)]
    assert filled == [(0.0, 0.5, 0.5, 1.0), (None, None, 0.5, 1.0), (None, None, None, None)]


@settings(max_examples=50, deadline=None)
@example(r_bins=6, t_bins=18, k=5, step=-1)
@given(r_bins=st.integers(1, 30), t_bins=st.integers(1, 30), k=st.integers(0, 30), step=st.integers(-1, 1))
def test_every_time_pair_has_a_cell(r_bins: int, t_bins: int, k: int, step: int) -> None:
    """r = t on and beside the edges of bins, where the two roundings must not disagree."""
    edges = np.array([min(k, r_bins) / r_bins, min(k, t_bins) / t_bins, 5 / 6])
    times = np.clip(np.nextafter(edges, edges + step), 0, 1)
    cells = make_cells(times, times, (r_bins, t_bins))
    for time, leaf in zip(times, cells.leaf, strict=True):
        box = cells.boxes[leaf]
        assert box.t_low is not None and box.t_high is not None
        assert box.t_low - 1e-12 <= time <= box.t_high + 1e-12


def test_layers_add_up_and_parameters_share_their_layer() -> None:
    n = 70
    parts = {"a.weight": (2, 3), "a.bias": (2,), "b.weight": (4, 2), "token": (5,)}
    values = {name: gradients_of(1, 2, n, int(np.prod(shape)), seed=len(name)) for name, shape in parts.items()}
    accumulator = Accumulator(one_cell(n), {name: v.shape[2] for name, v in values.items()}, 1, 2)
    for start in range(0, n, 9):
        rows = np.arange(start, min(start + 9, n))
        accumulator.add(rows, [(name, Dense(v[:, rows])) for name, v in values.items()])
        accumulator.advance(start + len(rows))
    layers = accumulator.moments[0]
    assert list(layers) == ["a", "b", "token"] == list(dict.fromkeys(map(layer_of, parts)))
    for actual, names in ((layers["a"], ["a.weight", "a.bias"]), (sum_layers(layers), list(parts))):
        together = torch.cat([values[name] for name in names], 2)
        expected = accumulated(together, 1, one_cell(n)).moments[0]["w"].replicates()
        np.testing.assert_array_equal(actual.replicates().sizes, expected.sizes)
        for which in ("S", "M", "Q", "products"):
            np.testing.assert_allclose(getattr(actual.replicates(), which), getattr(expected, which), rtol=1e-10)
    norms = torch.cat(list(values.values()), 2).square().sum(2).T
    torch.testing.assert_close(accumulator.diagonal[:, 0], norms)


def test_an_accumulator_resumes_from_its_state(times: tuple[np.ndarray, np.ndarray]) -> None:
    gradients, cells = gradients_of(1, 2, 300, 3), make_cells(*times, (2, 3))
    ordered = gradients[:, cells.order]
    first, second = (Accumulator(cells, {"w": 3}, 1, 2) for _ in range(2))
    first.add(cells.order[:130], [("w", Dense(ordered[:, :130]))])
    first.advance(130)
    second.restore(copy.deepcopy(first.state()))
    for accumulator in (first, second):
        accumulator.add(cells.order[130:], [("w", Dense(ordered[:, 130:]))])
        accumulator.advance(300)
    for cell, layers in first.moments.items():
        for name in ("count", "gram", "own", "cross", "norm"):
            np.testing.assert_array_equal(getattr(second.moments[cell]["w"], name), getattr(layers["w"], name))
    assert torch.equal(first.diagonal, second.diagonal)
    for one, other in zip(first.halves(), second.halves(), strict=True):
        np.testing.assert_array_equal(one.norm, other.norm)


def test_halves_are_every_second_block() -> None:
    n = 640
    gradients, cells = gradients_of(1, 2, n, 3), one_cell(n)
    halves = accumulated(gradients, 1, cells).halves()
    for k, half in enumerate(halves):
        expected = plain(gradients.numpy()[:, cells.block % 2 == k])
        actual = half.replicates()
        np.testing.assert_allclose((actual.S[0, 0], actual.M[0, 0], actual.Q[0, 0]), expected, rtol=1e-9, atol=1e-9)
        assert len(actual.count) == 32


def test_folded_blocks_keep_the_moments_and_do_not_narrow_the_errors() -> None:
    """A model said to be too large for its block sums: values stay exact, errors of S nearly so, those of M widen."""
    n, q, p = 256, 24, 40
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, 2, p, dtype=torch.float64, generator=generator) + 0.2
    g = torch.randn(2, n, 2, q, dtype=torch.float64, generator=generator) + 0.2
    left: list[BlockMoments] = []
    for others in (0, 600):
        sizes = {"w": q * p} | {f"other{k}": 1 << 16 for k in range(others)}
        accumulator = Accumulator(one_cell(n), sizes, 1, 2)
        accumulator.add(np.arange(n), [("w", Outer(a, g))])
        accumulator.advance(n)
        assert accumulator.folding == (others > 0)
        left.append(accumulator.moments[0]["w"])
    exact, folded = (blocks.replicates() for blocks in left)
    for which in ("S", "M", "Q"):
        np.testing.assert_allclose(getattr(folded, which)[0], getattr(exact, which)[0], rtol=1e-10)
    errors = {w: [jackknife(getattr(m, w)[:, 0], m.count).std_error for m in (folded, exact)] for w in "SM"}
    assert not np.array_equal(*errors["M"]), "nothing was folded"
    np.testing.assert_allclose(*errors["S"], rtol=0.05)
    assert (errors["M"][0] >= 0.8 * errors["M"][1]).all()


@pytest.mark.parametrize("forms", ["oooo", "noon", "onno", "nddd", "oodd", "dood", "nnnn"])
@pytest.mark.parametrize("others", [0, 600])
def test_a_parameter_may_change_its_form_from_chunk_to_chunk(others: int, forms: str) -> None:
    """Chunks may not use a parameter, or leave it to the reference, also where block sums are folded."""
    n, q, p = 64, 24, 40
    generator = torch.Generator().manual_seed(0)
    a, g = torch.randn(n, 2, p, generator=generator), torch.randn(2, n, 2, q, generator=generator)
    times, chunks = np.linspace(0.05, 0.95, n), len(forms)
    sizes = {"w": q * p} | {f"other{k}": 1 << 16 for k in range(others)}
    moments = []
    for form_of_chunk in (forms, "o" * chunks):
        cells = make_cells(times * 0, times, (1, 3))
        accumulator = Accumulator(cells, sizes, 1, 2)
        assert accumulator.folding == (others > 0)
        for k, rows in enumerate(np.split(cells.order, chunks)):
            outer = Outer(a[rows] * (forms[k] != "n"), g[:, rows])
            forms_of_factors: dict[str, Factors] = {
                "o": outer,
                "d": Dense(outer.dense(0, len(rows))),
                "n": NoGradient(2, len(rows), q * p, a),
            }
            accumulator.add(rows, [("w", forms_of_factors[form_of_chunk[k]])])
            accumulator.advance((k + 1) * len(rows))
        moments.append(accumulator.moments)
    assert moments[0].keys() == moments[1].keys()
    for cell, layers in moments[1].items():
        actual, expected = moments[0][cell]["w"].replicates(), layers["w"].replicates()
        for which in ("S", "M", "Q"):
            np.testing.assert_allclose(getattr(actual, which)[0], getattr(expected, which)[0], rtol=1e-4, atol=1e-3)


def test_cells_of_one_sample_do_not_pretend_to_an_error() -> None:
    actual = (
        accumulated(
            gradients_of(1, 1, 1, 2),
            1,
            Cells(np.zeros(1, int), [-1], make_cells(np.zeros(1), np.ones(1), None).boxes, np.zeros(1, int), 1),
        )
        .moments[0]["w"]
        .replicates()
    )
    estimate = jackknife(actual.S[:, 0, 0, 0], actual.count)
    assert np.isnan(estimate.std_error) and estimate.n_samples == 1


def test_moments_and_cells_import_no_torch() -> None:
    """Code that only reads tables imports them."""
    code = "import sys, mfdiag.gradients.moments, mfdiag.gradients.cells; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
