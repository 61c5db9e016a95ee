"""A proxy whose bias exceeds the noise of a batch."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]


def _rule(evidence: Evidence) -> Detection | None:
    critical, n = evidence.get("critical_batch"), evidence.facts.batch_size
    if critical is None or not evidence.facts.batch_size_known or not critical.below(n):
        return None
    return Detection(
        "note",
        f"From a batch of {critical.value:,.0f} on, the bias of the proxy's velocity outweighs the noise it removes. "
        f"The batch has {n:,}.",
        [critical],
        {"critical_batch": f"above {n:,}"},
        strength=n / max(critical.high, 1e-9),
    )


FINDING = Finding(
    "proxy_biased",
    "The proxy's velocity is too biased for this batch",
    ("critical_batch",),
    _rule,
    "A tangent of beta = 1 has less variance, but a wrong mean, which a large batch does not average away.",
    "docs/theory.md#batch-aware",
    remedies=("mix_tangent",),
)
