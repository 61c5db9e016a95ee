"""From a model and data to tidy tables: the main path of every command and of `mfdiag.measure`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import nn

from mfdiag.errors import InputError, did_you_mean
from mfdiag.estimators import find_estimator
from mfdiag.flow.couplings import INDEPENDENT, Coupling, parse_coupling
from mfdiag.flow.datasets import Data, FiniteData, load_data
from mfdiag.flow.draw import Draws, why_unknown
from mfdiag.flow.paths import LINEAR, Path, parse_path
from mfdiag.flow.sources import GaussianSource, MixtureSource, Source, parse_source
from mfdiag.flow.times import TimeSampler, parse_times
from mfdiag.flow.weighting import Weighting, parse_weighting
from mfdiag.gradients.partial import Partial
from mfdiag.gradients.run import Measured, Plan, Proxy, Settings, run_pass
from mfdiag.measures.chosen import chosen_estimators, default_estimators, left_out_note
from mfdiag.measures.coefficient import coefficient_table
from mfdiag.measures.compare import compare_table
from mfdiag.measures.compare_plan import ComparePlan
from mfdiag.measures.plans import VELOCITY_JACOBIAN_DIM, EstimatorPlan, PlanePlan
from mfdiag.measures.sweep import sweep_plan, sweep_table
from mfdiag.measures.variance import samples_table, variance_table

__all__ = ["TABLES", "Request", "Subject", "measure", "measure_subject"]

TABLES = ("sweep", "variance", "coefficient", "compare")
_POSTERIOR_COST = 3e12  # samples x points x coordinates: minutes on a few cores
_LARGEST = 2**62  # tables hold 64-bit integers

Progress = Callable[[str, int, int], None]
"""(what is measured, samples done, samples in all)."""


@dataclass(frozen=True)
class Subject:
    """What is measured: a network, what guides it, and the draws it was trained on (`source` None is N(0, I)).

    `module` and `proxy_module` give average velocity; `prediction` says what they were made of.
    """

    module: nn.Module
    data: Data
    times: TimeSampler
    proxy: Proxy = "self"
    proxy_module: nn.Module | None = None
    proxy_name: str = "self"
    run: str = "model"
    checkpoint: str = "model"
    sha256: str | None = None
    step: int | None = None
    conditional: bool = False  # whether the network takes labels
    source: Source | None = None
    coupling: Coupling = INDEPENDENT
    path: Path = LINEAR
    prediction: str = "u"
    networks: Mapping[str, nn.Module] = field(default_factory=dict)  # "ema" and "teacher", where there are such

    @property
    def axes(self) -> dict[str, str]:
        """The draws' and the network's choices by name, besides data and times."""
        source = "gaussian" if self.source is None else self.source.name
        return {
            "source": source,
            "coupling": self.coupling.name,
            "path": self.path.name,
            "prediction": self.prediction,
        }


@dataclass(frozen=True)
class Request:
    """What is asked about it. `batch_sizes` are the n of MSE_n and of the batch-aware optimum."""

    betas: Sequence[float] = tuple(np.linspace(0, 1, 21))
    gammas: Sequence[float] = (0.0,)
    batch_sizes: Sequence[int] = (1, 64, 4096, 65536, 1048576)
    estimators: Sequence[str] = default_estimators("variance")
    weighting: Weighting = field(default_factory=Weighting)
    by_layer: bool = True
    seed: int = 0
    posterior: Literal["auto", "exact", "none"] = "auto"  # auto: unless it would take minutes
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        for name, values in (("beta", self.betas), ("gamma", self.gammas)):
            if not len(values) or not all(math.isfinite(v) for v in values):
                raise InputError(f"--{name} needs at least one finite number, got {list(values)}.")
        if not len(self.batch_sizes) or not all(1 <= n <= _LARGEST for n in self.batch_sizes):
            raise InputError(f"--batch-size must be at least 1 and at most 2^62, got {list(self.batch_sizes)}.")
        if not 0 <= self.seed <= _LARGEST:
            raise InputError(f"--seed must be at least 0 and at most 2^62, got {self.seed}.")
        if not len(self.estimators):
            raise InputError("--estimator needs at least one name.")
        for name in self.estimators:
            if name != "all":
                find_estimator(name)


@np.errstate(divide="ignore", invalid="ignore")  # a cell with too few samples has NaN and a status, not a warning
def measure_subject(
    subject: Subject,
    table: str,
    request: Request,
    *,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    partial: Partial | None = None,
) -> dict[str, pd.DataFrame]:
    """The frames of one command for one subject: the table itself and, for `variance`, `samples` beside it.

    `partial` keeps what is measured if the run is interrupted. Raises InputError as `run_pass` does.
    """
    if table not in TABLES:
        raise did_you_mean("table", table, TABLES)
    exact = _exact(subject, request, say)
    draws = Draws(
        subject.data,
        subject.times,
        request.seed,
        subject.conditional,
        exact,
        subject.source,
        subject.coupling,
        subject.path,
    )
    known = draws.posterior is not None
    common = _common(subject, request)
    dim = math.prod(subject.data.shape)

    def run(plan: Plan) -> Measured:
        def report(done: int, total: int) -> None:
            if progress is not None:
                progress(f"{table} of {subject.checkpoint}", done, total)

        return run_pass(
            plan,
            subject.module,
            draws,
            request.settings,
            proxy=subject.proxy,
            proxy_module=subject.proxy_module,
            networks=subject.networks,
            progress=report,
            say=say,
            partial=partial,
        )

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
    if say is not None and dim > VELOCITY_JACOBIAN_DIM:
        say(f"{dim} coordinates: divergence and antisymmetric_share are measured up to {VELOCITY_JACOBIAN_DIM}.")
    chosen = EstimatorPlan(asked, request.weighting, known)
    measured = run(chosen)
    return {
        "variance": variance_table(measured, chosen, common, dim, request.by_layer),
        "samples": samples_table(measured, chosen, common),
    }


def _exact(subject: Subject, request: Request, say: Callable[[str], None] | None) -> bool:
    """Whether to compute the exact posterior; where not, says what will be missing and why."""
    data, source = subject.data, subject.source or GaussianSource(subject.data.shape)
    reason = why_unknown(data, source, subject.coupling, subject.conditional)
    if reason is None and request.posterior == "none":
        reason = "--posterior none"
    elif reason is None and request.posterior == "auto" and isinstance(data, FiniteData):
        components = len(source.means) if isinstance(source, MixtureSource) else 1
        cost = request.settings.samples * len(data.points) * math.prod(data.shape) * components
        if cost > _POSTERIOR_COST:
            reason = (
                f"the exact posterior over {len(data.points):,} points would take long (--posterior exact computes it)"
            )
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
    samples: int = Settings.samples,
    bins: tuple[int, int] | None = None,
    by_layer: bool = True,
    seed: int = 0,
    posterior: Literal["auto", "exact", "none"] = "auto",
    engine: Any = "auto",
    chunk: int | None = None,
    dtype: Any = None,
    device: str = "cpu",
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, pd.DataFrame]:
    """Tidy tables of a model in memory, by table name; the same numbers as the commands of the same names.

    `model` is a module with forward(x [n, *shape], r [n], t [n], labels [n] or None) -> u [n, *shape], data at t = 0;
    it is copied and measured in eval mode. `data` is a specification (`"eight_gaussians"`, `"gaussian:2,0,1"`, a file),
    a `Data`, or an array [N, *shape]. `proxy_model` gives vhat = its u(x_t, t, t) for the proxies `ema` and `teacher`.
    A model with `num_classes` > 0 receives the data's labels. `posterior` says whether the exact posterior over
    the data is computed; `auto` leaves it out where it would take minutes. `times`, `source`, `coupling`, `path` and
    `prediction` are specifications as on the command line; `model` and `proxy_model` predict the same. `estimators` are
    names as on the command line, with the same defaults.

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
        networks={} if proxy_network is None or proxy not in ("ema", "teacher") else {proxy: proxy_network},
    )
    settings = Settings(samples, bins, chunk, engine, dtype or torch.float32, device)
    weigh = parse_weighting(weighting)
    frames: dict[str, pd.DataFrame] = {}
    for table in tables:
        names = estimators or default_estimators(table)
        request = Request(beta, gamma, batch_sizes, names, weigh, by_layer, seed, posterior, settings)
        frames |= measure_subject(subject, table, request, progress=progress, say=say)
    return frames
