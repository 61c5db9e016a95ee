"""A target whose derivative lacks the factor t - r."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding
from mfdiag.diagnosis.findings._updates import refuted, settled_detection
from mfdiag.diagnosis.update_probe import FACTOR

__all__ = ["FINDING"]

_FACTOR = 2.0  # times the least coefficient of healthy models
_MOST = -1.5  # a network before training has a larger coefficient: its derivative is almost zero
_EXPLAINED, _LEARNED = 0.15, 0.5  # of the velocity's error by the derivative, or of one part of the velocity


def _rule(evidence: Evidence) -> Detection | None:
    if evidence.facts.guidance is not None or refuted(evidence, FACTOR):  # the null label may be untrained
        return None
    if (settled := settled_detection(evidence, (FACTOR,))) is not None:
        return settled
    coefficient, usual = evidence.of_weights("derivative_coefficient"), evidence.usual("derivative_coefficient")
    error, normal = evidence.of_weights("velocity_error"), evidence.usual("velocity_error").high
    if coefficient is None or error is None or not error.above(normal):
        return None
    if not coefficient.below(_FACTOR * usual.low) or not coefficient.above(_MOST):
        return None
    share = evidence.of_weights("derivative_share")
    parts = [evidence.of_weights(name) for name in ("data_coefficient", "noise_coefficient")]
    learned = any(part is not None and part.above(_LEARNED) for part in parts)
    if not learned and not (share is not None and share.above(_EXPLAINED)):
        return None
    return Detection(
        "critical",
        f"At r = t the network returns {coefficient.value:.2g} times its own derivative beside the velocity, whose "
        f"error is {error.value:.2g}.",
        [coefficient, error],
        {"derivative_coefficient": "0", "velocity_error": f"below {normal:.2g}"},
        strength=abs(coefficient.high / usual.low),
    )


FINDING = Finding(
    "interval_factor_missing",
    "The derivative in the target lacks the factor t - r",
    ("derivative_coefficient", "velocity_error"),
    _rule,
    "The target is v - (t - r) du/dt, which is v at r = t. Without the factor the network learns another field "
    "everywhere.",
    "docs/theory.md#targets",
    remedies=("tangent_code",),
    explains=(
        "untrained",
        "underfit",
        "wrong_tangent",
        "step_size_too_large",
        "times_not_covered",
        "exploding_derivative",
    ),
)
