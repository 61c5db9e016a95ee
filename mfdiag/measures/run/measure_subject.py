"""Measure one table of one subject: the samples, the plan, the pass, the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mfdiag.errors import first_line, machine_error
from mfdiag.estimators import Estimator
from mfdiag.flow.data.datasets import FiniteData, MomentsData
from mfdiag.flow.draw import why_posterior_unknown
from mfdiag.flow.sources import GaussianSource, MixtureSource
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.measures.run.choice import choose_estimators, left_out_note
from mfdiag.measures.run.measurement import Measurement
from mfdiag.measures.run.request import Progress, Request
from mfdiag.measures.run.subject import Subject
from mfdiag.measures.run.table import MeasuredTable

__all__ = ["measure_subject", "why_no_posterior"]

_POSTERIOR_COST = 3e12  # samples x points x coordinates: minutes on a few cores
_FEW = 16  # samples that show most failures of an estimator
_MOMENTS_COST = 8  # cost of one entry of stored moments, in points


@np.errstate(divide="ignore", invalid="ignore")  # a cell with too few samples has NaN and a status, not a warning
def measure_subject(
    subject: Subject,
    table: MeasuredTable,
    request: Request,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    checkpoint: PassCheckpoint | None = None,
) -> Mapping[str, pd.DataFrame]:
    """Measure one table of one subject.

    Args:
        subject: The network, its proxy and the distribution of its samples.
        table: What to measure.
        request: Estimators, coefficients, batch sizes, settings of a pass.
        progress: Receives (label, samples done, samples in all).
        say: Receives one-line notes.
        checkpoint: Where an interrupted pass keeps its state, and resumes from.

    Returns:
        Frames by table name: the table itself and those measured beside it.

    Raises:
        InputError: As `run_pass`, or the table cannot be measured under this request.
    """
    uses_posterior = table.measure is None  # a table with passes of its own, such as times, does not
    exact = _exact_posterior(subject, request, say if uses_posterior else None)
    draws = subject.draws(request.seed, exact_posterior=exact)
    estimators: Sequence[Estimator] = ()
    if "estimator" in table.options:
        estimators, left_out = choose_estimators(request.estimators, subject, table)
        for reason, names in left_out.items():
            if say is not None:
                say(left_out_note(reason, names))
        standing_in = [e.name for e in estimators if "ema" in e.needs.networks and "ema" not in subject.networks]
        if standing_in and subject.proxy_name != "ema" and say is not None:
            ema_names = ", ".join(standing_in)
            say(f"the checkpoint has no EMA weights: {ema_names} uses --proxy {subject.proxy_name} instead.")
    measurement = Measurement(table.name, subject, request, draws, estimators, progress, say, checkpoint)
    return _of_measurable_estimators(table, measurement)


def _of_measurable_estimators(table: MeasuredTable, measurement: Measurement) -> Mapping[str, pd.DataFrame]:
    """The frames of a table, without the estimators that cannot be measured on the network, which is said."""
    try:
        return _measured(table, measurement)
    except Exception as error:
        if machine_error(error) is not None:
            raise
        failures = _failures(table, measurement)
        remaining = [estimator for estimator in measurement.estimators if estimator.name not in failures]
        if not failures or not remaining:
            raise
    for name, reason in failures.items():
        if measurement.say is not None:
            measurement.say(left_out_note(f"it cannot be measured on this network: {reason.removesuffix('.')}", [name]))
    return _measured(table, replace(measurement, estimators=remaining))


def _measured(table: MeasuredTable, measurement: Measurement) -> Mapping[str, pd.DataFrame]:
    """The frames of a table."""
    if table.measure is not None:
        return table.measure(measurement)
    assert table.plan is not None and table.rows is not None, f"{table.name} has neither a plan nor a measurement"
    plan = table.plan(measurement)
    return table.rows(measurement, plan, measurement.run_pass(plan))


def _failures(table: MeasuredTable, measurement: Measurement) -> dict[str, str]:
    """Estimators, out of several, that cannot be measured alone, and why: on a few samples, else on all."""
    if table.plan is None or len(measurement.estimators) < 2:
        return {}
    every = measurement.request.settings.samples
    for samples in sorted({min(_FEW, every), every}):
        settings = replace(measurement.request.settings, samples=samples, bins=None)
        failures = {}
        for estimator in measurement.estimators:
            alone = replace(
                measurement,
                estimators=[estimator],
                request=replace(measurement.request, settings=settings),
                say=None,
                progress=None,
                checkpoint=None,
            )
            try:
                alone.run_pass(table.plan(alone))
            except Exception as error:  # whatever the user's network or estimator raises
                failures[estimator.name] = first_line(error)
        if failures:
            return failures
    return {}


def _exact_posterior(subject: Subject, request: Request, say: Callable[[str], None] | None) -> bool:
    """Whether to compute the exact posterior; if not, `say` receives what will be missing and why."""
    reason = why_no_posterior(subject, request)
    if reason and say is not None:
        say(
            f"{reason}: no conditional variance, no bias in output space, gradient bias by the plain estimate, "
            "coefficients of the gradient form only."
        )
    return reason is None


def why_no_posterior(subject: Subject, request: Request) -> str | None:
    """Why the exact posterior over the data is not computed, as a clause; None if it is."""
    data, source = subject.data, subject.source or GaussianSource(subject.data.shape)
    reason = why_posterior_unknown(
        data, source, subject.coupling, subject.conditional, subject.guidance, subject.conditions
    )
    if reason is None and request.posterior == "none":
        reason = "--posterior none"
    elif reason is None and request.posterior == "auto" and isinstance(data, FiniteData | MomentsData):
        components = len(source.means) if isinstance(source, MixtureSource) else 1
        size, entry_cost = (len(data.points), 1) if isinstance(data, FiniteData) else (len(data.moments), _MOMENTS_COST)
        cost = request.settings.samples * size * entry_cost * math.prod(data.shape) * components
        if cost > _POSTERIOR_COST:
            reason = f"the exact posterior over {size:,} points takes minutes (--posterior exact computes it)"
    return reason
