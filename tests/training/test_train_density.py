"""Training under a density of (r, t): weights, the expected gradient, files found from the specification."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from specs import spec_of
from torch.func import grad, vmap

from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import load_data
from mfdiag.flow.density import cell_shares, density_cells
from mfdiag.flow.times import parse_times
from mfdiag.flow.weighting import Weighting
from mfdiag.training.draws import BatchFeed, BatchStream, SamplingKey
from mfdiag.training.ensemble import ensemble_key
from mfdiag.training.grid import load_grid
from mfdiag.training.loss import LossCoefficients, TrainBatch, training_loss
from mfdiag.training.trainer import initial_module, train

BASE = "uniform:r_ne_t=0.7"


@pytest.fixture
def density(tmp_path: Path) -> str:
    """BASE with the shares of its cells turned around: `density:FILE`."""
    p = cell_shares(parse_times(BASE), (2, 2))
    cells = [
        {"r": [float(a), float(b)], "t": [float(c), float(d)], "trained": float(own), "drawn": float(new)}
        for (a, b, c, d), own, new in zip(density_cells((2, 2)), p, p[::-1], strict=True)
    ]
    (tmp_path / "times.yaml").write_text(yaml.safe_dump({"times": BASE, "bins": [2, 2], "cells": cells}))
    return f"density:{tmp_path / 'times.yaml'}"


def test_batches_have_the_weights(density: str) -> None:
    spec = spec_of(times=density)
    block = BatchStream(SamplingKey.of(spec), load_data(spec.data), 16).block(0)
    times = parse_times(density)
    assert block.weight is not None
    expected = times.weight(block.r.double().numpy(), block.t.double().numpy())
    np.testing.assert_allclose(block.weight.numpy(), expected, rtol=1e-6)
    assert block.weight.mean() == pytest.approx(1, abs=4 * float(block.weight.std()) / len(block.weight) ** 0.5)


def test_expected_gradient_is_that_of_the_trained_times(density: str) -> None:
    """Of the whole loss, anchor included: means over 3,200 samples agree within the error of their difference."""
    loss = {"beta": 0.5, "anchor": {"lambda": 0.5, "delta_max": 0.1}}
    means, errors = [], []
    for times in (BASE, density):
        spec = spec_of(times=times, loss=loss)
        module = initial_module(spec)
        params = {name: p.detach() for name, p in module.named_parameters()}
        batch = BatchStream(SamplingKey.of(spec), load_data(spec.data), 16).block(0)

        def one(*values: torch.Tensor | None, module: torch.nn.Module = module, params: dict = params) -> dict:
            alone = TrainBatch(*(None if value is None else value[None] for value in values))
            point = LossCoefficients(0.5, None, 0.5)
            return grad(lambda given: training_loss(module, given, params, alone, point, Weighting()))(params)

        per_sample = vmap(one, in_dims=tuple(None if value is None else 0 for value in batch))(*batch)
        flat = torch.cat([values.flatten(1) for values in per_sample.values()], 1).double()
        means.append(flat.mean(0))
        errors.append(flat.var(0) / len(flat))
    assert ((means[0] - means[1]).abs() <= 4 * (errors[0] + errors[1]).sqrt()).all()
    assert (means[0].abs() > 4 * errors[0].sqrt()).sum() > 5, "means that can be told from zero"


def test_models_with_and_without_weights_keep_apart(density: str) -> None:
    plain, other, weighted = spec_of(), spec_of(times=BASE), spec_of(times=density)
    assert ensemble_key(plain) == ensemble_key(other) != ensemble_key(weighted)
    feed = BatchFeed([weighted, spec_of(times=density, seed=9)], [load_data(plain.data)] * 2, "cpu")
    weight = feed.batch(0).weight
    feed.close()
    assert weight is not None and weight.shape == (2, 16) and not torch.equal(weight[0], weight[1])


def test_a_specification_names_the_file_from_its_own_folder(
    density: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = yaml.safe_dump(
        {
            "axes": {"times": [BASE, "density:times.yaml"]},
            "data": "gaussian:2,0.5,0.3",
            "model": {"name": "mlp", "arguments": {"dim": 2, "hidden": 8, "depth": 1}},
            "batch_size": 16,
            "steps": 6,
            "measure_every": 6,
            "measure_samples": 128,
        }
    )
    (tmp_path / "spec.yaml").write_text(text)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    cells = load_grid("../spec.yaml")
    assert [cell.spec.times for cell in cells] == [BASE, "density:../times.yaml"]
    trained = train(cells, tmp_path / "out", say=lambda text: None)
    assert all(item.checkpoint is not None and item.checkpoint.is_file() for item in trained)
    (tmp_path / "spec.yaml").write_text(text.replace("times.yaml", "absent.yaml"))
    with pytest.raises(InputError, match=r"line 2, axes.times: Expected a density of \(r, t\)"):
        load_grid("../spec.yaml")
