"""Which estimators a command measures on a subject, and why others are left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mfdiag.errors import InputError
from mfdiag.estimators import Estimator, estimators, find_estimator

if TYPE_CHECKING:
    from mfdiag.measures.request import Subject

__all__ = ["chosen_estimators", "default_estimators", "left_out_note"]

_LACKING = {
    "ema": "the checkpoint has no EMA weights",
    "head": "the network has no velocity head, a method velocity(x, r, t, labels)",
    "teacher": "no teacher is named by --proxy teacher=PATH",
}


def default_estimators(table: str) -> tuple[str, ...]:
    """Names of the estimators a table is about where none are asked for."""
    return {"compare": ("all",), "times": ("meanflow",)}.get(table, ("meanflow", "ema_tangent"))


def chosen_estimators(
    names: Sequence[str], subject: Subject, table: str
) -> tuple[list[Estimator], dict[str, list[str]]]:
    """The estimators of `names` in their order, each once, and reason -> those that `all` leaves out for it.

    `all` stands for every estimator that can be measured. Raises InputError for one that is named and cannot be, and
    for two that share a name.
    """
    found: dict[str, Estimator] = {}
    absent: dict[str, list[str]] = {}
    for spec in names:
        if spec == "all":
            for estimator in estimators().values():
                if estimator.template:
                    continue
                if (reason := _lacking(estimator, subject, table)) is None:
                    found.setdefault(estimator.name, estimator)
                else:
                    absent.setdefault(reason, []).append(estimator.name)
            continue
        estimator = find_estimator(spec)
        if (reason := _lacking(estimator, subject, table)) is not None:
            raise InputError(f"--estimator {spec} cannot be measured: {reason}; leave it out.")
        if found.setdefault(estimator.name, estimator).formula != estimator.formula:
            raise InputError(f"--estimator {spec} has the name {estimator.name!r} of another one; rename it.")
    return list(found.values()), absent


def left_out_note(reason: str, names: Sequence[str]) -> str:
    """A line that says which estimators are left out."""
    return f"{', '.join(names)} left out: {reason}."


def _lacking(estimator: Estimator, subject: Subject, table: str) -> str | None:
    """Why the estimator cannot be measured on the subject; None where it can."""
    if table in ("variance", "times"):
        if estimator.loss is not None:
            return "its gradient is no cotangent of u(x_t, r, t), which `mfdiag compare` alone measures"
        if "ema" in estimator.needs.networks:  # the run's proxy stands in for missing EMA weights
            return None
    there = {*subject.networks, *(["head"] if hasattr(subject.module, "velocity") else [])}
    for name in estimator.needs.networks:
        if name not in there:
            return _LACKING[name]
    if estimator.needs.pair and subject.guidance is not None and subject.guidance.network == "teacher":
        return "it needs the sample's own x_0 and x_1, of which the teacher's velocity does not tell"
    axes = subject.axes
    if estimator.needs.normal and (axes["source"], axes["path"], subject.coupling.dependent) != (
        "gaussian",
        "linear",
        False,
    ):
        return "it needs independent pairs from the source gaussian on the linear path"
    return None
