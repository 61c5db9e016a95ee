from __future__ import annotations

import pandas as pd
import pytest

COMMON_ROW = {
    "run": "grid",
    "checkpoint": "step_12000.safetensors",
    "checkpoint_sha256": "ab" * 32,
    "step": 12_000,
    "dataset": "eight_gaussians",
    "estimator": "meanflow",
    "proxy": None,
    "weighting": "none",
    "times": "uniform:0",
    "seed": 0,
    "layer": "all",
    "r_low": None,
    "r_high": None,
    "t_low": None,
    "t_high": None,
    "value": 2.0,
    "std_error": 0.1,
    "ci_low": 1.8,
    "ci_high": 2.2,
    "n_samples": 2048,
    "status": "ok",
}


@pytest.fixture
def variance() -> pd.DataFrame:
    """Three valid rows of table `variance`, one without step and checkpoint hash, one with time bins."""
    return pd.DataFrame(
        [
            COMMON_ROW | {"quantity": "variance"},
            COMMON_ROW | {"quantity": "snr", "step": None, "checkpoint_sha256": None},
            COMMON_ROW | {"quantity": "loss_variance", "t_low": 0.0, "t_high": 0.25},
        ]
    )
