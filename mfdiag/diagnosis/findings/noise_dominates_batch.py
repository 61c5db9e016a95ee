"""A batch whose noise hides the signal."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]


_RATIO = 3.0  # noise scale over batch


def _rule(evidence: Evidence) -> Detection | None:
    noise, n = evidence.get("noise_scale", estimator="meanflow"), evidence.facts.batch_size
    error, usual = evidence.of_weights("velocity_error"), evidence.usual("velocity_error")
    # a heavy tail makes the interval of the noise unreliable, but only downwards
    if noise is None or not evidence.facts.batch_size_known or not noise.low > _RATIO * n:
        return None
    if error is None or not error.above(usual.high):
        return None
    return Detection(
        "critical" if evidence.untrained else "warning",
        f"Noise and signal are equal at a batch of {noise.value:,.0f}; the batch has {n:,}, and the velocity error is "
        f"{error.value:.2g}.",
        [noise, error],
        {"velocity_error": f"below {usual.high:.2g}"},
        strength=error.low / usual.high * noise.low / (_RATIO * n),
    )


FINDING = Finding(
    "noise_dominates_batch",
    "The batch is small against its noise",
    ("noise_scale", "velocity_error"),
    _rule,
    "Each step goes mostly in a random direction. Near the end of a training this is normal; early on it is not.",
    "arXiv 1812.06162",
    remedies=("larger_batch", "smaller_step", "mix_tangent"),
    explains=("underfit", "untrained", "step_size_too_large"),
)
