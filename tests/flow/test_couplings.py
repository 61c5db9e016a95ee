"""Couplings: optimality, marginals, weights, and that a sample depends on its number or group alone."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scipy import stats
from torch import Tensor

from mfdiag.errors import InputError
from mfdiag.flow.couplings import (
    COUPLINGS,
    INDEPENDENT,
    Coupling,
    Gibbs,
    Marginals,
    MinibatchOT,
    Reflow,
    parse_coupling,
)
from mfdiag.flow.data.datasets import Data, FiniteData, load_data
from mfdiag.flow.sources import GaussianSource, parse_source
from mfdiag.models.networks.gaussian import GaussianAverageVelocity

N = 20_000
PLAIN = load_data("gaussian:2,0.5,2")
LABELLED = FiniteData("labelled", np.arange(24.0).reshape(12, 2), np.arange(12) % 3)
MODEL = GaussianAverageVelocity(0.5, 2.0, (2,)).double()


def velocity(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    return MODEL(x, t, t).detach()


def marginals_of(data: Data, seed: int = 0) -> Marginals:
    return Marginals(data, GaussianSource(data.shape), seed)


def pairs_file(folder: Path, **changes: np.ndarray | None) -> Path:
    rng = np.random.default_rng(0)
    x0 = rng.normal(size=(50, 2))
    arrays = {"x0": x0, "x1": x0 + 1, "labels": np.arange(50) % 3} | changes
    np.savez(folder / "pairs.npz", **{name: array for name, array in arrays.items() if array is not None})
    return folder / "pairs.npz"


@pytest.fixture(scope="module")
def couplings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Coupling]:
    source = GaussianSource((2,))
    specs = ["independent", "minibatch_ot:4", "gibbs:3", "reflow:teacher,8", "reversed"]
    by_spec = {spec: parse_coupling(spec, LABELLED, source, lambda _: velocity) for spec in specs}
    file = pairs_file(tmp_path_factory.mktemp("pairs"))
    return by_spec | {"pairs": parse_coupling(f"pairs:{file}", LABELLED, source, lambda _: velocity)}


NAMES = pytest.mark.parametrize(
    "name", ["independent", "minibatch_ot:4", "gibbs:3", "reflow:teacher,8", "reversed", "pairs"]
)


@NAMES
@settings(max_examples=15, deadline=None)
@given(index=st.lists(st.integers(0, 10**5), min_size=1, max_size=7), seed=st.integers(0, 2**31))
def test_a_sample_depends_on_seed_and_number_alone(
    couplings: dict[str, Coupling], name: str, index: list[int], seed: int
) -> None:
    marginals, coupling = marginals_of(LABELLED, seed), couplings[name]
    together = coupling.pairs(marginals, np.array(index))
    np.testing.assert_array_equal(coupling.labels(marginals, np.array(index)), together.labels)
    for place, number in enumerate(index):
        alone = coupling.pairs(marginals, np.array([number]))
        for one, all_ in zip(alone, together, strict=True):
            assert (one is None) == (all_ is None)
            if one is not None:
                np.testing.assert_allclose(one[0], all_[place], rtol=1e-12, atol=1e-12)


@NAMES
def test_data_without_labels_have_none(couplings: dict[str, Coupling], name: str) -> None:
    if name != "pairs":
        pairs = couplings[name].pairs(marginals_of(PLAIN), np.arange(4))
        assert pairs.labels is None and couplings[name].labels(marginals_of(PLAIN), np.arange(4)) is None
    assert couplings[name].dependent == (name != "independent")


def test_reversed_pairs_are_the_independent_ones_with_the_labels_of_their_data() -> None:
    free, pairs = (
        parse_coupling(c, LABELLED, GaussianSource((2,)), lambda _: velocity) for c in ("independent", "reversed")
    )
    one, other = (coupling.pairs(marginals_of(LABELLED), np.arange(9)) for coupling in (free, pairs))
    np.testing.assert_array_equal(one.x0, other.x1)
    np.testing.assert_array_equal(one.x1, other.x0)
    np.testing.assert_array_equal(LABELLED.points[:, 0] // 2 % 3, LABELLED.labels)
    np.testing.assert_array_equal(other.x1[:, 0] // 2 % 3, other.labels)


# -- optimal transport ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_transport_is_optimal_among_all_permutations(seed: int) -> None:
    index = np.arange(10, 15)
    free, pairs = (c.pairs(marginals_of(PLAIN, seed), index) for c in (INDEPENDENT, MinibatchOT(5)))
    np.testing.assert_array_equal(pairs.x0, free.x0)
    costs = [((free.x0 - free.x1[list(order)]) ** 2).sum() for order in permutations(range(5))]
    assert ((pairs.x0 - pairs.x1) ** 2).sum() == pytest.approx(min(costs), rel=1e-12)


def test_transport_keeps_the_noise_of_each_group() -> None:
    free, pairs = (c.pairs(marginals_of(PLAIN), np.arange(60)) for c in (INDEPENDENT, MinibatchOT(6)))
    for group in range(10):
        rows = slice(6 * group, 6 * group + 6)
        np.testing.assert_array_equal(np.sort(pairs.x1[rows], axis=0), np.sort(free.x1[rows], axis=0))
    assert not np.array_equal(pairs.x1, free.x1)


def test_transport_on_the_line_is_monotone() -> None:
    pairs = MinibatchOT(16).pairs(marginals_of(load_data("gaussian:1,0,1")), np.arange(160))
    for group in range(10):
        x0, x1 = (side[16 * group : 16 * group + 16, 0] for side in (pairs.x0, pairs.x1))
        np.testing.assert_array_equal(np.argsort(x0), np.argsort(x1))


def test_groups_of_one_are_independent() -> None:
    for one, other in zip(
        *(c.pairs(marginals_of(PLAIN), np.arange(9)) for c in (INDEPENDENT, MinibatchOT(1))), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_transport_keeps_labels_with_their_data_and_refuses_sources_that_know_them() -> None:
    free, pairs = (c.pairs(marginals_of(LABELLED), np.array([7, 1, 30])) for c in (INDEPENDENT, MinibatchOT(4)))
    np.testing.assert_array_equal(pairs.x0, free.x0)
    np.testing.assert_array_equal(pairs.labels, free.labels)
    source = parse_source("mixed", LABELLED)
    with pytest.raises(InputError, match="does not depend on the label, but mixed"):
        parse_coupling("minibatch_ot:4", LABELLED, source, lambda _: velocity)


# -- reflow and files -----------------------------------------------------------------------------------------------


def test_reflow_is_the_flow_of_the_teacher() -> None:
    """Of N(m, s^2 I) on the linear path the flow map is x_0 = m + s x_1."""
    pairs = Reflow("reflow", velocity, 64).pairs(marginals_of(PLAIN), np.arange(50))
    np.testing.assert_allclose(pairs.x0, 0.5 + 2 * pairs.x1, atol=1e-6)
    np.testing.assert_array_equal(pairs.x1, INDEPENDENT.pairs(marginals_of(PLAIN), np.arange(50)).x1)


def test_reflow_is_of_order_four() -> None:
    errors = []
    for steps in (4, 8, 16):
        pairs = Reflow("reflow", velocity, steps).pairs(marginals_of(PLAIN), np.arange(50))
        errors.append(np.abs(pairs.x0 - 0.5 - 2 * pairs.x1).max())
    assert errors[0] / errors[1] > 10 and errors[1] / errors[2] > 10


def test_reflow_keeps_both_marginals() -> None:
    pairs = Reflow("reflow", velocity, 16).pairs(marginals_of(PLAIN), np.arange(N // 4))
    assert stats.kstest((pairs.x0.ravel() - 0.5) / 2, "norm").pvalue > 1e-3
    assert stats.kstest(pairs.x1.ravel(), "norm").pvalue > 1e-3


def test_reflow_tells_the_teacher_time_and_labels() -> None:
    def time_times_label(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None and t.shape == (len(x),)
        return 2 * t[:, None] * labels[:, None].double() + 0 * x  # x_0 = x_1 - label

    pairs = Reflow("reflow", time_times_label, 4).pairs(marginals_of(LABELLED), np.arange(20))
    assert pairs.labels is not None
    np.testing.assert_allclose(pairs.x0, pairs.x1 - pairs.labels[:, None], atol=1e-12)


def test_reflow_refuses_a_teacher_of_another_shape() -> None:
    with pytest.raises(InputError, match=r"samples of shape \[2\], but it returned shape \[1\]"):
        Reflow("reflow", lambda x, t, labels: x[:, :1], 4).pairs(marginals_of(PLAIN), np.arange(5))


def test_file_pairs_stay_together(tmp_path: Path) -> None:
    file = pairs_file(tmp_path)
    coupling = parse_coupling(f"pairs:{file}", LABELLED, GaussianSource((2,)), lambda _: velocity)
    drawn = coupling.pairs(marginals_of(LABELLED), np.arange(5_000))
    stored = np.load(file)
    rows = (drawn.x0[:, None] == stored["x0"][None]).all(2).argmax(1)
    np.testing.assert_array_equal(drawn.x0, stored["x0"][rows])
    np.testing.assert_array_equal(drawn.x1, stored["x1"][rows])
    np.testing.assert_array_equal(drawn.labels, stored["labels"][rows])
    assert stats.chisquare(np.bincount(rows, minlength=50)).pvalue > 1e-3


def test_pairs_without_labels_and_from_safetensors(tmp_path: Path) -> None:
    x0 = np.ones((3, 2), np.float32)
    save_file({"x0": x0, "x1": -x0, "y": np.arange(3)}, tmp_path / "pairs.safetensors")
    coupling = parse_coupling(
        f"pairs:{tmp_path / 'pairs.safetensors'}", PLAIN, GaussianSource((2,)), lambda _: velocity
    )
    drawn = coupling.pairs(marginals_of(PLAIN), np.arange(4))
    assert drawn.labels is None and drawn.x0.dtype == np.float64 and (drawn.x1 == -1).all()


# -- Gibbs weights --------------------------------------------------------------------------------------------------


def test_gibbs_weights_are_the_kernel_over_its_mean() -> None:
    coupling = Gibbs.fit(3.0, PLAIN, GaussianSource((2,)))
    free, pairs = (c.pairs(marginals_of(PLAIN), np.arange(N)) for c in (INDEPENDENT, coupling))
    np.testing.assert_array_equal(pairs.x0, free.x0)
    np.testing.assert_array_equal(pairs.x1, free.x1)
    assert pairs.weight is not None
    kernel = np.array([np.exp(-sum((a - b) ** 2) / 3) for a, b in zip(free.x0, free.x1, strict=True)])
    np.testing.assert_allclose(pairs.weight / pairs.weight[0], kernel / kernel[0], rtol=1e-10)
    assert abs(pairs.weight.mean() - 1) <= 4 * pairs.weight.std() / N**0.5


def test_gibbs_weights_tilt_gaussians_as_the_closed_form_says() -> None:
    """The density ~ N(x_0; m, s^2) N(x_1; 0, 1) exp(-(x_0 - x_1)^2 / eps) is Gaussian: add up its precisions."""
    m, s, eps = 0.5, 2.0, 3.0
    coupling = Gibbs.fit(eps, load_data(f"gaussian:1,{m},{s}"), GaussianSource((1,)))
    pairs = coupling.pairs(marginals_of(load_data(f"gaussian:1,{m},{s}")), np.arange(N))
    assert pairs.weight is not None
    covariance = np.linalg.inv([[1 / s**2 + 2 / eps, -2 / eps], [-2 / eps, 1 + 2 / eps]])
    mean = covariance @ [m / s**2, 0]
    ends = np.concatenate([pairs.x0, pairs.x1], axis=1)
    weight = pairs.weight / pairs.weight.mean()
    for values, truth in [
        *((ends[:, j], mean[j]) for j in (0, 1)),
        *((ends[:, j] * ends[:, k], covariance[j, k] + mean[j] * mean[k]) for j in (0, 1) for k in (0, 1)),
    ]:
        assert abs(np.mean(weight * values) - truth) <= 4 * np.std(weight * (values - truth)) / N**0.5


def test_gibbs_weights_of_many_coordinates_do_not_vanish() -> None:
    """exp(-|x_0 - x_1|^2 / eps) itself is zero in float64 here."""
    data = load_data("gaussian:500,0,1")
    pairs = Gibbs.fit(1.0, data, GaussianSource((500,))).pairs(marginals_of(data), np.arange(20))
    assert pairs.weight is not None and np.isfinite(pairs.weight).all() and pairs.weight.max() > 0


# -- specifications -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("independant", "Did you mean 'independent'"),
        ("independent:2", "takes no arguments"),
        ("minibatch_ot", "no value for k"),
        ("minibatch_ot:0", "whole number of at least 1"),
        ("gibbs", "no value for eps"),
        ("gibbs:0", "eps must be above 0"),
        ("reflow", "expected the teacher's checkpoint"),
        ("reflow:teacher,0", "n must be a whole number"),
        ("reflow:teacher,m=3", "unknown argument 'm'"),
        ("pairs", "expected a file with arrays x0 and x1"),
        ("pairs:nowhere.npz", "No file at nowhere.npz"),
        ("pairs:points.csv", "expected .npz, .safetensors or .json, got '.csv'"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_coupling(spec, PLAIN, GaussianSource((2,)), lambda _: velocity)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x1": None}, "expected arrays named x0 and x1, but the file has labels, x0"),
        ({"x1": np.zeros((3, 2))}, r"of one shape, got \[50, 2\] and \[3, 2\]"),
        ({"x0": np.zeros((50, 3)), "x1": np.zeros((50, 3))}, r"pairs of shape \[2\] as in labelled, but .* has \[3\]"),
        ({"labels": None}, "Expected labels 0 to 2 in .*, as in labelled, but it has no labels"),
        ({"labels": np.full(50, 7)}, "but it has labels up to 7"),
        ({"labels": np.zeros(3)}, "expected one label for each of 50 samples"),
        ({"x0": np.full((50, 2), np.nan)}, "NaN or infinite"),
    ],
)
def test_bad_files(tmp_path: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_coupling(f"pairs:{pairs_file(tmp_path, **changes)}", LABELLED, GaussianSource((2,)), lambda _: velocity)


def test_every_name_is_known(couplings: dict[str, Coupling]) -> None:
    assert {coupling.name.partition(":")[0] for coupling in couplings.values()} == set(COUPLINGS)
    for name in ("minibatch_ot:4", "gibbs:3"):
        assert couplings[name].name == name
