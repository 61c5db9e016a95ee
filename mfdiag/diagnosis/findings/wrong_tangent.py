"""The derivative in the target is not the one along (v, 0, 1)."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding
from mfdiag.diagnosis.findings._targets import SENTENCES, closest_target

__all__ = ["FINDING"]

_FRACTION, _MOST = 0.65, 0.35  # of the least ratio of defects among healthy models, and the greatest bound
_LEARNED = {0.25: 1.0, 0.6: 0.5}  # velocity error -> factor on the bound: u(x_t, t, t) stands for v less and less
_PREFERENCE = 0.35  # so that the ratio is not that of a few samples


def _rule(evidence: Evidence) -> Detection | None:
    usual = evidence.usual("target_defect", "meanflow")
    own = evidence.of_weights("target_defect", target="meanflow")
    best = closest_target(evidence)
    if own is None or best is None or not own.above(usual.median):
        return None
    name = str(best.keys["target"])
    error, preference = evidence.of_weights("velocity_error"), evidence.of_weights("target_preference", target=name)
    factor = max((f for most, f in _LEARNED.items() if error is None or error.below(most)), default=0.0)
    bound = factor * min(_MOST, _FRACTION * evidence.usual("target_defect_ratio", name).low)
    if not best.below(bound) or (preference is not None and not preference.above(_PREFERENCE)):
        return None
    return Detection(
        "critical",
        f"The network fits such a target {1 / best.value:.0f} times better than MeanFlow's, whose defect is "
        f"{own.value:.2g}.",
        [own, best],
        {"target_defect_ratio": f"above {bound:.2g}"},
        strength=1 + bound / max(best.value, 1e-6),
        title=f"In the derivative of the target, {SENTENCES[name]}",
    )


FINDING = Finding(
    "wrong_tangent",
    "The derivative in the target is wrong",
    ("target_defect", "target_defect_ratio"),
    _rule,
    "The network learns averages of another field, so one step from noise misses the data. Velocity and loss at r = t "
    "are right all the same.",
    "docs/theory.md#targets",
    remedies=("tangent_code",),
    explains=(
        "intervals_not_learned",
        "derivative_noise",
        "exploding_derivative",
        "missing_stop_gradient",
        "wrong_target",
    ),
)
