"""Weights that fit into half precision."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence, Value
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_BITS = {"bfloat16": 8.0, "float16": 11.0}


def _rule(evidence: Evidence) -> Detection | None:
    precision = evidence.facts.precision
    if precision not in _BITS:
        return None
    bits = _BITS[precision]
    trained = evidence.get("weight_distance") is not None  # released weights have no average beside them
    return Detection(
        "warning" if trained else "note",
        f"Every weight is exact in {precision}: an update below one part in {2**bits:.0f} of a weight is lost.",
        [Value("precision_bits", bits, bits, bits, "ok", sum(evidence.facts.parameters.values()))],
        {"precision_bits": "24 in float32"},
    )


FINDING = Finding(
    "reduced_precision",
    "Weights are kept in half precision",
    (),
    _rule,
    "Most steps of an optimizer are smaller than that, so training stalls. For inference alone this is usual.",
    "IEEE 754; bfloat16 has 8 significant bits",
    remedies=("full_precision",),
)
