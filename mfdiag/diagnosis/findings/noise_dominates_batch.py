"""A batch whose noise hides the signal."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence, healthy
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]


def _rule(evidence: Evidence) -> Detection | None:
    noise, usual = evidence.get("noise_scale", estimator="meanflow"), healthy("noise_scale")
    n = evidence.facts.batch_size
    if noise is None or not evidence.facts.batch_size_known or not noise.above(max(usual.high, 100 * n)):
        return None
    return Detection(
        "note",
        f"Noise and signal are equal at a batch of {noise.value:,.0f}; the batch has {n:,}.",
        [noise],
        {"noise_scale": f"below {usual.high:,.0f}"},
        strength=noise.low / max(usual.high, 100 * n),
    )


FINDING = Finding(
    "noise_dominates_batch",
    "The batch is small against its noise",
    ("noise_scale",),
    _rule,
    "Each step goes mostly in a random direction. Near the end of a training this is normal; early on it is not.",
    "arXiv 1812.06162",
    remedies=("larger_batch", "smaller_step", "mix_tangent"),
)
