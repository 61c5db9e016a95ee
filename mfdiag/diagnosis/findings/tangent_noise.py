"""Noise of the conditional tangent that a proxy removes."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_WORTHWHILE = 0.8  # error left
_NO_EFFECT = 1.0


def _rule(evidence: Evidence) -> Detection | None:
    left = evidence.get("mse_ratio", estimator="plane")
    if left is None or not left.below(_WORTHWHILE):
        return None
    best = evidence.get("tangent_optimum")
    return Detection(
        "note",
        f"The conditional velocity as tangent adds noise that can be removed: the best mixture leaves {left.value:.0%} "
        f"of the error of a batch of {evidence.facts.batch_size:,}.",
        [left] if best is None else [left, best],
        {"mse_ratio": "1 with MeanFlow's tangent"},
        strength=_NO_EFFECT / max(left.high, 1e-6),
    )


FINDING = Finding(
    "tangent_noise",
    "The tangent's noise can be removed",
    ("mse_ratio",),
    _rule,
    "The derivative along v_c multiplies its noise by du/dx. A velocity that depends on x_t alone has none.",
    "arXiv 2605.09235; docs/theory.md#batch-aware",
    remedies=("mix_tangent", "mix_target", "transport", "larger_batch"),
)
