"""Random numbers by counter, and the data sets drawn from them."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import (
    DATASETS,
    FiniteData,
    GaussianData,
    MixtureData,
    load_data,
)
from mfdiag.flow.data.toy import TOYS
from mfdiag.flow.seeds import normals, uniforms
from mfdiag.flow.specs import format_spec, parse_arguments

CLOSED = {"gaussian": "gaussian:3,0.5,2", "mixture": "mixture:3,4"}
SPECS = [CLOSED.get(name, name) for name in DATASETS]


@given(
    index=st.lists(st.integers(0, 2**40), min_size=1, max_size=30),
    width=st.integers(1, 9),
    cut=st.integers(1, 30),
)
def test_uniforms_depend_on_seed_stream_and_index_alone(index: list[int], width: int, cut: int) -> None:
    together = uniforms(7, "data", np.array(index), width)
    apart = [uniforms(7, "data", np.array(index[i : i + cut]), width) for i in range(0, len(index), cut)]
    backwards = uniforms(7, "data", np.array(index[::-1]), width)[::-1]
    np.testing.assert_array_equal(together, np.concatenate(apart))
    np.testing.assert_array_equal(together, backwards)


@pytest.mark.parametrize("width", [1, 4, 5])
def test_uniforms_are_uniform_and_independent(width: int) -> None:
    u = uniforms(0, "noise", np.arange(20_000), width)
    assert u.min() > 0 and u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03
    assert stats.kstest(normals(0, "noise", np.arange(20_000), width).ravel(), "norm").pvalue > 1e-3


def test_seeds_and_streams_differ() -> None:
    draws = [uniforms(seed, stream, np.arange(5), 3) for seed in (0, 1) for stream in ("data", "noise")]
    assert len({draw.tobytes() for draw in draws}) == 4


@pytest.mark.parametrize("spec", SPECS)
def test_sample_shapes_determinism_and_chunks(spec: str) -> None:
    data, again = load_data(spec), load_data(spec)
    u = uniforms(3, "data", np.arange(40), data.width)
    x, labels = data.sample(u)
    assert data.name == spec
    assert x.shape == (40, *data.shape) and x.dtype == np.float64 and np.isfinite(x).all()
    assert (labels is None) == (data.num_classes == 0)
    np.testing.assert_array_equal(x, again.sample(u)[0])
    np.testing.assert_array_equal(x, np.concatenate([data.sample(u[i : i + 7])[0] for i in range(0, 40, 7)]))


@pytest.mark.parametrize("name", TOYS)
def test_toy_sets_are_standardised(name: str) -> None:
    data = load_data(name)
    assert isinstance(data, FiniteData) and data.points.shape == (100_000, 2)
    np.testing.assert_allclose(data.points.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(np.mean(data.points**2), 1, rtol=1e-12)
    assert len(np.unique(data.points, axis=0)) == 100_000


def test_toy_geometry() -> None:
    ring = load_data("eight_gaussians")
    moons = load_data("checkerboard")
    assert isinstance(ring, FiniteData) and isinstance(moons, FiniteData)
    angle = np.angle(ring.points @ [1, 1j])
    nearest = np.round(angle / (np.pi / 4)) % 8
    np.testing.assert_allclose(np.bincount(nearest.astype(int)) / 100_000, 1 / 8, atol=0.01)
    squares, counts = np.unique(np.floor(moons.points / np.ptp(moons.points) * 4), axis=0, return_counts=True)
    filled = squares[counts > 1000]
    assert len(filled) == 8 and len(set(filled.sum(axis=1) % 2)) == 1


def test_digits() -> None:
    data = load_data("digits")
    assert isinstance(data, FiniteData) and data.labels is not None
    assert data.points.shape == (1797, 1, 8, 8) and data.num_classes == 10
    assert (data.points.min(), data.points.max()) == (-1, 1)
    x, labels = data.sample(np.array([[1e-12], [1 - 1e-12]]))
    np.testing.assert_array_equal(x, data.points[[0, -1]])
    np.testing.assert_array_equal(labels, data.labels[[0, -1]])


@pytest.mark.parametrize("count", [1, 3, 100_000])
def test_finite_index_never_leaves_the_points(count: int) -> None:
    data = FiniteData("f", np.arange(count, dtype=np.float32)[:, None])
    np.testing.assert_array_equal(data.sample(np.array([[2.0**-54], [1 - 2.0**-53]]))[0][:, 0], [0, count - 1])


def test_gaussian_moments() -> None:
    data = GaussianData(4, -1.0, 0.5)
    x = data.sample(uniforms(0, "data", np.arange(20_000), 4))[0]
    assert stats.kstest(x.ravel(), stats.norm(-1, 0.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("dim", "components"), [(1, 1), (2, 3), (6, 5)])
def test_mixture_moments(dim: int, components: int) -> None:
    data = MixtureData(dim, components)
    mean = data.weights @ data.means
    covariance = np.einsum("k,kij->ij", data.weights, data.covariances) + np.cov(data.means.T, bias=True)
    np.testing.assert_allclose(data.weights, 1 / components)
    np.testing.assert_allclose(mean, 0, atol=1e-12)
    np.testing.assert_allclose(np.trace(covariance), dim)
    assert np.linalg.cond(data.covariances).max() <= 6 * (1 + 1e-9)
    x = data.sample(uniforms(0, "data", np.arange(50_000), data.width))[0]
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(np.cov(x.T), np.squeeze(covariance), atol=0.05)


def test_mixture_is_dense() -> None:
    covariances = MixtureData(4, 2).covariances
    assert np.abs(covariances).min() > 1e-4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("swis_roll", "Did you mean 'swiss_roll'"),
        ("gausian:2,0.5,1", "Did you mean 'gaussian'"),
        ("", "Unknown data set"),
        ("digits:3", "takes no arguments"),
        ("gaussian", "no value for d, mean, std"),
        ("gaussian:2,0", "no value for std"),
        ("gaussian:2,0,1,5", "expected gaussian:d,mean,std"),
        ("gaussian:2,0,0", "std must be above 0"),
        ("gaussian:2,0,-1", "std must be above 0"),
        ("gaussian:0,0,1", "d must be a whole number"),
        ("gaussian:2.5,0,1", "d must be a whole number"),
        ("gaussian:two,0,1", "got 'two'"),
        ("gaussian:2,nan,1", "mean must be a finite number"),
        ("gaussian:2,0,inf", "std must be a finite number"),
        ("gaussian:2,,1", "mean must be a finite number"),
        ("mixture:2", "no value for k"),
        ("mixture:2,0", "k must be a whole number"),
        ("mixture:100000,10", "at most 2\\^25"),
    ],
)
def test_bad_specs(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_data(spec)


def test_arguments_by_position_and_keyword() -> None:
    parameters = {"a": None, "b": 2.0}
    assert parse_arguments("n:1", parameters) == {"a": 1, "b": 2}
    assert parse_arguments("n:1, b=3", parameters) == parse_arguments("n:b=3,a=1", parameters) == {"a": 1, "b": 3}
    for bad in ("n:a=1,2", "n:1,a=2", "n:1,c=2", "n:1,2,3", "n:b=1"):
        with pytest.raises(InputError):
            parse_arguments(bad, parameters)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=3))
def test_format_spec_reads_back(values: list[float]) -> None:
    names = dict.fromkeys("abc"[: len(values)])
    assert list(parse_arguments(format_spec("n", *values), names).values()) == values


def test_names_need_no_heavy_import() -> None:
    code = "import sys, mfdiag.flow.data.datasets; print(sorted({'torch', 'sklearn', 'pandas'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_patches_are_squares_of_the_photographs() -> None:
    from sklearn.datasets import load_sample_images

    points = load_data("patches").points
    assert points.shape == (33_390, 3, 8, 8) and points.dtype == np.float32
    flower = load_sample_images().images[1]
    per_photograph, per_row = 105 * 159, 159
    square = flower[8:16, 20:28].transpose(2, 0, 1)  # third row and sixth column of the second photograph
    np.testing.assert_allclose(points[per_photograph + 2 * per_row + 5], square / 127.5 - 1, atol=1e-6)
