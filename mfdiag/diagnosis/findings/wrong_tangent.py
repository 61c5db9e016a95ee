"""The derivative in the target is not the one along (v, 0, 1)."""

from __future__ import annotations

from dataclasses import replace

from mfdiag.diagnosis.evidence import Evidence
from mfdiag.diagnosis.finding import Detection, Finding
from mfdiag.diagnosis.findings._targets import CLEARLY, SENTENCES, also_untrained, closest_target, halved_defect
from mfdiag.diagnosis.findings._updates import settled_detection

__all__ = ["FINDING"]


def _rule(evidence: Evidence) -> Detection | None:
    settled = settled_detection(evidence, SENTENCES)
    if settled is not None:
        return replace(settled, title=_title(str(settled.evidence[0].keys["target"])))
    usual = evidence.usual("target_defect", "meanflow")
    own, best = evidence.of_weights("target_defect", target="meanflow"), closest_target(evidence)
    halved = halved_defect(evidence)
    if own is None or best is None or not own.above(usual.median) or not best.below(CLEARLY):
        return None
    if halved is not None and halved < best.value * own.value:  # not another derivative, but less of it
        return None
    return Detection(
        "critical",
        f"The network fits such a target {1 / max(best.value, 1e-6):.0f} times better than MeanFlow's, whose defect is "
        f"{own.value:.2g}.",
        [own, best],
        {"target_defect": f"about {usual.median:.2g}"},
        strength=1 / max(best.high, 1e-6),
        title=_title(str(best.keys["target"])),
    )


def _title(name: str) -> str:
    also = ", or no pair with r < t was trained" if also_untrained(name) else ""
    return f"In the derivative of the target, {SENTENCES[name]}{also}"


FINDING = Finding(
    "wrong_tangent",
    "The derivative in the target is wrong",
    ("target_defect", "target_defect_ratio", "target_preference"),
    _rule,
    "The network learns averages of another field, so one step from noise misses the data. Velocity and loss at r = t "
    "are right all the same.",
    "docs/theory.md#targets",
    remedies=("tangent_code",),
    explains=(
        "reversed_derivative",
        "intervals_not_learned",
        "derivative_noise",
        "exploding_derivative",
        "missing_stop_gradient",
        "wrong_target",
    ),
)
