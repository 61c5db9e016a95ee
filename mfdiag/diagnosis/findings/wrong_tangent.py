"""The derivative in the target is not the one along (v, 0, 1)."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence, healthy
from mfdiag.diagnosis.field_probe import TARGETS
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_SENTENCES = {
    "tangents_swapped": "the tangents of r and t are swapped",
    "velocity_left_out": "v is left out of the tangent",
    "time_left_out": "the derivative by t is left out",
    "derivative_left_out": "the derivative is left out",
    "sign_reversed": "the sign of (t - r) du/dt is reversed",
    "velocity_reversed": "v has the wrong sign in the tangent",
    "both_times_move": "r moves along with t",
}
_RATIO = 0.3  # of a network that explains the velocity; one that has just begun comes to 0.1
_EARLY_RATIO = 0.04
_TRAINED = 0.6  # velocity error


def _rule(evidence: Evidence) -> Detection | None:
    own = evidence.of_weights("target_defect", target="meanflow")
    ratios = [evidence.of_weights("target_defect_ratio", target=name) for name in TARGETS if name != "meanflow"]
    best = min((value for value in ratios if value is not None), key=lambda value: value.value, default=None)
    if own is None or best is None:
        return None
    error = evidence.of_weights("velocity_error")
    trained = error is None or error.below(_TRAINED)
    bound = _RATIO if trained else _EARLY_RATIO
    if not (best.below(bound) and own.above(healthy("target_defect", "meanflow").median)):
        return None
    name = str(best.keys["target"])
    return Detection(
        "critical",
        f"The network fits such a target {1 / best.value:.0f} times better than MeanFlow's, whose defect is "
        f"{own.value:.2g}.",
        [own, best],
        {"target_defect_ratio": "above 1"},
        strength=bound / max(best.value, 1e-6),
        title=f"The derivative in the target is wrong: {_SENTENCES[name]}",
    )


FINDING = Finding(
    "wrong_tangent",
    "The derivative in the target is wrong",
    ("target_defect", "target_defect_ratio"),
    _rule,
    "The network learns averages of another field, so one step from noise does not reach the data. The velocity at "
    "r = t is right all the same, and so is the loss at r = t.",
    "docs/theory.md#targets",
    remedies=("tangent_code",),
    explains=("intervals_not_learned", "derivative_noise", "exploding_derivative", "underfit", "untrained"),
)
