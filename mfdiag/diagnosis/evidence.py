"""What the doctor knows of a checkpoint: measurements, facts of the file, and what healthy models have."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, NamedTuple

import pandas as pd

from mfdiag.diagnosis.spike import Spike
from mfdiag.diagnosis.training_log import TrainingLog
from mfdiag.measures.conventions.verdict import Verdict

__all__ = ["TRUSTED", "Evidence", "Facts", "Healthy", "Value", "healthy", "time_words"]

TRUSTED = ("ok", "outside_unit_interval")
"""Statuses of numbers whose interval can be relied on."""

_LEAST_LEARNED = 0.75  # of what healthy models have learned of a linear map
_NORMALIZING = 0.75  # power of the adaptive weight


class Healthy(NamedTuple):
    """Values of one quantity over healthy models (`python benchmarks/doctor.py healthy`).

    Attributes:
        models: Number of models.
        low: Their 1 % quantile.
        median: Their median.
        high: Their 99 % quantile.
    """

    models: int
    low: float
    median: float
    high: float


@cache
def _healthy_table() -> Mapping[tuple[str, str], Healthy]:
    text = files("mfdiag.data").joinpath("healthy.csv").read_text(encoding="utf-8")
    return {
        (row["quantity"], row["target"]): Healthy(
            int(row["models"]), float(row["low"]), float(row["median"]), float(row["high"])
        )
        for row in csv.DictReader(text.splitlines())
    }


def healthy(quantity: str, target: str = "") -> Healthy:
    """What healthy models have.

    Args:
        quantity: A quantity of table `doctor`.
        target: Its key `target`, empty where that is null; or times in words, for a bin of t.

    Returns:
        The distribution.

    Raises:
        KeyError: The bundled table has no such row.
    """
    return _healthy_table()[quantity, target]


class Value(NamedTuple):
    """One row of table `doctor`.

    Attributes:
        quantity: Its quantity.
        value: The estimate.
        low: Lower end of its 95 % interval.
        high: Upper end.
        status: Status of the row.
        n_samples: Samples behind it.
        where: Layer, times and other keys in words; empty for the whole network over all times.
        keys: The same as columns.
    """

    quantity: str
    value: float
    low: float
    high: float
    status: str
    n_samples: int
    where: str = ""
    keys: Mapping[str, Any] = {}

    @property
    def trusted(self) -> bool:
        """Whether the interval can be relied on."""
        return self.status in TRUSTED and math.isfinite(self.value)

    def above(self, bound: float) -> bool:
        """Whether the whole interval is above a bound."""
        return self.trusted and self.low > bound

    def below(self, bound: float) -> bool:
        """Whether the whole interval is below a bound."""
        return self.trusted and self.high < bound


@dataclass(frozen=True)
class Facts:
    """What the file and the options say.

    Attributes:
        checkpoint: Name of the checkpoint.
        step: Optimizer steps taken; None if unknown.
        parameters: Number of trained parameters by layer.
        ema_decay: Decay of the averaged weights; None if unknown.
        batch_size: Samples per step.
        batch_size_known: Whether the file or the user says so.
        weighting_power: p of the adaptive weight; None if unknown.
        guidance: Name of the guidance in the objective, or None.
        weights: Which weights are measured.
        tangent: The estimator whose tangent stands for the proxy's.
        nonfinite: Names of tensors with NaN or infinite values.
        precision: The narrowest type that holds every weight exactly.
        guidance_scale: How far the declared guidance takes the velocity with a label; None without guidance.
        exact: Whether the exact posterior over the data was computed.
        no_gradient: Why no gradient was measured; empty where one was.
    """

    checkpoint: str
    step: int | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)
    ema_decay: float | None = None
    batch_size: int = 256
    batch_size_known: bool = False
    weighting_power: float | None = None
    guidance: str | None = None
    weights: str = "raw"
    tangent: str = "self_tangent"
    nonfinite: Sequence[str] = ()
    precision: str = "float32"
    guidance_scale: float | None = None
    exact: bool = False
    no_gradient: str = ""


@dataclass(frozen=True)
class Evidence:
    """Everything that findings judge.

    Attributes:
        facts: What the file says.
        frame: Table `doctor` of this checkpoint.
        samples: Table `samples` of its pass; None without one.
        verdict: Which convention explains the file; None where that cannot be told.
        log: The training log, if the user passed one.
        spike: The batch that a monitor stored with the file.
    """

    facts: Facts
    frame: pd.DataFrame
    samples: pd.DataFrame | None = None
    verdict: Verdict | None = None
    log: TrainingLog | None = None
    spike: Spike | None = None

    @property
    def normalized(self) -> bool:
        """Whether each sample's loss is its residual divided by itself, so that easy samples count most."""
        power = self.facts.weighting_power
        return (power is not None and power >= _NORMALIZING) or (self.log is not None and self.log.pinned() is not None)

    @property
    def least_learned(self) -> float:
        """The share of a linear map below which a network counts as untrained."""
        return _LEAST_LEARNED * self.usual("learned_share").low

    @property
    def untrained(self) -> bool:
        """Whether the network denoises worse than a linear map, and has learned clearly less of it than healthy ones.

        The first alone says little where the best denoiser is nearly linear, the second where the data have outliers.
        """
        skill, learned = self.of_weights("skill"), self.of_weights("learned_share")
        worse = skill is not None and skill.below(0.0)
        return worse and learned is not None and learned.below(self.least_learned)

    def learned(self, most: float) -> bool:
        """Whether the velocity error is below `most`; where it is not known, whether the network is not untrained."""
        error = self.of_weights("velocity_error")
        return not self.untrained if error is None else error.below(most)

    def usual(self, quantity: str, target: str = "") -> Healthy:
        """What healthy models have, with those whose loss is normalized, or which are guided, where this one is.

        Under guidance the velocity is that with the null label, which few samples train.

        Args:
            quantity: A quantity of table `doctor`.
            target: Its key `target`, empty where that is null.

        Returns:
            The distribution.

        Raises:
            KeyError: The bundled table has no such row.
        """
        usual = healthy(quantity, target)
        groups = {"p1": self.normalized, "guided": self.facts.guidance is not None}
        for group in (name for name, own in groups.items() if own):
            other = _healthy_table().get((quantity, f"{target}/{group}"))
            if other is not None:
                usual = usual._replace(low=min(usual.low, other.low), high=max(usual.high, other.high))
        return usual

    def values(self, quantity: str, *, by: str | None = None, **keys: Any) -> list[Value]:
        """Rows of a quantity.

        Args:
            quantity: A quantity of table `doctor`.
            by: "layer" for one row per layer, "time" for one per bin; None for those over everything.
            **keys: Values of key columns, None for null.

        Returns:
            The rows.
        """
        return [
            _value(row)
            for row in self._rows.get(quantity, ())
            if (row["layer"] == "all") != (by == "layer")
            and pd.isna(row["t_low"]) != (by == "time")
            and all(pd.isna(row[name]) if value is None else row[name] == value for name, value in keys.items())
        ]

    @cached_property
    def _rows(self) -> Mapping[str, Sequence[Mapping[Any, Any]]]:
        """Rows by quantity: findings ask for hundreds, and each selection from a frame takes a millisecond."""
        return {str(name): rows.to_dict("records") for name, rows in self.frame.groupby("quantity", observed=True)}

    def get(self, quantity: str, **keys: Any) -> Value | None:
        """The row of a quantity over everything; None where there is none."""
        values = self.values(quantity, **keys)
        return values[0] if values else None

    def of_weights(self, quantity: str, weights: str | None = None, **keys: Any) -> Value | None:
        """The row of a quantity for a set of weights, by default the measured one."""
        return self.get(quantity, weights=weights or self.facts.weights, **keys)

    def largest(self, quantity: str, by: str, **keys: Any) -> Value | None:
        """The row of largest value among layers or times that can be relied on."""
        trusted = [value for value in self.values(quantity, by=by, **keys) if value.trusted]
        return max(trusted, key=lambda value: value.value, default=None)

    def largest_samples(self, count: int = 3) -> str:
        """The samples with the largest gradients, with their times, in words; empty without table `samples`."""
        if self.samples is None:
            return ""
        rows = self.samples[self.samples["quantity"].eq("grad_norm2") & self.samples["estimator"].eq("meanflow")]
        rows = rows.nlargest(count, "value")
        names = [
            f"{row.index_} (r {row.r:.2f}, t {row.t:.2f})"
            for row in rows.rename(columns={"index": "index_"}).itertuples()
        ]
        return f"samples {', '.join(names)}" if names else ""


def time_words(low: float, high: float) -> str:
    """Which times a row is about, as `healthy` names them; empty for all."""
    return "" if math.isnan(low) else f"t in [{low:g}, {high:g}]"


def _value(row: Mapping[Any, Any]) -> Value:
    keys = {name: row[name] for name in ("weights", "target", "estimator", "batch_size") if not pd.isna(row[name])}
    parts = [] if row["layer"] == "all" else [f"layer {row['layer']}"]
    if not pd.isna(row["t_low"]):
        parts.append(time_words(row["t_low"], row["t_high"]))
    value, low, high = (float(row[name]) for name in ("value", "ci_low", "ci_high"))
    keys |= {} if row["layer"] == "all" else {"layer": row["layer"]}
    return Value(row["quantity"], value, low, high, row["status"], int(row["n_samples"]), ", ".join(parts), keys)
