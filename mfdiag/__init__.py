"""Variance diagnostics and ablations of MeanFlow models, from a saved checkpoint or a model in memory."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mfdiag._version import __version__
from mfdiag.errors import InputError, MfdiagError

if TYPE_CHECKING:
    from mfdiag.diagnosis.monitor import Monitor
    from mfdiag.estimators import Estimator, estimators, find_estimator
    from mfdiag.flow.data.datasets import load_data
    from mfdiag.gradients.sample_pass import PassSettings
    from mfdiag.measures.parts.quality_rows import mean_over_seeds
    from mfdiag.measures.run.api import Objective
    from mfdiag.measures.run.quality_api import measure_quality, prepare_quality
    from mfdiag.measures.run.request import Request
    from mfdiag.models.checkpoint import load_model, save_checkpoint
    from mfdiag.quality.sampling import sample
    from mfdiag.reporting.notebook import measure

__all__ = [
    "Estimator",
    "InputError",
    "MfdiagError",
    "Monitor",
    "Objective",
    "PassSettings",
    "Request",
    "__version__",
    "estimators",
    "find_estimator",
    "load_data",
    "load_model",
    "mean_over_seeds",
    "measure",
    "measure_quality",
    "prepare_quality",
    "sample",
    "save_checkpoint",
]

_LAZY = {  # torch is imported when something is measured, not when help is printed
    "Estimator": "mfdiag.estimators",
    "estimators": "mfdiag.estimators",
    "find_estimator": "mfdiag.estimators",
    "load_data": "mfdiag.flow.data.datasets",
    "load_model": "mfdiag.models.checkpoint",
    "mean_over_seeds": "mfdiag.measures.parts.quality_rows",
    "Monitor": "mfdiag.diagnosis.monitor",
    "Objective": "mfdiag.measures.run.api",
    "PassSettings": "mfdiag.gradients.sample_pass",
    "Request": "mfdiag.measures.run.request",
    "measure": "mfdiag.reporting.notebook",
    "measure_quality": "mfdiag.measures.run.quality_api",
    "prepare_quality": "mfdiag.measures.run.quality_api",
    "sample": "mfdiag.quality.sampling",
    "save_checkpoint": "mfdiag.models.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
