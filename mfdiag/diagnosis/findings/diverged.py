"""Weights that large steps have thrown far away."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]


_FACTOR = 2.0  # times the largest of healthy models


def _rule(evidence: Evidence) -> Detection | None:
    size, usual = evidence.get("weight_scale"), evidence.usual("weight_scale")
    error, learned = (evidence.of_weights(name) for name in ("velocity_error", "learned_share"))
    wrong = evidence.untrained or (error is not None and error.above(evidence.usual("velocity_error").high))
    if size is None or not wrong or not size.above(_FACTOR * usual.high):
        return None
    return Detection(
        "critical",
        f"The weights are {size.value:.2g} times as large as activations need, and the velocity is wrong.",
        [value for value in (size, error, learned) if value is not None],
        {"weight_scale": f"below {usual.high:.2g}"},
        strength=2 * size.value / usual.high,
    )


FINDING = Finding(
    "diverged",
    "The steps were too large to settle",
    ("weight_scale", "learned_share"),
    _rule,
    "Weights of this size come from steps that overshot, not from slow learning. Units are saturated, so smaller "
    "steps from here on do not bring them back.",
    "bundled table of healthy models",
    remedies=("smaller_step", "earlier_checkpoint", "clip"),
    explains=("underfit", "untrained", "intervals_not_learned", "times_not_covered", "step_size_too_large"),
)
