"""Spikes in the training log."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence, Value
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_MANY = 3


def _rule(evidence: Evidence) -> Detection | None:
    spikes = () if evidence.log is None else evidence.log.spikes()
    if not spikes:
        return None
    count = float(len(spikes))
    return Detection(
        "warning" if len(spikes) >= _MANY else "note",
        f"The logged loss spikes {len(spikes)} times, first at step {spikes[0]:,}.",
        [Value("loss_spikes", count, count, count, "ok", len(spikes))],
        {"loss_spikes": "0"},
        where=", ".join(f"step {step:,}" for step in spikes[:3]),
    )


FINDING = Finding(
    "loss_spikes",
    "The loss spikes",
    (),
    _rule,
    "A few samples with very large gradients throw the weights out, if the tail of the gradient is heavy.",
    "the training log",
    remedies=("clip", "smaller_step", "weight_half"),
)
