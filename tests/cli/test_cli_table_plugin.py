"""A new table is one file: a package registers it, and the command line measures it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mfdiag.tables import read_table

TABLE = '''"""`mfdiag mean_loss`: the mean loss of each estimator."""

from mfdiag.gradients.intervals import jackknife
from mfdiag.measures import MeasuredTable
from mfdiag.measures.parts.cells import scalars_by_cell
from mfdiag.measures.parts.estimator_plan import EstimatorPlan
from mfdiag.tables.columns import BINS, gradient_table
from mfdiag.tables.fields import Quantity


def plan(measurement):
    request = measurement.request
    return EstimatorPlan(measurement.estimators, request.weighting, measurement.posterior_known)


def rows(measurement, plan, result):
    rows = measurement.rows()
    losses = {e.name: result.scalars[f"loss/{e.name}"] for e in plan.estimators}
    for box, means, count in scalars_by_cell(result, losses):
        for name, replicates in means.items():
            rows.add("mean_loss", jackknife(replicates, count), box, estimator=name)
    return {"mean_loss": rows.frame()}


TABLE = MeasuredTable(
    gradient_table(
        "mean_loss",
        "mean_loss",
        "Mean loss of each estimator, by cell of (r, t).",
        BINS,
        Quantity("mean_loss", "E[w |e|^2]", "loss", "Mean loss.", kind="nonnegative"),
    ),
    plan=plan,
    rows=rows,
    options=("estimator", "by"),
    default_bins=(2, 2),
)
'''


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with the table's module and the metadata of an installed distribution."""
    assert len(TABLE.splitlines()) <= 40
    folder = tmp_path / "package"
    metadata = folder / "mean_loss-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "mean_loss_table.py").write_text(TABLE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mean-loss\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[mfdiag.tables]\nmean_loss = mean_loss_table:TABLE\n")
    return folder


def test_a_table_in_one_file_is_a_command(package: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Help, measurement, printed summary, stored table, manifest, resuming."""
    paths = os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH"))))

    def mfdiag(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mfdiag", *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": paths}
        return subprocess.run(command, text=True, capture_output=True, check=True, env=environment, cwd=tmp_path)

    assert "mean_loss" in mfdiag("--help").stdout
    shown = mfdiag("mean_loss", "--help").stdout
    assert "Mean loss of each estimator" in shown and "--estimator" in shown and "--gamma" not in shown
    done = mfdiag("mean_loss", checkpoint, "--samples", 200, "--estimator", "meanflow", "--out", "results")
    assert "mean_loss of" in done.stdout and "tables: results/mean_loss.parquet" in done.stderr
    again = mfdiag("mean_loss", checkpoint, "--samples", 200, "--estimator", "meanflow", "--out", "results", "--resume")
    assert "is measured already" in again.stderr and again.stdout == done.stdout
    rows = mfdiag(
        "mean_loss", checkpoint, "--samples", 200, "--estimator", "meanflow", "--out", "all", "--format", "csv"
    )
    assert len(rows.stdout.splitlines()) == 1 + 1 + 2 + 3  # head, everything, two bins of t, three cells


def test_a_table_nobody_registered_is_no_table(tmp_path: Path) -> None:
    from mfdiag.errors import InputError

    with pytest.raises(InputError, match="mean_loss"):
        read_table("mean_loss", tmp_path)
