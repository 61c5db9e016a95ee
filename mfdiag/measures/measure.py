"""From a model and data to tidy tables: the main path of every command and of `mfdiag.measure`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import nn

from mfdiag.errors import InputError, did_you_mean
from mfdiag.estimators import find_estimator
from mfdiag.flow.couplings import parse_coupling
from mfdiag.flow.data.datasets import Data, FiniteData, MomentsData, load_data
from mfdiag.flow.draw import Draws, why_posterior_unknown
from mfdiag.flow.guidance import parse_guidance
from mfdiag.flow.paths import parse_path
from mfdiag.flow.sources import GaussianSource, MixtureSource, parse_source
from mfdiag.flow.times import TimeSampler, parse_times
from mfdiag.flow.weighting import parse_weighting
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.gradients.sample_pass import PassResult, PassSettings, Plan, Proxy, SupportNetworks, run_pass
from mfdiag.measures.chosen import chosen_estimators, default_estimators, left_out_note
from mfdiag.measures.coefficient import coefficient_table
from mfdiag.measures.compare import compare_table
from mfdiag.measures.compare_plan import ComparePlan
from mfdiag.measures.plans import EstimatorPlan, PlanePlan
from mfdiag.measures.request import Progress, Request, Subject
from mfdiag.measures.sweep import sweep_plan, sweep_table
from mfdiag.measures.times import GradientPlan, search, times_table
from mfdiag.measures.variance import samples_table, variance_table
from mfdiag.measures.velocity_field import EXACT_DIM

__all__ = ["TABLES", "measure", "measure_subject"]

TABLES = ("sweep", "variance", "coefficient", "compare", "times")
_POSTERIOR_COST = 3e12  # samples x points x coordinates: minutes on a few cores
_MOMENTS_COST = 8  # of stored moments, against a point


@np.errstate(divide="ignore", invalid="ignore")  # a cell with too few samples has NaN and a status, not a warning
def measure_subject(
    subject: Subject,
    table: str,
    request: Request,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    partial: PassCheckpoint | None = None,
) -> dict[str, pd.DataFrame]:
    """The frames of one command for one subject: the table itself and, for `variance`, `samples` beside it.

    `partial` keeps what is measured if the run is interrupted. Raises InputError as `run_pass` does.
    """
    if table not in TABLES:
        raise did_you_mean("table", table, TABLES)
    exact = _exact(subject, request, say if table != "times" else None)  # which needs no posterior
    draws = Draws(
        subject.data,
        subject.times,
        request.seed,
        subject.conditional,
        exact,
        subject.source,
        subject.coupling,
        subject.path,
        guidance=subject.guidance,
        null_label=getattr(subject.module, "num_classes", 0),
    )
    known = draws.posterior is not None
    common = _common(subject, request)
    dim = math.prod(subject.data.shape)

    def run(
        plan: Plan,
        draws: Draws = draws,
        settings: PassSettings = request.settings,
        partial: PassCheckpoint | None = partial,
    ) -> PassResult:
        def report(done: int, total: int) -> None:
            if progress is not None:
                progress(f"{table} of {subject.checkpoint}", done, total)

        measured = run_pass(
            plan,
            subject.module,
            draws,
            settings,
            support=SupportNetworks(subject.proxy, subject.proxy_module, subject.networks),
            progress=report,
            say=say,
            checkpoint=partial,
        )
        common["derivative"] = measured.derivative
        return measured

    if table == "sweep":
        plan = sweep_plan(request.betas, request.gammas, request.weighting, known)
        measured = run(plan)
        common["estimator"] = "plane"
        frame = sweep_table(
            measured, plan, request.betas, request.gammas, request.batch_sizes, common, request.by_layer
        )
        return {"sweep": frame}
    if table == "coefficient":
        if request.weighting.p:
            raise InputError(
                f"The closed forms hold for --weighting none: under {request.weighting.name} the variance is no longer "
                "quadratic in the coefficient. Use `mfdiag sweep`, which measures every coefficient under the weight."
            )
        plane = PlanePlan(known, jacobian=known)
        measured = run(plane)
        common["estimator"] = "plane"
        return {"coefficient": coefficient_table(measured, plane, request.batch_sizes, common, dim, request.by_layer)}
    asked, absent = chosen_estimators(request.estimators, subject, table)
    if say is not None:
        for reason, names in absent.items():
            say(left_out_note(reason, names))
    if table == "compare":
        first = find_estimator("meanflow")  # always measured, as what the others are held against
        comparison = ComparePlan([first, *(e for e in asked if e.name != first.name)], request.weighting, known)
        measured = run(comparison)
        listed = [e.name for e in asked]
        frame = compare_table(measured, comparison, request.batch_sizes, common, request.by_layer, listed)
        return {"compare": frame}
    if table == "times":
        if len(asked) != 1:
            raise InputError(f"A density of (r, t) is of one --estimator, got {', '.join(e.name for e in asked)}.")
        gradient = GradientPlan(asked[0], request.weighting)
        common["estimator"] = asked[0].name
        whole = replace(request.settings, bins=None)

        def under(times: TimeSampler, seed: int) -> PassResult:
            return run(gradient, replace(draws, times=times, seed=seed), whole, None)

        bins = request.settings.bins
        return {"times": times_table(search(under, subject.times, bins, request.floor, request.seed), common)}
    if say is not None and dim > EXACT_DIM and "divergence" not in request.extras:
        say(
            f"{dim} coordinates: above {EXACT_DIM}, divergence and antisymmetric_share take further passes: "
            "ask for them by --extra divergence."
        )
    law = subject.guidance
    split = law is not None and law.changes_velocity and law.network != "teacher"  # which leaves nothing of v_c
    chosen = EstimatorPlan(asked, request.weighting, known, request.extras, split)
    measured = run(chosen)
    return {
        "variance": variance_table(measured, chosen, common, dim, request.by_layer),
        "samples": samples_table(measured, chosen, common),
    }


def _exact(subject: Subject, request: Request, say: Callable[[str], None] | None) -> bool:
    """Whether to compute the exact posterior; where not, says what will be missing and why."""
    data, source = subject.data, subject.source or GaussianSource(subject.data.shape)
    reason = why_posterior_unknown(data, source, subject.coupling, subject.conditional, subject.guidance)
    if reason is None and request.posterior == "none":
        reason = "--posterior none"
    elif reason is None and request.posterior == "auto" and isinstance(data, FiniteData | MomentsData):
        components = len(source.means) if isinstance(source, MixtureSource) else 1
        size, each = (len(data.points), 1) if isinstance(data, FiniteData) else (len(data.moments), _MOMENTS_COST)
        cost = request.settings.samples * size * each * math.prod(data.shape) * components
        if cost > _POSTERIOR_COST:
            reason = f"the exact posterior over {size:,} points would take long (--posterior exact computes it)"
    if reason and say is not None:
        say(
            f"{reason}: no conditional variance, no bias in output space, gradient bias by the plain estimate, "
            "coefficients of the gradient form only."
        )
    return reason is None


def _common(subject: Subject, request: Request) -> dict[str, Any]:
    return {
        "run": subject.run,
        "checkpoint": subject.checkpoint,
        "checkpoint_sha256": subject.sha256,
        "step": subject.step,
        "dataset": subject.data.name,
        "estimator": None,
        "proxy": subject.proxy_name,
        "weighting": request.weighting.name,
        "times": subject.times.name,
        "seed": request.seed,
    }


def measure(
    model: nn.Module,
    data: str | Data | np.ndarray,
    *,
    tables: Sequence[str] = TABLES[:3],
    times: str = "logit_normal",
    source: str = "gaussian",
    coupling: str = "independent",
    path: str = "linear",
    prediction: str = "u",
    proxy: Proxy = "self",
    proxy_model: nn.Module | None = None,
    weighting: str = "none",
    estimators: Sequence[str] | None = None,
    beta: Sequence[float] = Request.betas,
    gamma: Sequence[float] = Request.gammas,
    batch_sizes: Sequence[int] = Request.batch_sizes,
    samples: int = PassSettings.samples,
    bins: tuple[int, int] | None = None,
    by_layer: bool = True,
    seed: int = 0,
    posterior: Literal["auto", "exact", "none"] = "auto",
    extras: Sequence[str] = (),
    floor: float = Request.floor,
    engine: Any = "auto",
    chunk: int | None = None,
    dtype: Any = None,
    device: str = "cpu",
    derivative: str = "auto",
    guidance: str = "none",
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, pd.DataFrame]:
    """Tidy tables of a model in memory, by table name; the same numbers as the commands of the same names.

    `model` is a module with forward(x [n, *shape], r [n], t [n], labels [n] or None) -> u [n, *shape], data at t = 0;
    it is copied and measured in eval mode. `data` is a specification (`"eight_gaussians"`, `"gaussian:2,0,1"`, a file),
    a `Data`, or an array [N, *shape]. `proxy_model` gives vhat = its u(x_t, t, t) for the proxies `ema` and `teacher`.
    A model with `num_classes` > 0 receives the data's labels. `posterior` says whether the exact posterior over
    the data is computed; `auto` leaves it out where it would take minutes. `times`, `source`, `coupling`, `path`,
    `prediction`, `guidance` and `derivative` are specifications as on the command line; `model` and `proxy_model`
    predict the same. `estimators` are names as on the command line, with the same defaults; `extras` are what table
    `variance` holds only if asked for, `"divergence"` and `"semi_gradient_gap"`; `floor` belongs to table `times`,
    which needs `bins`.

    Raises mfdiag.InputError for impossible requests and for models that return NaN or mix their samples.
    """
    import torch

    from mfdiag.models.prediction import as_average_velocity, prediction_name
    from mfdiag.models.teacher import teacher_velocity

    if isinstance(data, str):
        data = load_data(data)
    elif isinstance(data, np.ndarray):
        data = FiniteData("array", data)
    if proxy in ("ema", "teacher") and proxy_model is None:
        raise InputError(f"proxy={proxy!r} needs proxy_model, the network whose u(x_t, t, t) is the proxy velocity.")
    way, start = parse_path(path), parse_source(source, data)
    proxy_network = None if proxy_model is None else as_average_velocity(proxy_model, prediction, way)
    subject = Subject(
        as_average_velocity(model, prediction, way),
        data,
        parse_times(times),
        proxy,
        proxy_network,
        proxy,
        conditional=bool(getattr(model, "num_classes", 0)),
        source=start,
        coupling=parse_coupling(coupling, data, start, teacher_velocity),
        path=way,
        prediction=prediction_name(prediction),
        guidance=parse_guidance(guidance),
        networks={} if proxy_network is None or proxy not in ("ema", "teacher") else {proxy: proxy_network},
    )
    settings = PassSettings(samples, bins, chunk, engine, dtype or torch.float32, device, derivative)
    weigh = parse_weighting(weighting)
    frames: dict[str, pd.DataFrame] = {}
    for table in tables:
        names = estimators or default_estimators(table)
        request = Request(
            beta, gamma, batch_sizes, names, weigh, by_layer, seed, posterior, extras, floor, settings=settings
        )
        frames |= measure_subject(subject, table, request, progress=progress, say=say)
    return frames
