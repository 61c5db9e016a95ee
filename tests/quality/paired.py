"""Subsamples of a data set and of a model, ready for metrics of pairs."""

from __future__ import annotations

import numpy as np
import torch

from mfdiag.quality.metrics import DataSubsample, PairedSamples, find_metric


def measured(name: str, x: np.ndarray, y: np.ndarray, scale: float = 1.0) -> float:
    """Metric `name` of samples x [m, d] against data y [m, d]."""
    a, b = torch.as_tensor(x), torch.as_tensor(y)
    prepare = find_metric(name).paired
    assert prepare is not None
    return prepare(DataSubsample(b, torch.cdist(b, b), scale))(PairedSamples(a, torch.cdist(a, a), torch.cdist(a, b)))


def draws(seed: int, m: int = 12, dim: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Two samples of unlike laws, [m, dim] each."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, dim)) * 1.3 + 0.5, rng.normal(size=(m, dim))
