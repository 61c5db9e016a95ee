"""The registry, and each estimator's place in the plane."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mfdiag.errors import InputError
from mfdiag.estimators import Estimator, estimators, find_estimator
from mfdiag.estimators._fields import Fields


@pytest.fixture
def fields() -> Fields:
    u, v_c, vhat, along_v, along_shift = torch.randn(5, 4, 3, dtype=torch.float64)
    return Fields(u, v_c, vhat, torch.rand(4, 1, dtype=torch.float64), along_v, along_shift)


@pytest.mark.parametrize("name", [name for name, e in estimators().items() if e.coefficients is not None])
def test_residuals_are_where_the_plane_says(name: str, fields: Fields) -> None:
    estimator = estimators()[name]
    assert estimator.coefficients is not None
    beta, gamma = estimator.coefficients
    e_0, e_b, e_g = fields.plane
    torch.testing.assert_close(estimator.residual(fields), e_0 + beta * e_b + gamma * e_g)


def test_the_corners(fields: Fields) -> None:
    assert {name: estimators()[name].coefficients for name in ("meanflow", "ema_tangent", "distillation")} == {
        "meanflow": (0, 0),
        "ema_tangent": (1, 0),
        "distillation": (1, 1),
    }
    # written out: the proxy in both roles leaves no trace of v_c
    found = estimators()["distillation"].residual(fields)
    expected = fields.u + fields.gap * (fields.along_v + fields.along_shift) - fields.vhat
    torch.testing.assert_close(found, expected)


def test_every_file_is_an_estimator_of_its_name() -> None:
    for name, estimator in estimators().items():
        assert isinstance(estimator, Estimator) and estimator.name == name
        assert estimator.parse is not None or find_estimator(name) is estimator
        assert estimator.title and estimator.paper and estimator.formula


def test_a_point_of_the_plane() -> None:
    found = find_estimator("plane:0.5,-1")
    assert (found.name, found.coefficients) == ("plane:0.5,-1", (0.5, -1.0))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("meanflw", "Did you mean 'meanflow'"),
        ("meanflow:1", "takes no arguments"),
        ("plane", "two finite numbers"),
        ("plane:1", "two finite numbers"),
        ("plane:a,b", "two finite numbers"),
        ("plane:1,2,3", "two finite numbers"),
        ("plane:nan,0", "two finite numbers"),
        ("plane:0,inf", "two finite numbers"),
    ],
)
def test_bad_names(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_estimator(spec)


def test_listing_does_not_import_torch() -> None:
    code = "import sys, mfdiag.estimators as e; e.estimators(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
