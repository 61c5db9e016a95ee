"""One layer has most of the gradient variance."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_SMALL = 0.5  # fraction of the parameters above which a layer is most of the network


def _rule(evidence: Evidence) -> Detection | None:
    largest, usual = evidence.largest("variance_share", "layer"), evidence.usual("variance_share")
    if largest is None or not largest.above(usual.high):
        return None
    parameters = evidence.facts.parameters
    size = parameters.get(str(largest.keys["layer"]), 0) / max(sum(parameters.values()), 1)
    if size > _SMALL:
        return None
    return Detection(
        "warning",
        f"It has {largest.value:.0%} of the gradient variance and {size:.0%} of the parameters.",
        [largest],
        {"variance_share": f"below {usual.high:.0%}"},
        where=largest.where,
        strength=largest.low / usual.high,
    )


FINDING = Finding(
    "one_layer_dominates",
    "One layer has almost all of the gradient variance",
    ("variance_share",),
    _rule,
    "Clipping and learning rate follow this layer; the others train as if their step size were far smaller.",
    "bundled table of healthy models",
    remedies=("clip", "smaller_step"),
)
