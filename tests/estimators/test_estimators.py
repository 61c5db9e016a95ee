"""The registry, and each estimator's place in the plane."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mfdiag.errors import InputError
from mfdiag.estimators import GROUP, Estimator, estimators, find_estimator
from mfdiag.fields.fields import Fields
from mfdiag.plugins import installed


@pytest.fixture
def fields() -> Fields:
    u, v_c, vhat, jvp_v_c, jvp_shift = torch.randn(5, 4, 3, dtype=torch.float64)
    return Fields(u, v_c, vhat, torch.rand(4, 1, dtype=torch.float64), jvp_v_c, jvp_shift)


@pytest.mark.parametrize("name", [name for name, e in estimators().items() if e.coefficients is not None])
def test_residuals_are_where_the_plane_says(name: str, fields: Fields) -> None:
    estimator = estimators()[name]
    assert estimator.coefficients is not None
    beta, gamma = estimator.coefficients
    e_0, e_b, e_g = fields.plane
    assert estimator.residual is not None
    torch.testing.assert_close(estimator.residual(fields), e_0 + beta * e_b + gamma * e_g)


def test_the_corners(fields: Fields) -> None:
    assert {name: estimators()[name].coefficients for name in ("meanflow", "ema_tangent", "distillation")} == {
        "meanflow": (0, 0),
        "ema_tangent": (1, 0),
        "distillation": (1, 1),
    }
    # written out: the proxy in both roles leaves no trace of v_c
    residual = estimators()["distillation"].residual
    assert residual is not None
    actual = residual(fields)
    expected = fields.u + fields.gap * (fields.jvp_v_c + fields.jvp_shift) - fields.vhat
    torch.testing.assert_close(actual, expected)


def test_every_file_is_an_estimator_of_its_name() -> None:
    for name, estimator in estimators().items():
        assert isinstance(estimator, Estimator) and estimator.name == name
        assert estimator.parse is not None or find_estimator(name) is estimator
        assert estimator.title and estimator.paper and estimator.formula
        assert (estimator.residual is None) != (estimator.loss is None)


def test_a_point_of_the_plane() -> None:
    estimator = find_estimator("plane:0.5,-1")
    assert (estimator.name, estimator.coefficients) == ("plane:0.5,-1", (0.5, -1.0))


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


OUTSIDE = """
from mfdiag.plugins import installed
from mfdiag.estimators import Estimator, Needs

def loss(fields, network):
    return (network(fields.x, fields.r, fields.t) - fields.v_c).flatten(1).square().sum(1)

def parse(text):
    return Estimator(f"outside:{text}", "with an argument", "none", "as outside", loss=loss)

OUTSIDE = Estimator("outside", "from outside", "none", "|u - v_c|^2", loss=loss, parse=parse, needs=Needs())
TAKEN = Estimator("meanflow", "a taken name", "none", "|u - v_c|^2", loss=loss)
NOTHING = 3
"""


def test_a_file_is_named_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OUTSIDE)
    assert find_estimator(f"{tmp_path}/mine.py:OUTSIDE").title == "from outside"
    assert find_estimator(f"{tmp_path}/mine.py:OUTSIDE:5").name == "outside:5"
    for name, message in (
        ("NOTHING", "to be an mfdiag Estimator, but its type is int"),
        ("ABSENT", "mine.py to define 'ABSENT'"),
    ):
        with pytest.raises(InputError, match=message):
            find_estimator(f"{tmp_path}/mine.py:{name}")
    with pytest.raises(InputError, match="does not exist"):
        find_estimator(f"{tmp_path}/yours.py:OUTSIDE")
    with pytest.raises(InputError, match="takes no arguments"):
        find_estimator(f"{tmp_path}/mine.py:TAKEN:1")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("outside_package:OUTSIDE", None),
        ("outside_package:TAKEN", "gives the name 'meanflow' again"),
        ("outside_package:NOTHING", "gives int"),
        ("outside_package:ABSENT", "cannot be loaded: AttributeError"),
    ],
)
def test_another_package_adds_its_own(
    value: str, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package as pip installs it: a module, and metadata with an entry point."""
    (tmp_path / "outside_package.py").write_text(OUTSIDE)
    metadata = tmp_path / "outside_package-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-package\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\nanything = {value}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    installed.cache_clear()
    try:
        if message is None:
            assert estimators()["outside"].title == "from outside" and find_estimator("outside:5").name == "outside:5"
        else:
            with pytest.raises(InputError, match=message):
                estimators()
    finally:
        installed.cache_clear()
        sys.modules.pop("outside_package", None)
