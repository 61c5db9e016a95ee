"""Densities as files: what the table says is what the sampler draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mfdiag import measure
from mfdiag.flow.density import DensityTimes
from mfdiag.flow.times import parse_times
from mfdiag.models.networks.mlp import MLP
from mfdiag.tables.densities import write_densities
from mfdiag.tables.store import read_table, write_table


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    options = {"times": "uniform:r_ne_t=0.75", "samples": 640, "bins": (2, 3)}
    return measure(MLP(2, 4, 1), "gaussian:2,0,1", tables=["times"], **options)["times"]  # type: ignore[arg-type]


def test_the_file_is_the_density_of_the_table(frame: pd.DataFrame, tmp_path: Path) -> None:
    write_table("times", frame, tmp_path)
    (path,) = write_densities(read_table("times", tmp_path), tmp_path)
    assert path == tmp_path / "times-model.yaml" and "`times: density:times-model.yaml`" in path.read_text()
    times = parse_times(f"density:{path}")
    assert isinstance(times, DensityTimes) and times.base.name == "uniform:r_ne_t=0.75" and times.bins == (2, 3)
    for quantity, shares in (("trained_share", times.trained), ("drawn_share", times.drawn)):
        np.testing.assert_array_equal(shares, frame[frame["quantity"] == quantity]["value"])
    cells = frame[frame["quantity"] == "drawn_share"].sample(frac=1, random_state=0)
    others = frame[frame["quantity"] != "drawn_share"]
    before = path.read_bytes()
    write_densities(pd.concat([cells, others]), tmp_path)
    assert path.read_bytes() == before, "the order of rows does not count"


def test_names(frame: pd.DataFrame, tmp_path: Path) -> None:
    named = ["runs/a/model.safetensors", "runs/b/model.safetensors", "x/step_1.pt", "y/step_1.pt", "bundled:sets"]
    several = pd.concat([frame.assign(checkpoint=name, checkpoint_sha256=name) for name in named])
    paths = write_densities(several, tmp_path)
    stems = ["times-a", "times-b", "times-step_1", "times-step_1-2", "times-bundled_sets"]
    assert [path.name for path in paths] == [f"{stem}.yaml" for stem in stems]
    assert all(path.is_file() for path in paths) and "x/step_1.pt" in paths[2].read_text()
