"""Standard errors and intervals: closed forms, and coverage measured over replications (one group each)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers import accumulated, one_cell
from scipy import stats

from mfdiag.gradients.intervals import (
    Estimate,
    SquaredMean,
    cosine_jackknife,
    hall_transform,
    jackknife,
    quantile,
    ratio_jackknife,
    skewed_interval,
    skewed_jackknife,
)
from mfdiag.gradients.moments import Moments, scalar_replicates

REPEATS = 800
# the promise is 93 to 97 %; these are the 99.9 % binomial limits of its ends
LEAST = stats.binom.ppf(0.001, REPEATS, 0.93) / REPEATS
MOST = stats.binom.ppf(0.999, REPEATS, 0.97) / REPEATS


def student(contributions: np.ndarray) -> np.ndarray:
    """The quantile of Student's t, with fewer degrees of freedom where the contributions [g, ...] have heavy tails."""
    excess = stats.kurtosis(contributions, axis=0)
    return np.asarray(stats.t.ppf(0.975, (len(contributions) - 1) / (1 + np.maximum(excess, 0) / 2)))


@pytest.mark.parametrize("law", [stats.norm(), stats.t(8), stats.laplace()], ids=["normal", "t8", "laplace"])
def test_the_degrees_of_freedom_are_those_of_the_squared_error(law: stats.rv_continuous) -> None:
    """Satterthwaite: a scaled chi-square of as many degrees has the variance of the squared standard error."""
    values = law.rvs(size=(40, 20_000), random_state=np.random.default_rng(0))
    square = values.var(0, ddof=1)
    expected = 2 * square.mean() ** 2 / square.var()
    assert expected == pytest.approx(39 / (1 + law.stats("k") / 2), rel=0.05)
    freedom = stats.kurtosis(values[:, :2000].ravel())
    actual = quantile(values[:, :2000].reshape(-1, 1))[0]
    assert actual == pytest.approx(stats.t.ppf(0.975, (80_000 - 1) / (1 + max(freedom, 0) / 2)))


def test_one_block_that_carries_all_leaves_two_degrees_of_freedom() -> None:
    deviation = np.full((64, 2), -1 / 64)
    deviation[0] += 1
    deviation[:, 1] = 0  # a constant keeps all of them
    np.testing.assert_allclose(quantile(deviation), stats.t.ppf(0.975, [63 / (1 + 59.016 / 2), 63]), rtol=1e-3)
    for unit in (1e-150, 1e150):
        np.testing.assert_allclose(quantile(unit * deviation), quantile(deviation))


@pytest.mark.parametrize("size", [1, 7])
def test_mean_of_equal_blocks_has_the_textbook_error(size: int) -> None:
    blocks = 32
    values = np.random.default_rng(0).lognormal(size=(blocks * size, 3))
    replicates, count = scalar_replicates(values, np.repeat(np.arange(blocks), size), blocks)
    actual = jackknife(replicates, count)
    means = values.reshape(blocks, size, 3).mean(1)
    error = means.std(0, ddof=1) / blocks**0.5
    np.testing.assert_allclose(actual.value, values.mean(0))
    np.testing.assert_allclose(actual.std_error, error)
    np.testing.assert_allclose(actual.high - actual.value, student(means) * error)
    np.testing.assert_allclose(actual.value - actual.low, actual.high - actual.value)
    assert actual.n_samples == len(values)


def test_mean_of_unequal_blocks_weighs_their_sizes() -> None:
    """The error of a weighted mean of block means: over many replications it is the true one."""
    sizes = np.random.default_rng(1).integers(1, 12, size=40)
    block = np.repeat(np.arange(40), sizes)
    values = np.random.default_rng(0).normal(size=(len(block), 4000))
    actual = jackknife(*scalar_replicates(values, block, 40))
    assert np.mean(actual.std_error**2) == pytest.approx(1 / len(block), rel=0.02)


