"""A layer whose weights are far larger than those of the others."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_FACTOR = 2.0  # times the largest of healthy models


def _rule(evidence: Evidence) -> Detection | None:
    largest, usual = evidence.largest("layer_weight_scale", "layer"), evidence.usual("layer_weight_scale")
    if largest is None or not largest.above(_FACTOR * usual.high):
        return None
    return Detection(
        "warning",
        f"The weights of {largest.keys['layer']} are {largest.value:.0f} times as large as those of all layers "
        "(geometric mean), each relative to its number of inputs.",
        [largest],
        {"layer_weight_scale": f"below {usual.high:.2g}"},
        where=largest.where,
        strength=largest.value / (_FACTOR * usual.high),
    )


FINDING = Finding(
    "layer_too_large",
    "One layer's weights are far too large",
    ("layer_weight_scale",),
    _rule,
    "Its units are saturated and its gradient dominates: steps of one size hardly change it, and shake the others. It "
    "was initialized on another scale, or added to trained layers without care.",
    "bundled table of healthy models",
    remedies=("initialize_layer", "clip"),
    explains=("one_layer_dominates", "reversed_derivative"),
)
