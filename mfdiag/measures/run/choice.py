"""Which estimators a table measures on a subject, and what a model card says of the objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mfdiag.errors import InputError, did_you_mean
from mfdiag.estimators import DEFAULT_ESTIMATORS, Estimator, estimators, find_estimator
from mfdiag.flow.data.user_data import is_user_data, parse_user_data
from mfdiag.flow.draw import why_posterior_unknown
from mfdiag.flow.sources import GaussianSource
from mfdiag.measures import measured_tables
from mfdiag.measures.run.subject import Subject
from mfdiag.measures.run.table import MeasuredTable
from mfdiag.models.cards.card import Card
from mfdiag.models.cards.card_files import errors_in_field, is_card, load_card
from mfdiag.usercode import code_sha256, is_user_code

__all__ = [
    "card_objective",
    "card_record",
    "choose_estimators",
    "code_record",
    "left_out_note",
    "objective_of",
    "require_known_extras",
]

_LACKING = {
    "ema": "the checkpoint has no EMA weights",
    "head": "the network has no velocity head, a method velocity(x, r, t, labels)",
    "teacher": "no teacher was passed (--proxy teacher=PATH)",
}


_OWN_LOSS = "it has a loss of its own, which only `mfdiag compare` measures"

_PROXY_TANGENTS = {"self": "self_tangent", "teacher": "teacher_tangent", "exact": "plane:1,0"}
"""What is measured by default in place of ema_tangent where there are no EMA weights: the run's proxy as tangent."""


def require_known_extras(extras: Sequence[str]) -> None:
    """InputError, with near names, for an extra that no table measures."""
    known = [extra for table in measured_tables().values() for extra in table.extras]
    for name in extras:
        if name not in known:
            raise did_you_mean("extra", name, known)


def choose_estimators(
    names: Sequence[str], subject: Subject, table: MeasuredTable
) -> tuple[list[Estimator], dict[str, list[str]]]:
    """The estimators that `names` stand for on this subject.

    Args:
        names: Names as on the command line; "all" stands for every estimator that can be measured.
        subject: The network and the distribution of its samples.
        table: The table they are measured for.

    Returns:
        The estimators in the order of `names`, each once; and reason -> names that "all" or the defaults leave out.

    Raises:
        InputError: A named estimator cannot be measured, two share a name, or a table about one estimator got several.
    """
    estimators_by_name: dict[str, Estimator] = {}
    left_out: dict[str, list[str]] = {}
    if "ema" not in subject.networks and set(DEFAULT_ESTIMATORS) <= set(names):
        tangent = _PROXY_TANGENTS[subject.proxy]
        names = [tangent if name == "ema_tangent" else name for name in names]
        left_out[f"{_LACKING['ema']}, so {tangent} is measured instead"] = ["ema_tangent"]
    for spec in names:
        if spec == "all":
            for estimator in estimators().values():
                if estimator.template:
                    continue
                if (reason := _unavailable(estimator, subject, table)) is None:
                    estimators_by_name.setdefault(estimator.name, estimator)
                else:
                    left_out.setdefault(reason, []).append(estimator.name)
            continue
        estimator = find_estimator(spec)
        if (reason := _unavailable(estimator, subject, table)) is not None:
            remedy = f"pass {estimator.alternative}" if estimator.alternative else "leave it out"
            raise InputError(f"--estimator {spec} cannot be measured: {reason}; {remedy}.")
        if estimators_by_name.setdefault(estimator.name, estimator).formula != estimator.formula:
            raise InputError(f"--estimator {spec} has the name {estimator.name!r} of another one; rename it.")
    if table.one_estimator and len(estimators_by_name) != 1:
        raise InputError(
            f"`mfdiag {table.name}` takes one --estimator, but got {', '.join(estimators_by_name) or 'none'}. Pass one."
        )
    return list(estimators_by_name.values()), left_out


def left_out_note(reason: str, names: Sequence[str]) -> str:
    """One line that says which estimators are left out, and why."""
    return f"{', '.join(names)} left out: {reason}."


def _unavailable(estimator: Estimator, subject: Subject, table: MeasuredTable) -> str | None:
    """Why the estimator cannot be measured on the subject; None where it can."""
    if estimator.loss is not None and not table.measures_losses:
        return _OWN_LOSS
    available = {*subject.networks, *(["head"] if hasattr(subject.module, "velocity") else [])}
    for name in estimator.needs.networks:
        if name not in available:
            return _LACKING[name]
    if estimator.needs.pair and subject.guidance is not None and subject.guidance.network == "teacher":
        return "it needs the sample's own x_0 and x_1, which the teacher's velocity does not determine"
    if estimator.needs.same_condition and subject.conditions:
        source = subject.source or GaussianSource(subject.data.shape)
        if reason := why_posterior_unknown(
            subject.data, source, subject.coupling, subject.conditional, subject.guidance, subject.conditions
        ):
            return f"it needs other data that have the sample's condition, but {reason}"
    axes = subject.axes
    if estimator.needs.normal and (axes["source"], axes["path"], subject.coupling.dependent) != (
        "gaussian",
        "linear",
        False,
    ):
        return "it needs independent pairs from the source gaussian on the linear path"
    return None


def card_record(model: str | None) -> dict[str, Any]:
    """The whole card that --model refers to, for the manifest, under "card"; empty where it is no card."""
    return (
        {"card": load_card(model).model_dump(mode="json", by_alias=True)}
        if model is not None and is_card(model)
        else {}
    )


def code_record(model: str | None, data: str | None) -> dict[str, Any]:
    """Hashes of the user's code in --model and --data, for the manifest; empty where neither is code."""
    data = parse_user_data(data).code if data is not None and is_user_data(data) else None
    hashes = {"model_code_sha256": code_sha256(model), "data_code_sha256": code_sha256(data)}
    return {name: digest for name, digest in hashes.items() if digest is not None}


def objective_of(
    model: str | None, table: MeasuredTable, say: Callable[[str], None] = lambda note: None
) -> dict[str, Any]:
    """Option -> value that a model card gives for a command whose --model is a card; empty for any other.

    Args:
        model: The value of --model.
        table: The table that is measured.
        say: Receives why an estimator is left out.

    Returns:
        The options; those that the card does not give are missing.
    """
    return card_objective(load_card(model), table, say) if model is not None and is_card(model) else {}


def card_objective(card: Card, table: MeasuredTable, say: Callable[[str], None] = lambda note: None) -> dict[str, Any]:
    """Option -> value that a model card gives. Its estimator comes before those that are measured by default.

    One that the table cannot measure is left out.

    Args:
        card: The model card.
        table: The table that is measured.
        say: Receives why an estimator is left out.

    Returns:
        The options; those that the card does not give are missing.
    """
    options: dict[str, Any] = {"guidance": card.guidance, **card.objective.model_dump()}
    if options["estimator"] is not None:
        estimator = None
        if not is_user_code(options["estimator"]):
            with errors_in_field(str(card.file), "objective.estimator"):
                estimator = find_estimator(options["estimator"])
        others = () if table.one_estimator else table.default_estimators
        if "estimator" in table.objective and estimator and estimator.loss is not None and not table.measures_losses:
            say(f"the estimator of {card.name}, {estimator.name}, is left out: {_OWN_LOSS}.")
            options["estimator"] = None
        else:
            options["estimator"] = list(dict.fromkeys([options["estimator"], *others]))
    ignored = {"estimator", "weighting"} - set(table.objective)
    return {name: value for name, value in options.items() if value is not None and name not in ignored}