def test_empty_blocks_do_not_count() -> None:
    values, block = np.arange(12.0), np.repeat([0, 2, 5], 4)
    replicates, count = scalar_replicates(values, block, 8)
    np.testing.assert_allclose(
        replicates, [values.mean(), values[4:].mean(), np.delete(values, slice(4, 8)).mean(), values[:8].mean()]
    )
    np.testing.assert_array_equal(count, [4, 4, 4])


def test_one_block_has_no_error() -> None:
    actual = jackknife(np.array([[2.0], [np.nan]]), np.array([5]))
    assert actual.value == 2 and np.isnan([actual.std_error, actual.low, actual.high]).all()
    replicates, count = scalar_replicates(np.arange(3.0), np.zeros(3, int), 1)
    assert replicates[0] == 1 and np.isnan(replicates[1]) and count.tolist() == [3]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (2.0, 4.0, (0.25, 0.5)),
        (-1.0, 4.0, (0.25, np.inf)),
        (-1.0, 0.5, (2.0, np.inf)),
        (-4.0, -2.0, (-0.5, -0.25)),
        (0.0, 4.0, (0.25, np.inf)),
        (-4.0, 0.0, (-np.inf, np.inf)),
    ],
)
def test_inverse_turns_the_interval_around(low: float, high: float, expected: tuple[float, float]) -> None:
    middle = (low + high) / 2
    actual = Estimate(*map(np.array, (middle, 0.5, low, high)), 9).inverse()
    assert actual.value == 1 / middle and (actual.low, actual.high) == expected and actual.n_samples == 9
    assert actual.std_error == pytest.approx(0.5 / middle**2)


def test_the_inverse_of_zero_is_without_bounds() -> None:
    zero = np.zeros(2)
    actual = Estimate(zero, np.array([0.5, 0.0]), np.array([-1.0, 0.0]), np.array([1.0, 0.0]), 9).inverse()
    assert np.isinf(actual.value).all() and actual.std_error[0] == np.inf and np.isnan(actual.std_error[1])
    assert actual.low.tolist() == [1, -np.inf] and (actual.high == np.inf).all()


def moments_of(values: np.ndarray, groups: int = REPEATS) -> Moments:
    """Moments of values [groups, K, n, d]."""
    cells = one_cell(values.shape[2])
    return accumulated(torch.as_tensor(values).flatten(0, 1), groups, cells).moments[0]["w"].replicates()


def coverage(estimate: Estimate, truth: float) -> float:
    assert estimate.value.shape == (REPEATS,)
    covered = float(np.mean((estimate.low <= truth) & (truth <= estimate.high)))
    print(f"covers {covered:.1%} of {REPEATS}")
    return covered


