"""A target at r = t that is not the velocity."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_EXPLAINED = 0.15  # fraction of the output that two coefficients may leave
_LEARNED = 0.7  # size of a coefficient that was learned
_OFF = 0.6  # difference to 1 that is wrong


def _rule(evidence: Evidence) -> Detection | None:
    names = ("data_coefficient", "noise_coefficient", "unexplained_output")
    data, noise, left = (evidence.of_weights(name) for name in names)
    if data is None or noise is None or left is None or not left.below(_EXPLAINED):
        return None
    off = [value for value in (data, noise) if value.below(1 - _OFF) or value.above(1 + _OFF)]
    learned = any(value.above(_LEARNED) or value.below(-_LEARNED) for value in (data, noise))
    if not off or not learned:
        return None
    return Detection(
        "critical",
        f"At r = t the network returns {data.value:.2g} times the data's part of the velocity and {noise.value:.2g} "
        "times the noise's.",
        [data, noise],
        {"data_coefficient": "1", "noise_coefficient": "1"},
        strength=1 + max(abs(value.value - 1) for value in off) / _OFF,
    )


FINDING = Finding(
    "wrong_target",
    "The target is not the velocity",
    ("data_coefficient", "noise_coefficient", "unexplained_output"),
    _rule,
    "The network has learned a fixed combination of data and noise that is not dx_t/dt: the target uses other noise or "
    "data than x_t does, or has a wrong factor.",
    "docs/theory.md#notation",
    remedies=("target_code",),
    explains=("underfit", "untrained", "step_size_too_large", "intervals_not_learned", "interval_factor_missing"),
)
