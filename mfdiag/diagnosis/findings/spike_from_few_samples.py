"""A stored spike whose gradient comes from a few samples of its batch."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence, Value
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_MOST = 0.5  # share of the squared gradient norm that three samples carry


def _rule(evidence: Evidence) -> Detection | None:
    if evidence.spike is None:
        return None
    largest = evidence.spike.largest()
    total = sum(share for _, share, _, _ in largest)
    n = len(evidence.spike.share)
    if total < max(_MOST, 9 / n):  # three of very few samples always carry much
        return None
    names = [f"sample {k} ({share:.0%}, r {r:.2f}, t {t:.2f})" for k, share, r, t in largest]
    return Detection(
        "warning",
        f"Three of the batch's {n:,} samples carry {total:.0%} of the squared gradient norm.",
        [Value("batch_share", total, total, total, "ok", n)],
        {"batch_share": f"about {3 / n:.0%} if all were equal"},
        where=", ".join(names),
        strength=total / _MOST,
    )


FINDING = Finding(
    "spike_from_few_samples",
    "The spike comes from a few samples of its batch",
    (),
    _rule,
    "Their times and data say where the target or the data are extreme. The weights themselves may be in order.",
    "the batch that the monitor stored",
    remedies=("clip", "weight_half", "check_data", "mix_tangent"),
)
