"""r and t are passed in the wrong order."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.findings._convention import convention_finding
from mfdiag.diagnosis.findings._targets import least_defect

__all__ = ["FINDING"]


def _other_target(evidence: Evidence) -> bool:
    """Whether the network satisfies another target's identity, as declared, better than MeanFlow's with swapped times.

    Either explains intervals that are wrong although the velocity at r = t is right.
    """
    closest, swapped = least_defect(evidence), evidence.of_weights("swapped_defect")
    return closest is not None and swapped is not None and closest.value < swapped.value


FINDING = convention_finding(
    "times_swapped",
    "r and t are passed in the wrong order",
    "Every number that depends on the interval is computed at another one.",
    lambda changes, times: "times" in changes and set(changes["times"]) == set(times),
    unless=_other_target,
)
