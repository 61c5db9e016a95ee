"""A network that explains nothing."""

from __future__ import annotations

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding

__all__ = ["FINDING"]

_EARLY = 500  # steps


def _rule(evidence: Evidence) -> Detection | None:
    skill = evidence.of_weights("skill")
    bound = min(evidence.usual("skill").low, 0.0)  # 0 is the best linear map
    if skill is None or not skill.below(bound):
        return None
    step = evidence.facts.step
    early = step is not None and step < _EARLY
    return Detection(
        "warning" if early else "critical",
        f"It denoises worse than a linear map by {-skill.value:.0%}" + (f" after {step:,} steps." if step else "."),
        [skill],
        {"skill": f"above {bound:.2g}"},
        strength=1 + (bound - skill.high),
    )


FINDING = Finding(
    "untrained",
    "The network has not learned the data",
    ("skill",),
    _rule,
    "It explains less than a linear denoiser in every convention that was tried. Its gradients say little about a "
    "trained model's.",
    "docs/theory.md#conventions",
    remedies=("train_longer", "convention"),
    explains=("underfit", "intervals_not_learned", "short_ema", "one_layer_dominates", "layer_not_trained"),
)
