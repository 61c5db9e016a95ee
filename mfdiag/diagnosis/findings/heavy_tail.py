"""A gradient whose variance may not exist."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_INFINITE = 1.0  # at or below this tail index of |G|^2, its mean does not exist


def _rule(evidence: Evidence) -> Detection | None:
    tail, usual = evidence.get("tail_index", estimator="meanflow"), evidence.usual("tail_index")
    if tail is None or not tail.below(min(usual.low, _INFINITE)):
        return None
    times = evidence.largest("moment_share", "time")
    return Detection(
        "critical",
        f"The tail index of the squared gradient norm is {tail.value:.2f} [{tail.low:.2f}, {tail.high:.2f}]: its mean "
        "does not exist, and a single sample can undo many steps.",
        [tail] if times is None else [tail, times],
        {"tail_index": f"above {usual.low:.2g}"},
        where=", ".join(filter(None, ["" if times is None else times.where, evidence.largest_samples()])),
        strength=usual.low / max(tail.high, 1e-3),
    )


FINDING = Finding(
    "heavy_tail",
    "A few samples decide each step",
    ("tail_index",),
    _rule,
    "Losses spike, and averages over batches do not settle: a larger batch helps less than its size says.",
    "docs/theory.md#concentration",
    remedies=(
        "clip",
        "weight_half",
        "weight_one",
        "mix_tangent",
        "optimal_times",
        "equal_times",
        "transport",
        "shorter_intervals",
    ),
    explains=("few_samples_dominate",),
)
