"""r and t are passed in the wrong order."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.findings._convention import convention_finding
from mfdiag.diagnosis.findings._targets import closest_target

__all__ = ["FINDING"]

_RATIO = 0.1  # of the defects of another target's identity and MeanFlow's


def _other_target(evidence: Evidence) -> bool:
    """Whether the network, as declared, satisfies the identity of another target: then its intervals are wrong too."""
    closest = closest_target(evidence)
    error = evidence.of_weights("velocity_error")
    known = error is None or error.below(evidence.usual("velocity_error").high)
    return known and closest is not None and closest.below(_RATIO)


FINDING = convention_finding(
    "times_swapped",
    "r and t are passed in the wrong order",
    "Every number that depends on the interval is computed at another one.",
    lambda changes, times: "times" in changes and set(changes["times"]) == set(times),
    unless=_other_target,
)
