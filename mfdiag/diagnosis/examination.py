"""Measures what the findings need, within a budget of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from mfdiag.diagnosis.alternatives import probe_alternatives
from mfdiag.diagnosis.candidate import Candidate
from mfdiag.diagnosis.conventions import identify
from mfdiag.diagnosis.evidence import Evidence, Facts
from mfdiag.diagnosis.field_probe import probe_field
from mfdiag.diagnosis.gradient_probe import COPIED, probe_gradient
from mfdiag.diagnosis.measured import Measured
from mfdiag.diagnosis.sampled_scale import sampled_scale
from mfdiag.diagnosis.spike import Spike, examine_batch, stored_batch
from mfdiag.diagnosis.training_log import TrainingLog
from mfdiag.diagnosis.update_probe import probe_updates
from mfdiag.diagnosis.weight_probe import narrowest_type, parameters_by_layer, weight_distances, weight_scales
from mfdiag.errors import NETWORK_ERRORS, InputError, first_line
from mfdiag.estimators import find_estimator
from mfdiag.fields.inputs import Inputs, select_samples
from mfdiag.flow.conditions import move_condition
from mfdiag.flow.guidance import Guidance, GuidanceScale
from mfdiag.flow.weighting import Weighting, parse_weighting
from mfdiag.gradients.pass_types import PassSettings
from mfdiag.measures.conventions.cost import EVALUATIONS_PER_SAMPLE
from mfdiag.measures.conventions.verdict import LEAST_SKILL, Verdict
from mfdiag.measures.parts.rows import Rows
from mfdiag.measures.run.convention_check import declared_verdict
from mfdiag.measures.run.measure_subject import why_no_posterior
from mfdiag.measures.run.measurement import Measurement
from mfdiag.measures.run.request import Progress, Request
from mfdiag.models.weights import NonfiniteWeightsError
from mfdiag.tables.check import conform

__all__ = ["ExaminationOptions", "doctor_frame", "examine"]

_BUDGET = (60.0, 165.0)  # seconds: usual, and the most where so many are needed for the fewest samples
_FEWEST, _MOST, _PILOT = 512, 4096, 128
_SLOW = 10.0  # seconds of the forward passes from which on the pilot takes a quarter of its samples
_POSTERIOR = 1e11  # samples x data points x coordinates: minutes
_FIELD_SHARE, _FIELD_CALLS = 0.15, 40  # of the budget for forward passes; evaluations of a sample
_IDENTIFY_SHARE, _IDENTIFY_CALLS, _IDENTIFY_SAMPLES = 0.25, 1000, (64, 512)
_SUSPICIOUS = 0.7  # ratio of target defects from which on the updates of other targets get more time
_UPDATE_SHARES = {False: 0.1, True: 0.5}  # of the budget
_UPDATE_CALLS, _UPDATE_SAMPLES = 80, 256  # evaluations that a sample takes as long as; the fewest samples
_ALTERNATIVES_UNTIL, _ALTERNATIVES_SAMPLES = 0.5, 1024  # share of the budget that is still free then; samples
_TRIALS, _ROUNDING = 8, 1e-3  # samples of a trial; relative difference that no precision explains


@dataclass(frozen=True)
class ExaminationOptions:
    """How a checkpoint is examined.

    Attributes:
        budget: Seconds; None for 60, or as many as 512 samples need up to 165.
        samples: Samples of the gradient pass; None for as many as the budget allows.
        batch_size: Samples per training step; None for what the file says.
        weighting: Weight of each sample in the loss; None for what the file says.
        seed: Seed of the samples.
        dtype: Precision of the networks.
        log: A training log.
        effects: Whether to measure other estimators and couplings too, which no finding needs.
    """

    budget: float | None = None
    samples: int | None = None
    batch_size: int | None = None
    weighting: str | None = None
    seed: int = 0
    dtype: torch.dtype = torch.float32
    log: TrainingLog | None = None
    effects: bool = True


@np.errstate(divide="ignore", invalid="ignore")  # too few samples give NaN and a status, not a warning
def examine(
    candidate: Candidate, options: ExaminationOptions, *, say: Callable[[str], None], progress: Progress | None = None
) -> Evidence:
    """Examine a checkpoint.

    Args:
        candidate: The checkpoint as declared, with every set of weights that fits its network.
        options: How it is examined.
        say: Receives one-line notes.
        progress: Receives (label, samples done, samples in all).

    Returns:
        What the findings judge.

    Raises:
        InputError: The network or its data cannot be measured.
    """
    start = time.perf_counter()
    subject, facts = candidate.subject, _facts(candidate, options)
    request = Request(
        batch_sizes=(facts.batch_size,),
        weighting=_weighting(candidate, options),
        by_layer=False,
        seed=options.seed,
        settings=PassSettings(samples=_PILOT, bins=(1, 10), dtype=options.dtype),
    )
    verdict, measured = _forward_passes(candidate, facts, options)
    exact = why_no_posterior(subject, request) is None
    draws = subject.draws(options.seed, exact_posterior=exact)
    estimators = [find_estimator(name) for name in ("meanflow", facts.tangent)]
    measurement = Measurement("variance", subject, request, draws, estimators, None, say)
    measured += _updates(candidate, facts, measured, options, say)
    samples = None
    try:
        settings = replace(request.settings, samples=_samples(measurement, options, start, say))
        measurement = replace(measurement, request=replace(request, settings=settings), progress=progress)
        own, frames = probe_gradient(measurement, facts.batch_size)
        early = time.perf_counter() - start < _ALTERNATIVES_UNTIL * (options.budget or _BUDGET[0])
        if options.effects and (options.samples is not None or early):
            few = replace(settings, samples=min(settings.samples, _ALTERNATIVES_SAMPLES))
            fewer = replace(measurement, request=replace(measurement.request, settings=few))
            own += probe_alternatives(fewer, frames["variance"], say)
        frame = doctor_frame(replace(measurement, name="doctor"), [*measured, *own], frames["variance"])
        samples = frames["samples"]
    except InputError as error:  # huge weights, whose gradients overflow or do not sum in this precision
        if _mixes_samples(candidate, options):
            raise
        facts = replace(facts, no_gradient=first_line(error).partition(": ")[0])  # not the cause that it supposes
        say(f"no gradient was measured: {facts.no_gradient}")
        frame = doctor_frame(replace(measurement, name="doctor"), measured)
    return Evidence(replace(facts, exact=exact), frame, samples, verdict, options.log, _spike(candidate))


def _mixes_samples(candidate: Candidate, options: ExaminationOptions) -> bool:
    """Whether the output for a sample depends on the others in its batch."""
    network, inputs = _trial(candidate.subject.module, candidate, options)
    with torch.no_grad():
        whole, part = network(*inputs), network(*select_samples(inputs, slice(1)))
    return not torch.allclose(whole[:1], part, rtol=0, atol=_ROUNDING * float(whole.abs().max()))


def _forward_passes(
    candidate: Candidate, facts: Facts, options: ExaminationOptions
) -> tuple[Verdict | None, list[Measured]]:
    """The convention, and what forward passes say of every set of weights."""
    subject, budget = candidate.subject, options.budget or _BUDGET[0]
    seconds = _seconds_per_evaluation(subject.module, candidate, options)
    verdict = _verdict(candidate, options, _IDENTIFY_SHARE * budget / seconds)
    networks = _networks(candidate, facts)
    many = _affordable(_FIELD_SHARE * budget, _FIELD_CALLS * seconds * len(networks), (128, 1024))
    measured = list(probe_field(subject.draws(options.seed), networks, many, _POSTERIOR, options.dtype))
    return verdict, [*measured, *weight_distances(networks), *weight_scales(subject.module)]


def _verdict(candidate: Candidate, options: ExaminationOptions, evaluations: float) -> Verdict | None:
    """What the convention's check says, with as many evaluations of the network as time allows."""
    subject = candidate.subject
    samples = int(min(evaluations / _IDENTIFY_CALLS, _IDENTIFY_SAMPLES[1]))
    if samples < _IDENTIFY_SAMPLES[0]:  # a large network: the readings of fewest changes alone
        samples = max(int(evaluations / EVALUATIONS_PER_SAMPLE), _FEWEST)
        checked = declared_verdict(subject, samples, seed=options.seed, dtype=options.dtype)
        return None if checked is None else checked[0]
    return _identified(candidate, options, samples)


