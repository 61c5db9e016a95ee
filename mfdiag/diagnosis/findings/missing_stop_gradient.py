"""The gradient flows through the target."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding
from mfdiag.diagnosis.findings._targets import LEARNED, reversed_position_part, reversed_time_part
from mfdiag.diagnosis.findings._updates import refuted, through_target
from mfdiag.diagnosis.update_probe import THROUGH

__all__ = ["FINDING"]

_SMALLER = 0.95  # of the least Jacobian among healthy models


def _rule(evidence: Evidence) -> Detection | None:
    size = evidence.of_weights("jacobian_size")
    defect = evidence.of_weights("target_defect", target="meanflow")
    if size is None or defect is None:
        return None
    usual, identity = evidence.usual("jacobian_size"), evidence.usual("target_defect", "meanflow")
    learned, small = evidence.learned(LEARNED), size.below(_SMALLER * usual.low)
    expected = {"target_coefficient": "above 0", "jacobian_size": f"above {usual.low:.2g}"}
    by_update = through_target(evidence)
    if by_update is not None or refuted(evidence, THROUGH):
        return by_update
    time = reversed_time_part(evidence)
    if time is not None and (learned or (small and evidence.facts.guidance is None)):
        return Detection(
            "critical",
            f"du/dt enters the target with the factor {time.value:.2g}, not 1, which no other tangent explains: the "
            "training made its own target easy.",
            [time, size, defect],
            expected,
            strength=3.0 - time.high,
        )
    if not learned or not small or not defect.above(identity.high) or reversed_position_part(evidence):
        return None
    return Detection(
        "critical",
        f"|(t - r) du/dx - 1|^2, by which the tangent's noise enters the loss, is {size.value:.2g}, and MeanFlow's "
        f"identity fails by {defect.value:.2g}: the training made its own target less noisy.",
        [size, defect],
        expected | {"target_defect": f"below {identity.high:.2g}"},
        strength=min(usual.low / size.high, defect.low / identity.high),
    )


FINDING = Finding(
    "missing_stop_gradient",
    "The gradient flows through the target",
    ("jacobian_size", "target_defect"),
    _rule,
    "Without the stop-gradient the network also learns to make its own target easy: it prefers fields of little noise "
    "to the right one.",
    "arXiv 2605.09235, Theorem 3; docs/theory.md#semi-gradient-gap",
    remedies=("stop_gradient",),
    explains=("intervals_not_learned", "underfit", "untrained", "tangent_noise", "derivative_noise"),
)
