"""The largest 1 % of samples carry most of the gradient."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]


def _rule(evidence: Evidence) -> Detection | None:
    share, usual = evidence.get("top1_share", estimator="meanflow"), evidence.usual("top1_share")
    # a heavy tail makes the interval unreliable, but only downwards: the share grows with the samples
    if share is None or share.status not in ("ok", "heavy_tail") or not share.low > usual.high:
        return None
    times = evidence.largest("moment_share", "time")
    return Detection(
        "warning",
        f"The largest 1 % of samples carry {share.value:.0%} of the squared gradient norm.",
        [share] if times is None else [share, times],
        {"top1_share": f"below {usual.high:.0%}"},
        where=", ".join(filter(None, ["" if times is None else times.where, evidence.largest_samples()])),
        strength=share.low / usual.high,
    )


FINDING = Finding(
    "few_samples_dominate",
    "The largest 1 % of samples dominate the gradient",
    ("top1_share",),
    _rule,
    "The other 99 % hardly move the weights.",
    "docs/theory.md#concentration",
    remedies=("weight_half", "weight_one", "clip", "optimal_times", "mix_tangent"),
)
