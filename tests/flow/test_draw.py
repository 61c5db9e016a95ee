"""Batches: the linear path, common random numbers, and independence of the second draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import Unknown
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mfdiag.flow.couplings import Gibbs
from mfdiag.flow.data.datasets import FiniteData, load_data
from mfdiag.flow.draw import Draws, posterior_of
from mfdiag.flow.paths import TRIGONOMETRIC
from mfdiag.flow.seeds import normals, uniforms
from mfdiag.flow.sources import GaussianSource
from mfdiag.flow.times import parse_times

LABELLED = FiniteData("labelled", np.arange(12.0).reshape(6, 2), np.arange(6) % 3)
DATA = {"gaussian": load_data("gaussian:2,0.5,2"), "mixture": load_data("mixture:2,3"), "finite": LABELLED}


def draws_of(data: str, seed: int = 0, times: str = "uniform") -> Draws:
    return Draws(DATA[data], parse_times(times), seed)


@pytest.mark.parametrize("data", DATA)
@settings(max_examples=20, deadline=None)
@given(index=st.lists(st.integers(0, 10**6), min_size=1, max_size=8), seed=st.integers(0, 2**31))
def test_a_sample_depends_on_seed_and_number_alone(data: str, index: list[int], seed: int) -> None:
    draws = draws_of(data, seed)
    together = draws.batch(np.array(index))
    second = draws.velocity_posterior(together)
    assert second is not None
    for place, number in enumerate(index):
        alone = draws.batch(np.array([number]))
        for name in ("x0", "x1", "r", "t"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[place])
        own = draws.velocity_posterior(alone)
        assert own is not None
        torch.testing.assert_close(own.draw[0], second.draw[place], rtol=1e-9, atol=1e-9)


def test_seeds_differ() -> None:
    one, other = (draws_of("gaussian", seed).batch(np.arange(50)) for seed in (0, 1))
    assert not any((getattr(one, name) == getattr(other, name)).any() for name in ("x0", "x1", "t"))


@pytest.mark.parametrize("data", DATA)
def test_the_path_is_linear_and_the_velocity_its_slope(data: str) -> None:
    batch = draws_of(data).batch(np.arange(20))
    t = batch.t[:, None]
    torch.testing.assert_close(batch.x_t, batch.x0 + t * batch.velocity)
    torch.testing.assert_close(batch.x_t - t * batch.velocity, batch.x0)
    assert batch.x_t.dtype == torch.float64


def test_points_of_the_path_at_other_times() -> None:
    batch = Draws(DATA["mixture"], parse_times("uniform"), 0, path=TRIGONOMETRIC).batch(np.arange(20))
    torch.testing.assert_close(batch.at(torch.zeros(20, dtype=torch.float64)), batch.x0)
    torch.testing.assert_close(batch.at(torch.ones(20, dtype=torch.float64)), batch.x1)
    torch.testing.assert_close(batch.at(batch.t), batch.x_t)


def test_streams_of_another_name_are_other_samples() -> None:
    usual, other = (Draws(DATA["gaussian"], parse_times("uniform"), 0, stream_prefix=name) for name in ("", "train/"))
    one, two = usual.batch(np.arange(50)), other.batch(np.arange(50))
    assert not any((getattr(one, name) == getattr(two, name)).any() for name in ("x0", "x1", "t"))
    np.testing.assert_array_equal(two.x1, normals(0, "train/noise", np.arange(50), 2))


def test_weights_are_the_coupling_s() -> None:
    data = DATA["gaussian"]
    coupling = Gibbs.fit(3.0, data, GaussianSource((2,)))
    draws = Draws(data, parse_times("uniform"), 0, coupling=coupling)
    weight = draws.batch(np.arange(5)).weight
    assert weight is not None and draws_of("gaussian").batch(np.arange(5)).weight is None
    np.testing.assert_array_equal(weight, coupling.pairs(draws.marginals, np.arange(5)).weight)


def test_laws_of_data_noise_and_times_are_independent() -> None:
    batch = draws_of("gaussian").batch(np.arange(20_000))
    assert stats.kstest((batch.x0.flatten().numpy() - 0.5) / 2, "norm").pvalue > 1e-3
    assert stats.kstest(batch.x1.flatten().numpy(), "norm").pvalue > 1e-3
    columns = np.column_stack([batch.x0, batch.x1, batch.t, batch.r / batch.t])
    correlation = np.corrcoef(columns.T) - np.eye(6)
    assert np.abs(correlation).max() < 4.5 / 20_000**0.5


@pytest.mark.parametrize("data", DATA)
def test_the_second_draw_is_a_fresh_one_of_the_same_law(data: str) -> None:
    """Given x_t both draws scatter alike around the marginal velocity, and independently of each other."""
    draws = draws_of(data, times="point:0,0.7")
    batch = draws.batch(np.arange(20_000))
    known = draws.velocity_posterior(batch)
    assert known is not None
    own, fresh = batch.velocity - known.mean, known.draw - known.mean
    n = len(own)
    for noise in (own, fresh):
        excess = noise**2 - known.variance
        assert (noise.mean(0).abs() <= 4 * noise.std(0) / n**0.5).all()
        assert (excess.mean(0).abs() <= 4 * excess.std(0) / n**0.5).all()
    together = own * fresh
    assert (together.mean(0).abs() <= 4 * together.std(0) / n**0.5).all()


def test_labels_are_the_points_own_and_restrict_the_posterior() -> None:
    index = np.arange(40)
    draws = draws_of("finite")
    batch = draws.batch(index)
    assert batch.labels is not None
    np.testing.assert_array_equal(batch.labels, draws.labels_of(index))
    np.testing.assert_array_equal(batch.x0[:, 0].numpy() // 2 % 3, batch.labels)
    known = draws.velocity_posterior(batch)
    assert known is not None
    x0 = batch.x_t - batch.t[:, None] * known.draw
    np.testing.assert_array_equal((x0[:, 0] / 2).round().numpy() % 3, batch.labels)
    blind = Draws(LABELLED, parse_times("uniform"), 0, conditional=False)
    assert blind.batch(index).labels is None
    free = blind.velocity_posterior(blind.batch(index))
    assert free is not None and not torch.allclose(free.mean, known.mean)


def test_no_posterior_where_the_law_is_unknown() -> None:
    assert posterior_of(Unknown(DATA["gaussian"])) is None
    draws = Draws(Unknown(DATA["gaussian"]), parse_times("uniform"), 0)
    assert draws.velocity_posterior(draws.batch(np.arange(3))) is None


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**40), width=st.integers(0, 9), index=st.lists(st.integers(0, 2**40), max_size=6))
def test_random_numbers_by_counter(seed: int, width: int, index: list[int]) -> None:
    together = uniforms(seed, "stream", np.array(index, dtype=np.int64), width)
    assert together.shape == (len(index), width) and ((together > 0) & (together < 1)).all()
    for place, number in enumerate(index):
        np.testing.assert_array_equal(uniforms(seed, "stream", np.array([number]), width)[0], together[place])


def test_streams_are_independent_and_normals_normal() -> None:
    index = np.arange(20_000)
    one, other = (uniforms(0, name, index, 2) for name in ("data", "noise"))
    assert stats.kstest(one.ravel(), "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(np.column_stack([one, other]).T) - np.eye(4)).max() < 4 / 20_000**0.5
    assert stats.kstest(normals(0, "noise", index, 1).ravel(), "norm").pvalue > 1e-3
