"""A network that explains nothing."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_EARLY = 500  # steps


def _rule(evidence: Evidence) -> Detection | None:
    learned = evidence.of_weights("learned_share")
    if learned is None or not evidence.untrained:
        return None
    bound = evidence.least_learned
    step = evidence.facts.step
    early = step is not None and step < _EARLY
    return Detection(
        "warning" if early else "critical",
        f"It has learned {max(learned.value, 0):.0%} of what a linear map explains"
        + (f" after {step:,} steps." if step else "."),
        [learned],
        {"learned_share": f"above {bound:.2g}"},
        strength=1 + (bound - learned.high),
    )


FINDING = Finding(
    "untrained",
    "The network has not learned the data",
    ("learned_share",),
    _rule,
    "It explains less than a linear denoiser in every convention that was tried. Its gradients say little about a "
    "trained model's.",
    "docs/theory.md#conventions",
    remedies=("train_longer", "convention"),
    explains=(
        "underfit",
        "interval_ignored",
        "intervals_not_learned",
        "short_ema",
        "one_layer_dominates",
        "layer_not_trained",
    ),
)
