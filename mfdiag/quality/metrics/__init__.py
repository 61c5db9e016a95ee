"""The metrics of sample quality: one file each, looked up by name. Importing this package does not import torch."""

from __future__ import annotations

from mfdiag.errors import did_you_mean
from mfdiag.plugins import files_of
from mfdiag.quality.metrics._base import DataSubsample, Metric, PairedSamples, Reference

__all__ = ["DataSubsample", "Metric", "PairedSamples", "Reference", "find_metric", "metrics"]


def metrics() -> dict[str, Metric]:
    """Name -> metric, one for each public file of this package."""
    return {metric.name: metric for metric in files_of(__name__, "METRIC")}


def find_metric(name: str) -> Metric:
    """The metric called `name`; an unknown name raises InputError with 'did you mean'."""
    known = metrics()
    if name not in known:
        raise did_you_mean("metric", name, known)
    return known[name]
