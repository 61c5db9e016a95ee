"""What other members of the family and another coupling would do to the gradient of this checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from mfdiag.diagnosis.measured import Measured
from mfdiag.errors import InputError, first_line
from mfdiag.estimators import find_estimator
from mfdiag.flow.couplings import INDEPENDENT, parse_coupling
from mfdiag.flow.sources import GaussianSource
from mfdiag.gradients.intervals import Estimate
from mfdiag.measures import find_table
from mfdiag.measures.run.measure_subject import measure_subject
from mfdiag.measures.run.measurement import Measurement
from mfdiag.models.teacher import teacher_velocity

__all__ = ["ALTERNATIVES", "TRANSPORT", "probe_alternatives"]

ALTERNATIVES = (
    "plane:0,0.5",
    "plane:0,1",
    "alpha_flow:0.5",
    "restricted_meanflow:0.5",
    "finite_difference",
    "split_meanflow",
)
"""Estimators that a training can change to without another network."""

TRANSPORT = "minibatch_ot:64"
"""The coupling that is compared with independent pairs."""

_COPIED = ("mse_ratio", "variance_ratio")
_Z = 1.96


def probe_alternatives(measurement: Measurement, variance: pd.DataFrame, say: Callable[[str], None]) -> list[Measured]:
    """Compare other objectives with MeanFlow's on this network.

    Args:
        measurement: The network and its samples, with one batch size.
        variance: Table `variance` of the same network, with MeanFlow's.
        say: Receives what is left out.

    Returns:
        Measurements `mse_ratio` and `variance_ratio` of table `doctor`.
    """
    request = replace(
        measurement.request,
        estimators=ALTERNATIVES,
        settings=replace(measurement.request.settings, bins=None),
    )
    measured: list[Measured] = []
    try:
        frame = measure_subject(measurement.subject, find_table("compare"), request)["compare"]
        measured += [_measured(row) for _, row in frame[frame["quantity"].isin(_COPIED)].iterrows()]
    except InputError as error:
        say(f"other estimators are not compared: {first_line(error)}")
    if measurement.subject.coupling is INDEPENDENT:
        measured += _transport(measurement, variance, say)
    return measured


def _measured(row: pd.Series) -> Measured:
    """A row of table `compare`."""
    value, error, low, high = (np.asarray(row[name]) for name in ("value", "std_error", "ci_low", "ci_high"))
    batch_size = None if pd.isna(row["batch_size"]) else int(row["batch_size"])
    tail = None if row["status"] == "ok" else row["status"]
    keys = {"estimator": row["estimator"], "batch_size": batch_size, "layer": row["layer"]}
    return Measured(row["quantity"], Estimate(value, error, low, high, int(row["n_samples"])), keys=keys, tail=tail)


def _transport(measurement: Measurement, variance: pd.DataFrame, say: Callable[[str], None]) -> Iterator[Measured]:
    """Variance of MeanFlow's gradient under mini-batch transport over that with independent pairs."""
    subject = measurement.subject
    source = subject.source or GaussianSource(subject.data.shape)
    settings = replace(measurement.request.settings, bins=None)
    request = replace(measurement.request, estimators=("meanflow",), settings=settings)
    try:
        moved = replace(subject, coupling=parse_coupling(TRANSPORT, subject.data, source, teacher_velocity))
        frame = measure_subject(moved, find_table("variance"), request)["variance"]
    except InputError as error:
        say(f"{TRANSPORT} is not compared: {first_line(error)}")
        return
    after, before = (_row(table) for table in (frame, variance))
    ratio = np.asarray(after["value"] / before["value"])
    # two passes over different pairs: their errors are taken as independent
    relative = np.hypot(after["std_error"] / after["value"], before["std_error"] / before["value"])
    low, high = (np.asarray(ratio * np.exp(end * _Z * relative)) for end in (-1, 1))
    estimate = Estimate(ratio, ratio * relative, low, high, int(after["n_samples"]))
    tail = next((row["status"] for row in (after, before) if row["status"] != "ok"), None)
    yield Measured("variance_ratio", estimate, keys={"estimator": "meanflow", "target": TRANSPORT}, tail=tail)


def _row(variance: pd.DataFrame) -> pd.Series:
    """The variance of MeanFlow's gradient over everything."""
    rows = variance[variance["quantity"].eq("variance") & variance["estimator"].eq(find_estimator("meanflow").name)]
    return rows[rows["layer"].eq("all") & rows["t_low"].isna()].iloc[0]
