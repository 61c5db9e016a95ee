"""Preparing once and measuring many: what decides the numbers, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import randomised
from torch import Tensor, nn

import mfdiag
from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import FiniteData, GaussianData
from mfdiag.measures.run.quality_api import Prepared
from mfdiag.models.networks.gaussian import GaussianAverageVelocity
from mfdiag.models.networks.mlp import MLP
from mfdiag.quality.metrics import default_metrics

QUICK: dict[str, Any] = {"samples": 128, "subsample": 16}


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    points = np.random.default_rng(0).normal(size=(600, 2))
    return mfdiag.prepare_quality(points, **QUICK)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return randomised(MLP(2, hidden=8, depth=1))


def values(frame: pd.DataFrame) -> np.ndarray:
    return frame[["value", "std_error", "ci_low", "ci_high"]].to_numpy()


def test_a_row_for_each_metric_and_number_of_steps(prepared: Prepared, model: nn.Module) -> None:
    frame = prepared.measure(model, nfe=[1, 3], run="a", checkpoint="b", step=7, weights="ema")
    assert (
        len(frame) == 2 * len(default_metrics(held_out=False))
        and set(frame["nfe"]) == {1, 3}
        and set(frame["status"]) == {"ok"}
    )
    assert set(frame["metric"]) == set(default_metrics(held_out=False)) and set(frame["quantity"]) == {"value"}
    assert (frame["ci_low"] <= frame["value"]).all() and (frame["value"] <= frame["ci_high"] + 1e-12).all()
    columns = frame[["run", "checkpoint", "step", "weights", "dataset", "seed"]].drop_duplicates()
    assert columns.values.tolist() == [["a", "b", 7, "ema", "array", 0]]
    assert frame[["features", "times", "proxy", "checkpoint_sha256"]].isna().all(axis=None)


def test_a_model_and_the_function_it_is(prepared: Prepared, model: nn.Module) -> None:
    by_steps = prepared.measure(model, nfe=[2])
    by_function = prepared.measure(lambda noise: mfdiag.sample(model, noise, 2))
    assert by_function["nfe"].isna().all()
    np.testing.assert_array_equal(values(by_steps), values(by_function))


def test_measuring_leaves_no_trace(prepared: Prepared, model: nn.Module) -> None:
    model.train()
    first = prepared.measure(model)
    prepared.measure(lambda noise: noise + 5)
    np.testing.assert_array_equal(values(first), values(prepared.measure(model)))
    assert model.training and all(p.grad is None for p in model.parameters())


def test_one_call_is_the_same_as_prepared(prepared: Prepared, model: nn.Module) -> None:
    again = mfdiag.measure_quality(model, np.random.default_rng(0).normal(size=(600, 2)), nfe=[1], **QUICK)
    np.testing.assert_array_equal(values(again), values(mfdiag.measure_quality(model, prepared, nfe=[1])))


def test_the_size_of_chunks_changes_nothing(model: nn.Module) -> None:
    frames = [
        mfdiag.measure_quality(model, "gaussian:2,0,1", nfe=[2], chunk=chunk, dtype=torch.float64, **QUICK)
        for chunk in (None, 50)
    ]
    np.testing.assert_allclose(values(frames[0]), values(frames[1]), rtol=1e-9, atol=1e-12)


def test_the_seed_draws_other_samples(model: nn.Module) -> None:
    frames = [mfdiag.measure_quality(model, "gaussian:2,0,1", nfe=[1], seed=seed, **QUICK) for seed in (0, 1)]
    assert (frames[0]["value"] != frames[1]["value"]).all()


def test_more_samples_begin_with_the_fewer() -> None:
    """Noise j of a replicate does not depend on how many are asked for."""
    seen: list[tuple[float, int]] = []

    def model(noise: Tensor) -> Tensor:
        seen.append(noise)
        return noise

    for samples in (64, 128):
        mfdiag.measure_quality(model, "gaussian:2,0,1", metrics=["frechet_distance"], samples=samples)
    few, many = seen[:32], seen[32:]
    assert all(torch.equal(a, b[:2]) for a, b in zip(few, many, strict=True))


def test_the_exact_model_is_as_good_as_its_data() -> None:
    data = GaussianData(2, 0.5, 0.7)
    exact = GaussianAverageVelocity(0.5, 0.7)
    frame = mfdiag.measure_quality(exact, data, nfe=[3], samples=8192, subsample=64).set_index("metric")
    assert frame.value["sliced_wasserstein"] < 4e-3 and frame.value["frechet_distance"] < 1e-4
    for metric in ("energy_distance", "mmd2", "density"):
        assert abs(frame.value[metric] - (metric == "density")) < 4 * frame.std_error[metric]


def test_all_points_of_a_finite_set_are_the_reference() -> None:
    """A model that returns the points themselves is no distance away, whatever the seed."""
    points = np.random.default_rng(0).normal(size=(64, 2))

    class Points:
        left = 0

        def __call__(self, noise: Tensor) -> Tensor:
            self.left += len(noise)
            return torch.as_tensor(points[self.left - len(noise) : self.left]).to(noise)

    chosen = ["sliced_wasserstein", "frechet_distance"]
    for seed in (0, 1):
        frame = mfdiag.measure_quality(Points(), points, metrics=chosen, samples=64, seed=seed)
        np.testing.assert_allclose(frame["value"], 0, atol=1e-6)


def test_features_are_what_is_compared(model: nn.Module) -> None:
    points = np.random.default_rng(0).normal(size=(300, 2))

    def radius(x: Tensor) -> Tensor:
        return x.norm(dim=1, keepdim=True)

    plain = mfdiag.measure_quality(lambda z: z, points, features=radius, features_name="radius", **QUICK)
    turned = mfdiag.measure_quality(lambda z: z.flip(1), points, features=radius, **QUICK)
    assert set(plain["features"]) == {"radius"} and set(turned["features"]) == {turned["features"].iloc[0]}
    np.testing.assert_allclose(values(plain), values(turned), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="--features must map"):
        mfdiag.prepare_quality(points, features=lambda x: x.mean(), **QUICK)


def test_labels_come_with_their_noise_and_follow_the_data() -> None:
    data = FiniteData("two", np.repeat([[-3.0], [3.0]], [100, 300], axis=0), np.repeat([0, 1], [100, 300]))
    seen: list[Tensor] = []

    class Labelled(nn.Module):
        num_classes = 2

        def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
            seen.append((float(y.sum()), len(y)))
            return x - (6.0 * y[:, None] - 3)  # lands on the label's point in one step

    frame = mfdiag.measure_quality(Labelled(), data, nfe=[1], metrics=["sliced_wasserstein", "energy_distance"])
    total, count = map(sum, zip(*seen, strict=True))
    assert abs(total / count - 0.75) < 0.01
    assert (frame["value"].abs() < 0.05).all()


def test_the_source_is_where_sampling_starts() -> None:
    """Noise of a source with scale s, divided by s, is as good as standard noise."""
    data = FiniteData("wide", 4 * np.random.default_rng(0).normal(size=(5000, 2)))
    chosen: dict[str, Any] = {"metrics": ["sliced_wasserstein"], "samples": 4096}
    plain = mfdiag.measure_quality(lambda z: z, data, **chosen)["value"].item()
    aligned = mfdiag.measure_quality(lambda z: z, data, source="norm_aligned", **chosen)["value"].item()
    assert aligned < 0.1 < plain


def test_samples_that_are_not_finite_have_no_value(prepared: Prepared) -> None:
    frame = prepared.measure(lambda noise: torch.where(noise > 2, torch.nan, noise))
    assert set(frame["status"]) == {"nonfinite"} and frame["value"].isna().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 63}, "--samples must be at least 64"),
        ({"subsample": 7}, "--subsample must be at least 8"),
        ({"metrics": ["fid"]}, "Unknown metric 'fid'"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"source": "gausian"}, "Unknown source 'gausian'"),
    ],
)
def test_impossible_requests(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mfdiag.prepare_quality("gaussian:2,0,1", **options)


def test_models_of_another_shape(prepared: Prepared) -> None:
    with pytest.raises(InputError, match=r"maps noise of shape \[4, 2\] .* returned \[4, 1\]"):
        prepared.measure(lambda noise: noise[:, :1])
    with pytest.raises(InputError, match=r"maps noise of shape \[4, 2\] .* failed: mat1 and mat2 shapes"):
        prepared.measure(MLP(3))
    with pytest.raises(InputError, match="at least 8 points of data, but array has 7"):
        mfdiag.prepare_quality(np.zeros((7, 2)))
    with pytest.raises(InputError, match="--nfe takes numbers of steps of at least 1"):
        prepared.measure(MLP(2), nfe=[0])
