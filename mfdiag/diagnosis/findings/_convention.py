"""What the findings about conventions share: another reading of the file explains it better, beyond doubt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mfdiag.diagnosis.evidence import Evidence, Value
from mfdiag.diagnosis.finding import Detection, Finding
from mfdiag.measures.conventions.race import Misfit
from mfdiag.measures.conventions.verdict import axes_in_words

__all__ = ["convention_finding"]

_FOLLOWS = (
    "untrained",
    "underfit",
    "intervals_not_learned",
    "wrong_tangent",
    "reversed_derivative",
    "interval_factor_missing",
    "step_size_too_large",
    "stale_ema",
    "exploding_derivative",
    "heavy_tail",
    "few_samples_dominate",
    "derivative_noise",
    "tangent_noise",
    "label_dropout_missing",
    "one_layer_dominates",
    "proxy_biased",
    "noise_dominates_batch",
    "missing_stop_gradient",
    "diverged",
    "wrong_target",
    "times_not_covered",
    "guidance_mismatch",
    "labels_ignored",
    "outliers_in_data",
)  # measured in the wrong convention, these say nothing


_EXACTLY = 0.1  # fraction of the output that its two parts leave
_LITTLE = 0.2  # of a part


def convention_finding(
    code: str,
    title: str,
    why: str,
    applies: Callable[[Mapping[str, Any], Sequence[str]], bool],
    unless: Callable[[Evidence], bool] = lambda evidence: False,
) -> Finding:
    """A finding about one axis of the convention.

    Args:
        code: Its code.
        title: What is wrong.
        why: Why it matters.
        applies: Whether the changes of the best reading, by axis, are of this kind; takes the declared times too.
        unless: Whether something else explains the file better.

    Returns:
        The finding.
    """

    def rule(evidence: Evidence) -> Detection | None:
        verdict = evidence.verdict
        if verdict is None or not verdict.refuted or verdict.best is None:
            return None
        changes = verdict.best.reading.changes(verdict.declared.reading)
        if not applies(changes, verdict.declared.reading.times) or unless(evidence):
            return None
        if _data_alone(evidence) or (_labels_are_read_right(evidence) and "sign" not in changes):
            return None
        declared, best = _misfits(verdict.declared, verdict.best, verdict.defects)
        summary = (
            f"With {axes_in_words(verdict.best.reading, verdict.declared.reading)}, the {declared.quantity} is "
            f"{best.value:.2g} instead of {declared.value:.2g}."
        )
        strength = declared.value / max(best.value, 1e-9)
        return Detection("critical", summary, [declared, best], strength=strength)

    return Finding(
        code, title, (), rule, why, "docs/theory.md#conventions", remedies=("convention",), explains=_FOLLOWS
    )


def _data_alone(evidence: Evidence) -> bool:
    """Whether the output is the data's part of the velocity: no convention has that, but a target with other noise."""
    names = ("data_coefficient", "noise_coefficient", "unexplained_output")
    data, noise, left = (evidence.of_weights(name) for name in names)
    if data is None or noise is None or left is None or not left.below(_EXACTLY):
        return False
    return data.above(0.7) and data.below(1.3) and noise.above(-_LITTLE) and noise.below(_LITTLE)


def _labels_are_read_right(evidence: Evidence) -> bool:
    """Whether the velocity with a label is right up to its sign, so that the null label alone is wrong.

    Under guidance the convention is tried on the null label.
    """
    explained = evidence.of_weights("label_explained")
    if explained is None or evidence.facts.guidance is None or not evidence.untrained:
        return False
    return explained.above(evidence.usual("label_explained").low / 2)


def _misfits(declared: Misfit, best: Misfit, defects: tuple[float, float] | None) -> tuple[Value, Value]:
    """The number that decided, as declared and for the best reading."""
    name = "misfit" if defects is None else "defect of the longest intervals"
    values = (declared.total, best.total) if defects is None else defects
    n = len(declared.velocity)
    own, other = (Value(name, value, value, value, "ok", n) for value in values)
    return own, other
