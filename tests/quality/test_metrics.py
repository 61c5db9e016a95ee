"""The registry of metrics."""

from __future__ import annotations

import pytest

from mfdiag.errors import InputError
from mfdiag.quality.metrics import find_metric, metrics


def test_one_file_each() -> None:
    assert list(metrics()) == [
        "coverage",
        "density",
        "energy_distance",
        "frechet_distance",
        "many_step_distance",
        "memorization",
        "mmd2",
        "precision",
        "recall",
        "sliced_wasserstein",
        "wasserstein_2",
    ]


@pytest.mark.parametrize("name", metrics())
def test_each_says_what_it_is(name: str) -> None:
    metric = find_metric(name)
    assert metric.name == name and metric.title and metric.paper and metric.formula and metric.best in (0, 0.5, 1)
    assert sum(part is not None for part in (metric.pooled, metric.paired, metric.stepwise)) == 1


def test_an_unknown_name() -> None:
    with pytest.raises(InputError, match=r"Unknown metric 'recal'\. Did you mean 'recall'"):
        find_metric("recal")