def products(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Products of two normals (kurtosis 9), and their variance."""
    return rng.normal(size=shape) * rng.normal(size=shape), 1.0


def lognormals(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """exp of N(0, 0.5^2) (kurtosis 8.9), and their variance."""
    return rng.lognormal(0, 0.5, shape), (np.exp(0.25) - 1) * np.exp(0.25)


LAWS = pytest.mark.parametrize("law", [products, lognormals], ids=["product", "lognormal"])
Law = Callable[[np.random.Generator, tuple[int, ...]], tuple[np.ndarray, float]]


@LAWS
def test_coverage_of_a_mean(law: Law) -> None:
    values, _ = law(np.random.default_rng(0), (1024, REPEATS))
    truth = 0.0 if law is products else np.exp(0.125)
    covered = coverage(jackknife(*scalar_replicates(values, one_cell(1024).block, 64)), truth)
    assert LEAST <= covered <= MOST


@LAWS
@pytest.mark.parametrize("spread", [jackknife, skewed_jackknife])
def test_coverage_of_a_variance(law: Law, spread: Callable[..., Estimate]) -> None:
    values, variance = law(np.random.default_rng(1), (REPEATS, 1, 1024, 2))
    moments = moments_of(values)
    covered = coverage(spread(moments.S[:, :, 0, 0], moments.count), 2 * variance)
    assert LEAST <= covered <= MOST


@pytest.mark.parametrize("samples", [256, 1024])
def test_the_correction_for_skewness_covers_better_where_tails_are_heavy(samples: int) -> None:
    """Variance of exp of N(0, 0.8^2), kurtosis 34: the plain interval misses above, the corrected one less often."""
    values = np.random.default_rng(7).lognormal(0, 0.8, (REPEATS, 1, samples, 1))
    truth = (np.exp(0.64) - 1) * np.exp(0.64)
    moments = moments_of(values)
    plain, skewed = (coverage(f(moments.S[:, :, 0, 0], moments.count), truth) for f in (jackknife, skewed_jackknife))
    assert plain < skewed <= MOST


def test_the_skewed_interval_solves_halls_transform() -> None:
    """The ends are where the transform of (value - end) / std_error is Student's quantile; without skewness, plain."""
    count = np.full(16, 3)
    values = np.random.default_rng(0).lognormal(size=(48, 2))
    values[:, 1] = np.tile([-1.0, 1.0, 0.0], 16)  # blocks without spread or skewness
    replicates, _ = scalar_replicates(values, np.repeat(np.arange(16), 3), 16)
    actual, plain = skewed_jackknife(replicates, count), jackknife(replicates, count)
    np.testing.assert_array_equal(actual.value, plain.value)
    np.testing.assert_array_equal(actual.std_error, plain.std_error)
    means = values[:, 0].reshape(16, 3).mean(1)
    a = stats.skew(means) / 4
    for end, sign in ((actual.low[0], 1), (actual.high[0], -1)):
        t = (actual.value[0] - end) / actual.std_error[0]
        assert t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6 == pytest.approx(sign * student(means))
    assert actual.high[0] - actual.value[0] > actual.value[0] - actual.low[0]
    assert (actual.low[1], actual.high[1]) == pytest.approx((plain.low[1], plain.high[1]))


def test_a_nonnegative_quantity_has_no_negative_end() -> None:
    replicates, count = np.array([[1.0], [-0.4], [1.3], [1.2], [1.1]]), np.full(4, 4)
    assert skewed_jackknife(replicates, count).low < 0
    assert skewed_jackknife(replicates, count, nonnegative=True).low == 0


def test_two_blocks_have_no_skewness_but_an_end() -> None:
    replicates, count = np.array([[1.0], [-9.0], [11.0]]), np.full(2, 4)
    plain, actual = jackknife(replicates, count), skewed_jackknife(replicates, count, nonnegative=True)
    assert plain.low < 0 and actual.low == 0 and actual.high == pytest.approx(plain.high)
    alone = skewed_jackknife(replicates[:2], count[:1], nonnegative=True)
    assert alone.value == 1 and np.isnan(alone.low)


@pytest.mark.parametrize("spread", [jackknife, skewed_jackknife, cosine_jackknife])
def test_every_interval_has_the_level_that_is_asked_for(spread: Callable[..., Estimate]) -> None:
    """Those of 50 % and 95 % of the same replicates: on the scale on which it is symmetric, by Student's quantiles."""
    values = np.random.default_rng(2).uniform(0.2, 0.4, (32, 1)) + np.array([0.0, 0.1])
    replicates, count = scalar_replicates(values, np.arange(32) // 2, 16)
    scale = np.arctanh if spread is cosine_jackknife else np.asarray
    widths = [scale(e.high) - scale(e.low) for e in (spread(replicates, count, 0.5), spread(replicates, count))]
    expected = stats.t.ppf(0.75, 15) / stats.t.ppf(0.975, 15)
    np.testing.assert_allclose(widths[0] / widths[1], expected, rtol=0.02 if spread is skewed_jackknife else 1e-9)
    wide = spread(replicates, count)
    assert (wide.low < wide.value).all() and (wide.value < wide.high).all()
    np.testing.assert_array_equal(wide.std_error, jackknife(replicates, count).std_error)


def test_known_influences_give_the_interval_of_the_jackknife_of_single_samples() -> None:
    """But for the quantile: what the skewness adds to the kurtosis is left to Hall's transform."""
    values = np.random.default_rng(5).lognormal(size=60)
    replicates, count = scalar_replicates(values[:, None], np.arange(60), 60)
    expected, actual = skewed_jackknife(replicates, count), skewed_interval(values.mean(), 3 + values - values.mean())
    for name in ("value", "std_error"):
        assert float(getattr(actual, name)) == pytest.approx(float(getattr(expected, name)[0]))
    skew, excess = stats.skew(values), stats.kurtosis(values)
    t = stats.t.ppf(0.975, 59 / (1 + (excess - skew**2) / 2))
    ends = (actual.value - np.array([actual.low, actual.high])) / actual.std_error
    np.testing.assert_allclose(hall_transform(ends, skew / 60**0.5), [t, -t])
    assert actual.n_samples == 60 and actual.high - actual.value > actual.value - actual.low
    constant = skewed_interval(2.0, np.zeros(5))
    assert (constant.low, constant.high) == (2, 2)


def test_the_interval_of_a_gain_covers_and_is_that_of_its_reciprocal() -> None:
    """A variance over one of a hundredth, whose samples have a heavy tail, in 32 blocks of 16 samples."""
    rng = np.random.default_rng(6)
    above, below = rng.standard_normal((512, REPEATS)), 0.1 * rng.standard_t(9, (512, REPEATS))
    block = np.arange(512) // 16
    (top, count), (bottom, _) = (scalar_replicates(values**2, block, 32) for values in (above, below))
    gain, loss = ratio_jackknife(top / bottom, count), ratio_jackknife(bottom / top, count)
    np.testing.assert_allclose([gain.low, gain.high], [1 / loss.high, 1 / loss.low])
    covers = np.mean((gain.low <= 100 * 7 / 9) & (gain.high >= 100 * 7 / 9))
    print(f"covers {covers:.1%}")
    assert LEAST <= covers <= MOST
    assert np.median(gain.high - gain.low) <= 1.5 * 2 * 1.96 * gain.value.std() and (gain.low > 0).all()


def squared_mean(moments: Moments) -> SquaredMean:
    """|E G|^2 of each group's only gradient."""
    pairs = moments.products[..., 0, 0]
    return SquaredMean(moments.M[..., 0, 0], moments.S[0, ..., 0, 0], pairs, moments.sizes, moments.count)


@pytest.mark.parametrize("size", [0.0, 0.05, 0.2, 1.0], ids=["zero", "lost", "weak", "clear"])
@pytest.mark.parametrize("dim", [2, 3, 30])
def test_coverage_of_a_squared_mean(dim: int, size: float) -> None:
    """Products of normals plus a mean: zero, lost in noise, comparable with it, clear. At zero the interval may not
    claim a mean that is not there more often than it promises."""
    mean = np.full(dim, size / dim**0.5)
    values = products(np.random.default_rng(dim), (REPEATS, 1, 512, dim))[0] + mean
    estimate = squared_mean(moments_of(values)).estimate()
    assert LEAST <= coverage(estimate, float(mean @ mean)) <= (MOST if size else 1)
    assert np.mean(estimate.low > mean @ mean) <= 1 - LEAST


def test_the_noise_of_a_squared_mean() -> None:
    """2 tr(C^2) / (N (N - 1)) from the groups' products, whatever the mean; C has unequal directions."""
    scale = np.array([3.0, 2.0, 1.0, 0.5])
    rng = np.random.default_rng(0)
    for mean in (np.zeros(4), np.array([5.0, 0, -2, 1])):
        moments = moments_of(rng.normal(size=(REPEATS, 1, 480, 4)) * scale + mean)
        noise = squared_mean(moments).noise()
        assert noise.mean() == pytest.approx(2 * (scale**4).sum() / (480 * 479), rel=0.03)


def test_the_noise_is_what_an_additive_fit_leaves() -> None:
    """The twin: least squares of c + x_a + x_b to the products of five unequal groups, on 5 (5 - 3) / 2 degrees."""
    sizes, groups = np.array([3, 4, 5, 6, 7]), 5
    products = np.random.default_rng(0).normal(size=(groups, groups))
    products += products.T
    first, second = np.triu_indices(groups, 1)
    design = np.eye(groups)[first] + np.eye(groups)[second]  # spans the constant too
    pairs = products[first, second]
    left_over = pairs - design @ np.linalg.lstsq(design, pairs, rcond=None)[0]
    square = (left_over**2 * sizes[first] * sizes[second]).sum() / (groups * (groups - 3) / 2)
    actual = SquaredMean(np.zeros(9), np.array(0.0), products, sizes, np.full(8, 4)).noise()
    assert float(actual) == pytest.approx(2 * square / (25 * 24))


def test_a_squared_mean_of_few_blocks_has_an_interval() -> None:
    moments = moments_of(np.random.default_rng(0).normal(size=(4, 1, 3, 2)), groups=4)
    mean = squared_mean(moments)
    assert np.isnan(mean.noise()).all() and np.isfinite([mean.estimate().low, mean.estimate().high]).all()


def test_nothing_added_and_no_denominator_is_the_squared_mean_itself() -> None:
    """A constant factor scales all of it; an exact number added moves it."""
    mean = squared_mean(moments_of(np.random.default_rng(1).normal(size=(5, 1, 256, 3)) + 0.1, groups=5))
    plain, scaled, moved = mean.estimate(), mean.estimate(denominator=4.0), mean.estimate(added=7.0)
    for name in ("value", "std_error", "low", "high"):
        np.testing.assert_allclose(getattr(scaled, name), getattr(plain, name) / 4)
    for name in ("value", "low", "high"):
        np.testing.assert_allclose(getattr(moved, name), getattr(plain, name) + 7)


@pytest.mark.parametrize("added", [0.0, 0.02])
@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_the_ends_of_a_squared_mean_solve_the_score_equation(mean: float, added: float) -> None:
    """(estimate - x)^2 = t^2 (slope theta + noise + rest), each written out, for a ratio whose parts both vary."""
    moments = moments_of(np.random.default_rng(3).normal(size=(1, 1, 640, 3)) * [1.0, 2.0, 0.5] + mean, groups=1)
    M, S, n = moments.M[:, 0, 0, 0], moments.S[:, 0, 0, 0], 640
    square = squared_mean(moments)
    more = added * S**2 if added else 0.0
    actual = square.estimate(denominator=S[:, None], added=more if np.isscalar(more) else more[:, None])
    alone, plain = jackknife(M / S, moments.count), jackknife((M + more) / S, moments.count)
    slope = (alone.std_error * S[0]) ** 2 / (max(M[0], 0) + S[0] / n) / S[0]
    noise, rest = float(square.noise()[0]) / S[0] ** 2, max(plain.std_error**2 - alone.std_error**2, 0)
    ratios = ((M + more) / S)[1:]  # without a block each
    for end in (float(actual.low[0]), float(actual.high[0])):
        theta = end - (plain.value - alone.value)
        expected = student(ratios) ** 2 * (slope * theta + noise + rest)
        assert (plain.value - end) ** 2 == pytest.approx(expected)
    assert actual.low < actual.value < actual.high
    assert float(actual.std_error[0]) == pytest.approx(float(plain.std_error))


def test_a_squared_mean_over_nothing_is_not_a_number() -> None:
    zero, one = np.zeros((3, 1)), np.ones((3, 1))
    square = SquaredMean(zero, zero[0], np.zeros((2, 2, 1)), np.full(2, 4), np.full(2, 4))
    assert np.isnan(square.estimate(denominator=zero).value).all()
    assert np.isinf(square.estimate(denominator=zero, added=one).value).all()
    slope, noise = square.variance_law(zero[0])
    assert slope == 0 == noise, "no gradient at all has no variance"
    four = SquaredMean(zero, zero[0], np.zeros((4, 4, 1)), np.full(4, 2), np.full(2, 4))
    assert np.isnan(square.noise()) and four.noise() == 0, "four groups leave two degrees of freedom"
    some = SquaredMean(one * [[2.0], [1.0], [3.0]], one[0], np.ones((2, 2, 1)), np.full(2, 4), np.full(2, 4))
    assert np.isfinite([some.estimate().low, some.estimate().high]).all(), "two blocks are enough"
    assert some.variance_law(np.array([3.0]))[1] == 3**2 / 2, "without four groups, half the squared error"


def test_coverage_of_an_mse() -> None:
    """variance / n + |mean|^2 where either part decides, and where both do."""
    mean = np.array([0.2, -0.1, 0.05])
    moments = moments_of(products(np.random.default_rng(9), (REPEATS, 1, 1024, 3))[0] + mean)
    for n in (1, 64, 10**6):
        estimate = squared_mean(moments).estimate(added=moments.S[..., 0, 0] / n)
        assert LEAST <= coverage(estimate, 3 / n + float(mean @ mean)) <= MOST


@pytest.mark.parametrize("cosine", [0.0, 0.6, 0.9])
def test_coverage_of_a_cosine(cosine: float) -> None:
    """Of means that are clear: Fisher's scale; never beyond 1."""
    x, y = products(np.random.default_rng(3), (2, REPEATS, 512, 3))[0]
    first, second = np.array([1.0, 0, 0]), np.array([cosine, (1 - cosine**2) ** 0.5, 0])
    moments = moments_of(np.stack([x + first, y + second], 1))
    M = moments.M
    estimate = cosine_jackknife(M[..., 0, 1] / np.sqrt(M[..., 0, 0] * M[..., 1, 1]), moments.count)
    assert LEAST <= coverage(estimate, cosine) <= MOST
    assert np.max(estimate.high) < 1


def test_a_cosine_beyond_one_has_no_interval() -> None:
    replicates, count = np.array([[0.99], [0.9], [1.1], [0.97], [0.98]]), np.full(4, 4)
    actual = cosine_jackknife(replicates, count)
    assert actual.value == 0.99 and np.isnan([actual.std_error, actual.low, actual.high]).all()
    both = cosine_jackknife(np.concatenate([replicates, replicates / 2], 1), count)
    assert np.isnan(both.low).tolist() == [True, False] == np.isnan(both.std_error).tolist(), "each by itself"


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_cosine_of_one_up_to_rounding_has_no_width(sign: int) -> None:
    count = np.full(4, 4)
    for cosine in (1.0, 1 + 1e-9):
        actual = cosine_jackknife(np.full((5, 1), sign * cosine), count)
        assert [float(actual.low[0]), float(actual.high[0])] == pytest.approx([sign, sign], abs=1e-8)
        assert actual.std_error == 0
    assert np.isnan(cosine_jackknife(np.full((5, 1), sign * (1 + 3e-9)), count).low)


def test_coverage_of_a_coefficient() -> None:
    """beta* = -S_0b / S_bb of G_b = x, G_0 = -0.8 x + y, with heavy-tailed x and y."""
    rng = np.random.default_rng(4)
    control, rest = (products(rng, (REPEATS, 1024, 2))[0] for _ in range(2))
    moments = moments_of(np.stack([0.3 - 0.8 * control + rest, control], 1))
    covered = coverage(jackknife(-moments.S[:, :, 0, 1] / moments.S[:, :, 1, 1], moments.count), 0.8)
    assert LEAST <= covered <= MOST


@pytest.mark.parametrize(("mean", "dim"), [(0.25, 2), (0.005, 8)], ids=["clear", "lost_in_noise"])
def test_coverage_of_a_noise_scale(mean: float, dim: int) -> None:
    """tr Cov / |mean|^2 through its reciprocal; where the mean is lost, intervals are open above and still cover."""
    values = products(np.random.default_rng(5), (REPEATS, 1, 1024, dim))[0] + mean
    moments = moments_of(values)
    actual = squared_mean(moments).estimate(denominator=moments.S[..., 0, 0]).inverse()
    assert LEAST <= coverage(actual, 1 / mean**2) <= MOST
    unbounded = np.isinf(actual.high).mean()
    assert unbounded == 0 if mean == 0.25 else unbounded > 0.9
