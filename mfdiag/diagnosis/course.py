"""Several checkpoints of one run: which numbers changed, and from which step on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mfdiag.numbers import plain

__all__ = ["Change", "changes"]

_WATCHED = {
    "tail_index": "The tail index of the gradient",
    "critical_batch": "The batch above which the proxy is too biased",
    "tangent_optimum": "The best tangent coefficient",
    "velocity_error": "The velocity error",
    "interval_defect": "The interval defect",
    "variance": "The gradient variance",
    "top1_share": "The share of the largest 1 % of samples",
}
_STATUSES = ("ok", "heavy_tail", "outside_unit_interval")  # a heavy tail is itself what may have begun


@dataclass(frozen=True)
class Change:
    """A number that changed for good.

    Attributes:
        quantity: A quantity of table `doctor`.
        before: Its value at the last checkpoint without the change.
        after: Its value at the first one with it.
        step_before: Step of the former.
        step: Step of the latter.
    """

    quantity: str
    before: float
    after: float
    step_before: int
    step: int

    def sentence(self) -> str:
        """When it began, in words."""
        direction = "rises" if self.after > self.before else "falls"
        return (
            f"{_WATCHED[self.quantity]} {direction} from {plain(self.before, 3)} to {plain(self.after, 3)} between "
            f"steps {self.step_before:,} and {self.step:,}."
        )

    def record(self) -> dict[str, Any]:
        """As doctor.json holds it."""
        return {**vars(self), "sentence": self.sentence()}


def changes(frame: pd.DataFrame) -> list[Change]:
    """Find what changed over the checkpoints of one run.

    A number changed at a checkpoint if its interval, and those of all later ones, lie on one side of the intervals of
    all earlier checkpoints.

    Args:
        frame: Table `doctor` of checkpoints with different steps.

    Returns:
        One change for each quantity that has some, the largest factor first.
    """
    rows = frame[frame["layer"].eq("all") & frame["t_low"].isna() & frame["step"].notna()]
    rows = rows[rows["weights"].isna() | rows["weights"].eq("raw")]
    rows = rows[rows["estimator"].isna() | rows["estimator"].isin(["meanflow", "ema_tangent", "self_tangent"])]
    rows = rows[rows["status"].isin(_STATUSES)]
    ordered = []
    for quantity in _WATCHED:
        part = rows[rows["quantity"].eq(quantity)]
        first = str(part["estimator"].iloc[0]) if len(part) else ""
        part = part[part["estimator"].isna() | part["estimator"].eq(first)]
        part = part.sort_values("step").drop_duplicates("step")
        change = _first_change(quantity, part.to_dict("records"))
        if change is not None:
            ordered.append(change)
    return sorted(ordered, key=_factor, reverse=True)


def _first_change(quantity: str, rows: Sequence[Any]) -> Change | None:
    """The change with the largest factor between consecutive checkpoints."""
    candidates = []
    for k in range(1, len(rows)):
        earlier, later = rows[:k], rows[k:]
        above = min(row["ci_low"] for row in later) > max(row["ci_high"] for row in earlier)
        below = max(row["ci_high"] for row in later) < min(row["ci_low"] for row in earlier)
        if above or below:
            before, after = rows[k - 1], rows[k]
            candidates.append(
                Change(quantity, before["value"], after["value"], int(before["step"]), int(after["step"]))
            )
    return max(candidates, key=_factor, default=None)


def _factor(change: Change) -> float:
    """By how much the number changed, as a factor above 1."""
    small, large = sorted((abs(change.before), abs(change.after)))
    return large / max(small, 1e-300)
