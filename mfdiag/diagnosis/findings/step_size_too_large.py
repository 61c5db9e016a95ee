"""Steps that are too large: weights far noisier than their average, or far larger than activations need."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]


_FACTOR = 1.4  # times the largest weights of healthy models


def _rule(evidence: Evidence) -> Detection | None:
    gain, usual = evidence.get("average_gain"), evidence.usual("average_gain")
    if gain is None or not gain.above(usual.high):
        return _large_weights(evidence)
    return Detection(
        "warning",
        f"Averaging the weights removes {gain.value:.0%} of the velocity's error: the last steps only add noise.",
        [gain],
        {"average_gain": f"below {usual.high:.2g}"},
        strength=(1 - usual.high) / max(1 - gain.low, 1e-6),
    )


def _large_weights(evidence: Evidence) -> Detection | None:
    """Adam's steps grow weights by the learning rate, whatever the gradient. A long training may, too, but learns."""
    size, usual = evidence.get("weight_scale"), evidence.usual("weight_scale")
    error, normal = evidence.of_weights("velocity_error"), evidence.usual("velocity_error").median
    if size is None or error is None or not size.above(_FACTOR * usual.high) or not error.above(normal):
        return None
    return Detection(
        "warning",
        f"The weights are {size.value:.2g} times as large as activations need, and the velocity error is "
        f"{error.value:.2g}.",
        [size, error],
        {"weight_scale": f"below {usual.high:.2g}", "velocity_error": f"about {normal:.2g}"},
        strength=size.value / usual.high,
    )


FINDING = Finding(
    "step_size_too_large",
    "The step size is too large",
    ("average_gain", "weight_scale"),
    _rule,
    "The weights bounce around the minimum: gradient noise times the step size exceeds what the curvature pulls back.",
    "bundled table of healthy models",
    remedies=("smaller_step", "larger_batch", "update_average"),
    explains=("underfit",),
)
