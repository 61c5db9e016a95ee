"""A layer without any gradient."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]


def _rule(evidence: Evidence) -> Detection | None:
    silent = [value for value in evidence.values("variance_share", by="layer") if value.value == 0]
    moved = evidence.get("weight_distance")
    if moved is not None and moved.value > 0:  # what the optimizer never changes equals its average
        silent += [value for value in evidence.values("weight_distance", by="layer") if value.value == 0]
    if not silent:
        return None
    names = ", ".join(str(value.keys["layer"]) for value in silent[:3])
    return Detection(
        "warning",
        f"{len(silent)} parameters have no gradient, or equal their average exactly: {names}.",
        silent[:3],
        {"variance_share": "above 0"},
        where=names,
        strength=2.0,
    )


FINDING = Finding(
    "layer_not_trained",
    "Layers receive no gradient",
    ("variance_share",),
    _rule,
    "They stay as they were initialized.",
    "docs/theory.md#moments",
    remedies=("unfreeze",),
)