def _identified(candidate: Candidate, options: ExaminationOptions, samples: int) -> Verdict:
    """What all readings say; where none explains the file, also on the scale of the samples that it generates."""
    arguments = (candidate.subject, candidate.declared, candidate.networks, samples)
    first = identify(*arguments, seed=options.seed, dtype=options.dtype).verdict
    if first.refuted or first.declared.skill >= LEAST_SKILL:
        return first
    scale = sampled_scale(candidate.subject, samples // 2, seed=options.seed, dtype=options.dtype)
    if scale is None:
        return first
    second = identify(*arguments, seed=options.seed, dtype=options.dtype, scales=[scale]).verdict
    return second if second.refuted else first


def _updates(
    candidate: Candidate,
    facts: Facts,
    measured: Sequence[Measured],
    options: ExaminationOptions,
    say: Callable[[str], None],
) -> list[Measured]:
    """Mean updates of other trainings, where time allows; guidance and networks without float64 leave them out."""
    if candidate.subject.guidance is not None:
        return []
    networks = _networks(candidate, facts)
    share = _UPDATE_SHARES[_suspicious(measured, facts.weights)]
    each = _UPDATE_CALLS * _seconds_per_evaluation(candidate.subject.module, candidate, options) * len(networks)
    samples = int(min(share * (options.budget or _BUDGET[0]) / max(each, 1e-9), 2 * (options.samples or _MOST), _MOST))
    if samples < _UPDATE_SAMPLES:
        return []
    draws = candidate.subject.draws(options.seed, exact_posterior=False)
    try:
        return list(probe_updates(draws, networks, samples, facts.batch_size, _weighting(candidate, options)))
    except (*NETWORK_ERRORS, InputError) as error:
        say(f"the updates of other targets are left out: {first_line(error)}")
        return []


def _facts(candidate: Candidate, options: ExaminationOptions) -> Facts:
    subject, description = candidate.subject, candidate.loaded.description
    specification: Mapping[str, Any] = {} if description is None else description.specification
    batch_size = options.batch_size or specification.get("batch_size")
    weighting = _weighting(candidate, options)
    known = options.weighting is not None or "loss" in specification or candidate.loaded.card is not None
    return Facts(
        subject.checkpoint,
        step=subject.step,
        parameters={name: sum(p.numel() for p in group) for name, group in parameters_by_layer(subject.module).items()},
        ema_decay=None if description is None else description.ema_decay,
        batch_size=int(batch_size or Facts.batch_size),
        batch_size_known=batch_size is not None,
        weighting_power=weighting.p if known else None,
        guidance=None if subject.guidance is None else subject.guidance.name,
        weights=candidate.declared.reading.weights,
        tangent="ema_tangent" if "ema" in subject.networks else "self_tangent",
        nonfinite=_nonfinite_averages(candidate),
        precision=narrowest_type(subject.module),
        guidance_scale=None if subject.guidance is None else _effective_scale(subject.guidance),
    )


def _effective_scale(guidance: Guidance) -> float | None:
    """omega in u_y - u_null = omega (v_y - v) at the fixed point of v_g; None where it differs between samples."""
    # v_g = a v_c + b u_y + c u_null with a + b + c = 1, so u_y - u_null = a / (1 - b) (v_y - u_null)
    uniform = np.random.default_rng(0).random((64, 3))
    scale = GuidanceScale(*map(torch.as_tensor, guidance.sample_scale(uniform, np.zeros(64, bool), np.zeros(64, bool))))
    factors = guidance.factors(scale, torch.full((64,), 0.5), torch.zeros(64, dtype=torch.bool))
    omega = factors.data / (1 - factors.labeled)
    own = guidance.network == "self" and not guidance.from_zero
    return float(omega[0]) if own and bool((omega == omega[0]).all()) else None


def _nonfinite_averages(candidate: Candidate) -> Sequence[str]:
    """Tensors of averaged weights that are NaN or infinite, though the measured weights are finite."""
    for key in candidate.loaded.unusable:
        try:
            candidate.loaded.with_weights(key)
        except NonfiniteWeightsError as error:
            return [f"{key}: {name}" for name in error.names]
        except InputError:
            continue  # they do not fit the network, as a note says
    return ()


def _weighting(candidate: Candidate, options: ExaminationOptions) -> Weighting:
    """The weight of each sample: the user's, the card's, or the specification's that trained the file."""
    if options.weighting is not None:
        return parse_weighting(options.weighting)
    loaded = candidate.loaded
    if loaded.card is not None:
        return parse_weighting(loaded.card.objective.weighting or "none")
    loss = {} if loaded.description is None else loaded.description.specification.get("loss", {})
    return parse_weighting(loss.get("weighting", "none"))


def _networks(candidate: Candidate, facts: Facts) -> dict[str, nn.Module]:
    """u(x, r, t, condition) by set of weights, the measured one first."""
    average = candidate.subject.networks.get("ema")
    return {facts.weights: candidate.subject.module} | ({} if average is None else {"ema": average})


def _seconds_per_evaluation(module: nn.Module, candidate: Candidate, options: ExaminationOptions) -> float:
    """Time of one sample's forward pass."""
    network, inputs = _trial(module, candidate, options)
    with torch.no_grad():
        network(*inputs)
        start = time.perf_counter()
        network(*inputs)
    return (time.perf_counter() - start) / _TRIALS


def _trial(module: nn.Module, candidate: Candidate, options: ExaminationOptions) -> tuple[nn.Module, Inputs]:
    """The network in the precision of measurement, with a few samples."""
    batch = candidate.subject.draws(options.seed, exact_posterior=False).batch(np.arange(_TRIALS))
    network = PassSettings(dtype=options.dtype).cast_network(module)
    x, r, t = (value.to(options.dtype) for value in (batch.x_t, batch.r, batch.t))
    return network, (x, r, t, move_condition(batch.condition, x))


def _affordable(seconds: float, each: float, limits: tuple[int, int]) -> int:
    """How many samples that time allows, within limits."""
    return int(min(max(seconds / max(each, 1e-9), limits[0]), limits[1]))


def _suspicious(measured: Sequence[Measured], weights: str) -> bool:
    """Whether the network looks trained on another target than MeanFlow's."""
    ratios = [
        float(entry.estimate.value)
        for entry in measured
        if entry.quantity == "target_defect_ratio" and entry.keys["weights"] == weights
    ]
    return bool(ratios) and min(ratios) < _SUSPICIOUS


def _samples(measurement: Measurement, options: ExaminationOptions, start: float, say: Callable[[str], None]) -> int:
    """Samples of the pass: what the user asks for, or what the rest of the budget allows."""
    if options.samples is not None:
        return options.samples
    slow = time.perf_counter() - start > _SLOW
    pilot = _PILOT // 4 if slow else _PILOT
    settings = replace(measurement.request.settings, samples=pilot)
    before = time.perf_counter()
    probe_gradient(replace(measurement, request=replace(measurement.request, settings=settings), say=None), 1)
    each = (time.perf_counter() - before) / pilot
    spent = time.perf_counter() - start
    limit = options.budget or _BUDGET[0]
    samples = int((limit - spent) / each) // _PILOT * _PILOT
    if samples < _FEWEST and options.budget is None:
        needed = _FEWEST * each + spent
        say(f"{_FEWEST} samples need about {needed:.0f} s in all; --budget SECONDS or --samples N changes that.")
        samples = _FEWEST if needed <= _BUDGET[1] else int((_BUDGET[1] - spent) / each)
    return min(max(samples, _PILOT), _MOST)


def doctor_frame(
    measurement: Measurement, measured: Sequence[Measured], variance: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Write measurements as rows.

    Args:
        measurement: What they are about.
        measured: Measurements of the doctor.
        variance: Table `variance` of the same pass; None without one.

    Returns:
        Table `doctor`.
    """
    rows: Rows = measurement.rows()
    for entry in measured:
        keys = {"layer": "all", "weights": None, "target": None, "batch_size": None, "estimator": None, **entry.keys}
        rows.add(entry.quantity, entry.estimate, entry.box, tail=entry.tail, **keys)
    own = rows.frame()
    if variance is None:
        return conform("doctor", own)
    copied = variance[variance["quantity"].isin(COPIED) & variance["r_low"].isna()]
    copied = copied[[name for name in own if name in copied]]
    return conform("doctor", pd.concat([own, copied], ignore_index=True))


def _spike(candidate: Candidate) -> Spike | None:
    """The stored batch of a spike, examined."""
    batch = stored_batch(candidate.loaded.path)
    return None if batch is None else examine_batch(candidate.subject.module, candidate.subject.path, batch)
