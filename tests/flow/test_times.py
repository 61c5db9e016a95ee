"""Laws of (r, t): distribution, order and bounds, shares, strata, and the specifications that name them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logit

from mfdiag.errors import InputError
from mfdiag.flow.seeds import uniforms
from mfdiag.flow.times import TIMES, GridTimes, TimeSampler, parse_times, same_times_note, time_cells

SPECS = [
    "logit_normal",
    "logit_normal:0.5,2,1",
    "logit_normal_or_single",
    "logit_normal_or_single:0.5,2,0.75",
    "arctan_normal",
    "arctan_normal:0.5,2",
    "logit_normal_capped",
    "logit_normal_capped:0,1,0.5,2,1",
    "uniform",
    "uniform:r_ne_t=0.25",
    "uniform:r_ne_t=0.25,shift=6.9282",
    "logit_normal_sorted",
    "logit_normal_sorted:-0.6,1.6,-4,1.6,0.75",
    "restricted:0",
    "restricted:0.1",
    "restricted:1",
    "terminal_velocity",
    "terminal_velocity:0.5,2,0,0.5",
    "alpha_flow:0",
    "alpha_flow:0.5",
    "alpha_flow:1,0.75",
    "mean_audio:0.2",
    "mean_audio:1,0.5,0.4",
    "u_shaped",
    "u_shaped:0.5,2,1",
    "grid:4,4",
    "grid:3,5",
    "grid:1,7",
    "grid:7,1",
    "point:0,1",
]


def draw(spec: str, count: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    sampler, index = parse_times(spec), np.arange(count)
    return sampler.sample(uniforms(seed, "times", index, sampler.width), index)


def passes(sample: np.ndarray, cdf: object) -> bool:
    return bool(stats.kstest(sample, cdf).pvalue > 1e-3)


@pytest.mark.parametrize("spec", SPECS)
@given(words=st.lists(st.floats(2.0**-54, 1 - 2.0**-53), min_size=9, max_size=9), first=st.integers(0, 2**40))
def test_order_and_bounds(spec: str, words: list[float], first: int) -> None:
    sampler = parse_times(spec)
    r, t = sampler.sample(np.reshape(words, (3, 3))[:, : sampler.width], np.arange(first, first + 3))
    assert r.shape == t.shape == (3,) and r.dtype == t.dtype == np.float64
    assert (r >= 0).all() and (r <= t).all() and (t <= 1).all()


@pytest.mark.parametrize("spec", SPECS)
def test_a_sample_depends_on_seed_and_number_alone(spec: str) -> None:
    sampler: TimeSampler = parse_times(spec)
    r, t = draw(spec, 30)
    for index in (np.arange(30)[::-1], np.array([17]), np.array([3, 29, 4])):
        again = sampler.sample(uniforms(0, "times", index, sampler.width), index)
        np.testing.assert_array_equal(again, (r[index], t[index]))


@pytest.mark.parametrize(("spec", "mu", "sigma"), [("logit_normal", -0.4, 1), ("logit_normal:0.5,2,0.6", 0.5, 2)])
def test_logit_normal_law(spec: str, mu: float, sigma: float) -> None:
    r, t = draw(spec)
    one = stats.norm(mu, sigma).cdf
    assert passes(logit(t), lambda x: one(x) ** 2)
    assert passes(logit(r[r < t]), lambda x: 1 - (1 - one(x)) ** 2)


def test_a_single_draw_where_r_equals_t() -> None:
    r, t = draw("logit_normal_or_single:0.5,2,0.75")
    one, apart = stats.norm(0.5, 2).cdf, r < t
    assert np.mean(apart) == pytest.approx(0.75, abs=0.01)
    assert passes(logit(t[~apart]), one)
    assert passes(logit(t[apart]), lambda x: one(x) ** 2)
    assert passes(logit(r[apart]), lambda x: 1 - (1 - one(x)) ** 2)


def test_noise_levels_are_log_normal() -> None:
    r, t = draw("arctan_normal:0.5,2")
    assert (r == 0).all() and passes(np.log(np.tan(np.pi / 2 * t)), stats.norm(0.5, 2).cdf)


@pytest.mark.parametrize(
    ("spec", "mu", "sigma", "r_mu", "r_sigma", "r_ne_t"),
    [("logit_normal_capped", -0.6, 1.6, -4, 1.6, 0.75), ("logit_normal_capped:0,1,0.5,2,1", 0, 1, 0.5, 2, 1)],
)
def test_capped_law(spec: str, mu: float, sigma: float, r_mu: float, r_sigma: float, r_ne_t: float) -> None:
    r, t = draw(spec)
    assert passes(logit(t), stats.norm(mu, sigma).cdf)
    both = np.hypot(sigma, r_sigma)  # logit t - logit r is normal, and r < t where it is positive
    assert np.mean(r < t) == pytest.approx(r_ne_t * stats.norm.cdf((mu - r_mu) / both), abs=0.01)
    positive = stats.truncnorm((r_mu - mu) / both, np.inf, mu - r_mu, both).cdf
    assert passes((logit(t) - logit(r))[r < t], positive)


@pytest.mark.parametrize(
    ("spec", "mu", "sigma", "r_mu", "r_sigma", "r_ne_t"),
    [("logit_normal_sorted", 0.4, 1, -1.2, 1, 1), ("logit_normal_sorted:-0.6,1.6,-4,2,0.75", -0.6, 1.6, -4, 2, 0.75)],
)
def test_sorted_law(spec: str, mu: float, sigma: float, r_mu: float, r_sigma: float, r_ne_t: float) -> None:
    r, t = draw(spec)
    one, other = stats.norm(mu, sigma).cdf, stats.norm(r_mu, r_sigma).cdf
    assert passes(logit(t), lambda x: one(x) * other(x))
    assert passes(logit(r[r < t]), lambda x: 1 - (1 - one(x)) * (1 - other(x)))
    assert np.mean(r < t) == pytest.approx(r_ne_t, abs=0.01 if r_ne_t < 1 else 0)


def test_shifted_uniform_law() -> None:
    """A time moved to t has density s / (s - (s - 1) t)^2, of which t is the larger and r the smaller of two."""
    r, t = draw("uniform:shift=4")

    def one(t: np.ndarray) -> np.ndarray:
        return t / (4 - 3 * t)

    assert passes(t, lambda x: one(x) ** 2)
    assert passes(r, lambda x: 1 - (1 - one(x)) ** 2)
    np.testing.assert_array_equal(draw("uniform:1,1"), draw("uniform"))


@pytest.mark.parametrize(
    ("spec", "apart"), [("logit_normal", 0.25), ("logit_normal:0,1,0", 0), ("uniform", 1), ("uniform:0.75", 0.75)]
)
def test_share_of_pairs_apart(spec: str, apart: float) -> None:
    r, t = draw(spec)
    assert np.mean(r < t) == pytest.approx(apart, abs=0.01 if 0 < apart < 1 else 0)


@pytest.mark.parametrize("spec", ["uniform", "uniform:0.5"])
def test_uniform_law(spec: str) -> None:
    r, t = draw(spec)
    assert passes(t, lambda x: x**2)
    assert passes(r[r < t], lambda x: 1 - (1 - x) ** 2)
    assert passes(r[r < t] / t[r < t], "uniform")


def test_share_leaves_t_and_the_pairs_kept_alone() -> None:
    (r, t), (r_half, t_half) = draw("uniform"), draw("uniform:0.5")
    np.testing.assert_array_equal(t, t_half)
    np.testing.assert_array_equal(r_half, np.where(r_half < t_half, r, t))


def test_no_interval_is_flow_matching() -> None:
    r, t = draw("restricted:0")
    np.testing.assert_array_equal(r, t)
    assert passes(t, "uniform")


@pytest.mark.parametrize("delta", [0.1, 1.0])
def test_restricted_law(delta: float) -> None:
    r, t = draw(f"restricted:{delta}")
    assert passes(t, "uniform")
    assert passes((t - r) / np.minimum(t, delta), "uniform")
    assert (t - r).max() <= delta + 1e-15


@pytest.mark.parametrize(("spec", "mu"), [("terminal_velocity", -0.8), ("terminal_velocity:0.5,1,0.3,2", 0.5)])
def test_terminal_velocity_law(spec: str, mu: float) -> None:
    """Against the slow twin: gaps and starts drawn apart, starts beyond 1 - gap drawn again."""
    r, t = draw(spec)
    assert passes(logit(t - r), stats.norm(mu, 1).cdf)
    rng, start = np.random.default_rng(0), (-0.4, 1) if spec == "terminal_velocity" else (0.3, 2)
    gap = 1 / (1 + np.exp(-rng.normal(mu, 1, 20_000)))
    twin = np.full(20_000, np.inf)
    while (again := twin > 1 - gap).any():
        twin[again] = 1 / (1 + np.exp(-rng.normal(*start, again.sum())))
    for ours, theirs in ((r, twin), (t, twin + gap), (r * t, twin * (twin + gap))):
        assert stats.ks_2samp(ours, theirs).pvalue > 1e-3


def test_u_shaped_law() -> None:
    """t below the cut against its integral; at the cut the share that lies beyond; r against the slow twin."""
    r, t = draw("u_shaped:0.5,2,0.6")

    def one(t: np.ndarray | float) -> np.ndarray | float:
        return (np.expm1(4 * t) / np.expm1(4) + 1 - np.expm1(4 * (1 - t)) / np.expm1(4)) / 2

    assert np.mean(t == 80 / 81) == pytest.approx(1 - one(80 / 81), abs=0.005)
    inside = t[t < 80 / 81]
    assert passes(inside, lambda x: one(x) / one(80 / 81))
    assert np.mean(r < t) == pytest.approx(0.6, abs=0.015)
    rng = np.random.default_rng(0)
    twin = np.clip(t - 1 / (1 + np.exp(-rng.normal(0.5, 2, len(t)))), 0, 1)
    twin[(t > 0.8) & (twin < 0.4)] = 0
    assert stats.ks_2samp(r[r < t], twin).pvalue > 1e-3
    assert not ((t > 0.8) & (r < 0.4) & (r > 0)).any()


@pytest.mark.parametrize(("r_bins", "t_bins", "count"), [(1, 1, 1), (4, 4, 10), (3, 5, 11), (1, 7, 7), (7, 1, 7)])
def test_grid_covers_its_cells_evenly(r_bins: int, t_bins: int, count: int) -> None:
    cells = time_cells(r_bins, t_bins)
    assert len(cells) == count
    r, t = draw(f"grid:{r_bins},{t_bins}", 20 * count)
    r_low, r_high, t_low, t_high = np.tile(cells, (20, 1)).T
    assert (r_low <= r).all() and (r <= r_high).all() and (t_low <= t).all() and (t <= t_high).all()


@pytest.mark.parametrize("bins", [(2, 2), (2, 3), (1, 5), (5, 1)])
def test_grid_is_uniform_within_each_cell(bins: tuple[int, int]) -> None:
    """Against the slow twin: uniform points of the cell, those with r > t thrown away."""
    sampler = GridTimes(*bins)
    rng = np.random.default_rng(0)
    for place, (a, b, c, d) in enumerate(sampler.cells):
        index = place + len(sampler.cells) * np.arange(4000)
        r, t = sampler.sample(uniforms(0, "times", index, 2), index)
        points = rng.uniform((a, c), (b, d), size=(20_000, 2))
        points = points[points[:, 0] <= points[:, 1]]
        for ours, theirs in ((r, points[:, 0]), (t, points[:, 1]), (t - r, points[:, 1] - points[:, 0])):
            assert stats.ks_2samp(ours, theirs).pvalue > 1e-3


def test_only_the_grid_is_stratified() -> None:
    assert [spec for spec in SPECS if parse_times(spec).stratified] == [s for s in SPECS if s.startswith("grid")]


def test_point() -> None:
    r, t = draw("point:0.25,0.75", 3)
    assert (r == 0.25).all() and (t == 0.75).all()


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("logit_normal", "logit_normal"),
        ("logit_normal:-0.4,1.0", "logit_normal"),
        ("logit_normal:mu=-0.4,sigma=1,r_ne_t=0.5", "logit_normal:-0.4,1,0.5"),
        ("logit_normal:0", "logit_normal:0"),
        ("uniform:1", "uniform"),
        ("uniform:0.25", "uniform:r_ne_t=0.25"),
        ("uniform:1,4", "uniform:shift=4"),
        ("uniform:r_eq_t=0.7,shift=4", "uniform:r_ne_t=0.3,shift=4"),
        ("restricted:0.20", "restricted:0.2"),
        ("terminal_velocity:gap_sigma=1,mu=0", "terminal_velocity:-0.8,1,0"),
        ("alpha_flow:0.5,0.5,25", "alpha_flow:0.5"),
        ("mean_audio:1,r_eq_t=0.5", "mean_audio:1,r_ne_t=0.5"),
        ("mean_audio:1,0.4,0.25,0", "mean_audio:1,0.4,mu=0"),
        ("grid:8, 8", "grid:8,8"),
        ("point:0,1.0", "point:0,1"),
    ],
)
def test_canonical_names_read_back(spec: str, name: str) -> None:
    assert parse_times(spec).name == name
    assert parse_times(name) == parse_times(spec)


def test_every_name_is_described_and_known() -> None:
    assert {spec.partition(":")[0] for spec in SPECS} == set(TIMES) - {"density"}  # which needs a file


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("unifrom", "Did you mean 'uniform'"),
        ("logit_normal:0,0", "sigma must be above 0"),
        ("logit_normal:0,1,1.5", "r_ne_t must be in"),
        ("logit_normal:0,1,0.5,3", "expected logit_normal:"),
        ("logit_normal:nu=3", "unknown argument 'nu'"),
        ("uniform:-0.1", "r_ne_t must be in"),
        ("uniform:r_eq_t=1.1", "r_ne_t must be in"),
        ("uniform:r_eq_t=0.1,r_ne_t=0.9", "repeated argument 'r_ne_t'"),
        ("uniform:0.5,1,2", "expected uniform:"),
        ("uniform:r_eq_t=half", "finite number, got 'half'"),
        ("uniform:r_eq_t=1e9999999", "finite number"),
        ("uniform:half", "finite number, got 'half'"),
        ("restricted", "no value for delta"),
        ("restricted:-0.1", "delta must be in"),
        ("restricted:1.1", "delta must be in"),
        ("terminal_velocity:0,0", "gap_sigma must be above 0"),
        ("terminal_velocity:0,1,0,-1", "sigma must be above 0"),
        ("alpha_flow", "no value for progress"),
        ("alpha_flow:1.5", "progress must be in"),
        ("alpha_flow:1,2", "r_ne_t must be in"),
        ("alpha_flow:1,1,0", "gamma must be above 0"),
        ("alpha_flow:1,1,25,0.5", "clamp must be in"),
        ("mean_audio:-1", "progress must be in"),
        ("mean_audio:1,2", "switch must be in"),
        ("mean_audio:1,0.5,0.75,0,0", "sigma must be above 0"),
        ("grid:4", "no value for t_bins"),
        ("grid:0,4", "whole number of at least 1"),
        ("grid:2.5,4", "whole number of at least 1"),
        ("grid:1e6,1e6", "at most 2\\^20 cells"),
        ("point:0.5,0.2", "expected 0 <= r <= t <= 1"),
        ("point:-1,0.2", "expected 0 <= r <= t <= 1"),
        ("point:0.5", "no value for t"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_times(spec)


@pytest.mark.parametrize(
    ("spec", "same"),
    [
        *((spec, True) for spec in ("uniform:0", "logit_normal:0,1,0", "restricted:0", "point:0.3,0.3")),
        *((spec, False) for spec in ("uniform:0.01", "logit_normal", "restricted:0.1", "point:0.2,0.3")),
    ],
)
def test_a_sampler_whose_pairs_all_have_equal_times_is_reported(spec: str, same: bool) -> None:
    note = same_times_note(parse_times(spec))
    assert (note is not None) == same
    if note is not None:
        assert parse_times(spec).name in note
        assert ("r_ne_t is the fraction of pairs with r != t" in note) == spec.startswith(("uniform", "logit_normal"))
