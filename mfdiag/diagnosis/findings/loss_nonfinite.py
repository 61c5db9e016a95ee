"""A loss that became NaN or infinite."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence, Value
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]


def _rule(evidence: Evidence) -> Detection | None:
    step = None if evidence.log is None else evidence.log.first_nonfinite()
    if step is None:
        return None
    return Detection(
        "critical",
        f"The logged loss is not finite from step {step:,} on.",
        [Value("first_nonfinite_step", step, step, step, "ok", 1)],
        where=f"step {step:,}",
        strength=10.0,
    )


FINDING = Finding(
    "loss_nonfinite",
    "The loss became NaN or infinite",
    (),
    _rule,
    "From there on every step writes NaN into the weights, unless it is skipped.",
    "the training log",
    remedies=("earlier_checkpoint", "clip", "smaller_step"),
)
