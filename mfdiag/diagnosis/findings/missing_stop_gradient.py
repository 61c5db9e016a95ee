"""The gradient flows through the target."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_RATIO = 0.2


def _rule(evidence: Evidence) -> Detection | None:
    ratio = evidence.get("full_gradient_ratio")
    if ratio is None or not ratio.below(_RATIO):
        return None
    return Detection(
        "critical",
        f"The mean gradient with the target's own part is {max(ratio.value, 0):.2g} times MeanFlow's in squared norm: "
        "the training came to rest where the loss without stop-gradient does.",
        [ratio],
        {"full_gradient_ratio": "above 1"},
        strength=_RATIO / max(ratio.high, 1e-3),
    )


FINDING = Finding(
    "missing_stop_gradient",
    "The gradient flows through the target",
    ("full_gradient_ratio",),
    _rule,
    "Without the stop-gradient the network also learns to make its own target easy: it prefers fields of little noise "
    "to the right one.",
    "arXiv 2605.09235, Theorem 3; docs/theory.md#semi-gradient-gap",
    remedies=("stop_gradient",),
    explains=("wrong_tangent", "intervals_not_learned", "underfit", "untrained", "tangent_noise", "derivative_noise"),
)
