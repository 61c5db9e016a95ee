"""Training logs as evidence: where a loss spikes, stops falling, or is not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.ndimage import median_filter

from mfdiag.diagnosis.log_formats import read_rows
from mfdiag.errors import InputError

__all__ = ["TrainingLog", "read_log"]

_STEPS = ("step", "global_step", "iteration", "iter", "_step", "trainer/global_step", "epoch")
_LOSSES = ("loss", "train_loss", "train/loss", "loss/train", "training_loss")
_WINDOW = 51  # logged points of the running median
_SPIKE = 8.0  # robust standard deviations above the running median
_DENSE = 0.3  # fraction of rows with a loss from which on the others are NaN themselves
_PINNED = 0.05  # relative spread of a loss that does not move


@dataclass(frozen=True)
class TrainingLog:
    """Logged numbers by name.

    Attributes:
        path: The file.
        steps: Step of each row, [n].
        series: Name -> values [n]; NaN where a row has none.
    """

    path: Path
    steps: np.ndarray
    series: Mapping[str, np.ndarray]

    @property
    def loss(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Steps and values of the training loss; None where no column looks like one."""
        lower = {name.lower(): name for name in self.series}
        name = next((lower[key] for key in _LOSSES if key in lower), None)
        name = name or next((lower[key] for key in lower if "loss" in key and "val" not in key), None)
        if name is None:
            return None
        values = self.series[name]
        logged = ~np.isnan(values)
        # a row without a loss has NaN too, but where most rows have one, it is the loss that is NaN
        return (
            (self.steps, values) if logged.mean() > _DENSE or not logged.any() else (self.steps[logged], values[logged])
        )

    def first_nonfinite(self) -> int | None:
        """The step at which the loss is first not finite."""
        if self.loss is None:
            return None
        steps, values = self.loss
        bad = ~np.isfinite(values)
        return int(steps[bad.argmax()]) if bad.any() else None

    def spikes(self) -> Sequence[int]:
        """Steps at which the loss is far above its running median, in robust standard deviations of the logarithm."""
        if self.loss is None:
            return ()
        steps, values = self.loss
        usable = np.isfinite(values) & (values > 0)
        steps, logs = steps[usable], np.log(values[usable])
        if len(logs) < _WINDOW:
            return ()
        residual = logs - median_filter(logs, _WINDOW, mode="nearest")
        # where the trend exceeds the noise, the median is one of the values, and many residuals are zero
        spread = 1.4826 * max(np.median(np.abs(residual)), np.median(np.abs(np.diff(logs))) / 2**0.5)
        return [int(step) for step in steps[residual > _SPIKE * max(spread, 1e-3)]]

    def pinned(self) -> float | None:
        """The constant that the loss stays at from the first tenth on, within 5 %; None where it moves."""
        if self.loss is None:
            return None
        _, values = self.loss
        later = values[len(values) // 10 :]
        later = later[np.isfinite(later)]
        if len(later) < 10:
            return None
        center = float(np.median(later))
        low, high = np.quantile(later, [0.02, 0.98])
        return center if center > 0 and high - low <= 2 * _PINNED * center else None


def read_log(path: Path) -> TrainingLog:
    """Read a training log.

    Args:
        path: As for `read_rows`.

    Returns:
        The log.

    Raises:
        InputError: The file cannot be read, or has no numbers.
    """
    frame = read_rows(path)
    try:
        numbers = frame.apply(pd.to_numeric, errors="coerce")
    except OverflowError as error:
        raise InputError(
            f"Expected numbers of double precision, but {path} has a whole number beyond it; pass another --log."
        ) from error
    step = next((name for name in _STEPS if name in numbers), None)
    steps = np.arange(len(frame)) if step is None else numbers[step].ffill().fillna(0).to_numpy()
    series = {
        str(name): numbers[name].to_numpy(float)
        for name in numbers
        if name not in _STEPS and numbers[name].notna().any()
    }
    if not series:
        raise InputError(f"Expected a training log with numbers by step, but {path} has none; pass another --log.")
    return TrainingLog(path, steps, series)
