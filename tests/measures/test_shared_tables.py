"""Tables that several processes measure together: those of one process, in every number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import randomised
from worlds import in_threads

import mfdiag
from mfdiag.errors import InputError
from mfdiag.models.networks.mlp import MLP
from mfdiag.world import current_world

NUMBERS = ["value", "std_error", "ci_low", "ci_high"]
OPTIONS = {"data": "eight_gaussians", "times": "uniform", "samples": 96, "dtype": torch.float64}
TABLES = {
    "sweep": {"bins": (2, 2)},
    "variance": {"bins": (2, 2), "extras": ["semi_gradient_gap"]},
    "coefficient": {},
    "compare": {"estimators": ["meanflow", "soflow", "terminal_velocity:ema=0"], "bins": (1, 2)},
    "times": {"samples": 600, "bins": (2, 2)},
}


def network(seed: int = 0) -> MLP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomised(MLP(2, hidden=6, depth=1))


def assert_same(actual: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(actual.drop(columns=NUMBERS), expected.drop(columns=NUMBERS))
    for column in NUMBERS:
        np.testing.assert_allclose(actual[column], expected[column], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("table", TABLES)
def test_processes_measure_each_table_together(table: str) -> None:
    def frames() -> dict[str, pd.DataFrame]:
        return mfdiag.measure(network(), tables=[table], **OPTIONS | TABLES[table])

    expected = frames()
    for shared in in_threads(2, frames):
        assert shared.keys() == expected.keys()
        for name, frame in expected.items():
            assert_same(shared[name], frame)


def test_processes_share_the_replicates_of_sample_quality() -> None:
    def frame() -> pd.DataFrame:
        options = {"samples": 128, "subsample": 16, "dtype": torch.float64}
        metrics = ["sliced_wasserstein", "frechet_distance", "mmd2", "recall"]
        return mfdiag.measure_quality(network(), "eight_gaussians", nfe=[2], metrics=metrics, **options)

    expected = frame()
    for shared in in_threads(2, frame):
        assert_same(shared, expected)


def test_other_weights_in_another_process_are_refused_by_quality() -> None:
    def different() -> None:
        mfdiag.measure_quality(
            network(current_world().rank), "eight_gaussians", samples=128, metrics=["frechet_distance"]
        )

    with pytest.raises(InputError, match="fixed seed"):
        in_threads(2, different)


FAILING = """
from mfdiag.estimators import Estimator

def residual(fields):
    if ((fields.t - {t}).abs() < 1e-12).any():
        raise RuntimeError("an unlucky sample")
    return fields.u - fields.v_c

ESTIMATOR = Estimator("unlucky", "fails on one sample", "none", "u - v_c", residual=residual)
"""


def test_an_estimator_that_fails_in_one_process_is_left_out_by_all(tmp_path: Path) -> None:
    t = mfdiag.measure(network(), tables=["variance"], **OPTIONS)["samples"].drop_duplicates("index")["t"]
    (tmp_path / "unlucky.py").write_text(FAILING.format(t=t.iloc[90]))
    estimators = ["meanflow", f"{tmp_path / 'unlucky.py'}:ESTIMATOR"]

    def frame(say: Callable[[str], None]) -> pd.DataFrame:
        return mfdiag.measure(network(), tables=["compare"], estimators=estimators, say=say, **OPTIONS)["compare"]

    expected, notes = frame(lambda note: None), list[str]()
    assert set(expected["estimator"]) == {"meanflow"}
    for shared in in_threads(2, lambda: frame(notes.append)):
        assert_same(shared, expected)
    assert sum("an unlucky sample" in note for note in notes) == 2, notes


def test_the_library_measures_alone_within_the_processes_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training run under torchrun may measure in one of its processes."""
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert current_world().size == 1
    mfdiag.measure(network(), tables=["sweep"], beta=[0, 1], **OPTIONS)
