"""The metrics of sample quality: one file each, looked up by name. Importing this package does not import torch."""

from __future__ import annotations

from mfdiag.errors import did_you_mean
from mfdiag.plugins import files_of
from mfdiag.quality.metrics._base import MANY_STEPS, DataSubsample, Metric, PairedSamples, Reference

__all__ = [
    "MANY_STEPS",
    "DataSubsample",
    "Metric",
    "PairedSamples",
    "Reference",
    "default_metrics",
    "find_metric",
    "metrics",
]


def metrics() -> dict[str, Metric]:
    """Name -> metric, one for each public file of this package."""
    return {metric.name: metric for metric in files_of(__name__, "METRIC")}


def default_metrics(*, held_out: bool) -> list[str]:
    """Names of the metrics that are measured if none is named: without `stepwise` ones, which cost more."""
    return [name for name, m in metrics().items() if m.stepwise is None and (held_out or not m.needs_held_out)]


def find_metric(name: str) -> Metric:
    """The metric called `name`; an unknown name raises InputError with 'did you mean'."""
    known = metrics()
    if name not in known:
        raise did_you_mean("metric", name, known)
    return known[name]
