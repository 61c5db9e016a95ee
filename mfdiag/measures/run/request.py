"""What a measurement is asked for: coefficients, estimators, batch sizes and settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mfdiag.errors import InputError
from mfdiag.estimators import DEFAULT_ESTIMATORS, find_estimator
from mfdiag.flow.weighting import Weighting
from mfdiag.gradients.sample_pass import PassSettings

__all__ = ["Progress", "Request"]

_LARGEST = 2**62  # tables hold 64-bit integers

Progress = Callable[[str, int, int], None]
"""(what is measured, samples done, samples in all)."""


@dataclass(frozen=True)
class Request:
    """What to measure of a subject.

    Attributes:
        betas: Tangent coefficients.
        gammas: Target coefficients.
        batch_sizes: The n of MSE_n and of the batch-aware optimum, in samples.
        estimators: Names as on the command line; "all" stands for every one that can be measured.
        weighting: Weight of each sample in the loss.
        by_layer: Whether to report single layers.
        seed: Sample i depends on (seed, i) alone.
        posterior: Whether to compute the exact posterior over the data; "auto" does unless it takes minutes.
        extras: Quantities that cost further passes.
        floor: The least share of its trained density that table `times` leaves to every (r, t), in (0, 1].
        settings: How passes run.

    Raises:
        InputError: A value is out of its range, or a name is unknown.
    """

    betas: Sequence[float] = tuple(np.linspace(0, 1, 21))
    gammas: Sequence[float] = (0.0,)
    batch_sizes: Sequence[int] = (1, 64, 4096, 65536, 1048576)
    estimators: Sequence[str] = DEFAULT_ESTIMATORS
    weighting: Weighting = field(default_factory=Weighting)
    by_layer: bool = True
    seed: int = 0
    posterior: Literal["auto", "exact", "none"] = "auto"
    extras: Sequence[str] = ()
    floor: float = 0.1
    settings: PassSettings = field(default_factory=PassSettings)

    def __post_init__(self) -> None:
        for name, values in (("beta", self.betas), ("gamma", self.gammas)):
            if not len(values) or not all(math.isfinite(v) for v in values):
                raise InputError(f"--{name} needs at least one finite number, got {list(values)}.")
        if not len(self.batch_sizes) or not all(1 <= n <= _LARGEST for n in self.batch_sizes):
            raise InputError(f"--batch-size must be at least 1 and at most 2^62, got {list(self.batch_sizes)}.")
        if not 0 <= self.seed <= _LARGEST:
            raise InputError(f"--seed must be at least 0 and at most 2^62, got {self.seed}.")
        if not len(self.estimators):
            raise InputError("--estimator needs at least one name.")
        if not 0 < self.floor <= 1:
            raise InputError(f"--floor must be above 0 and at most 1, got {self.floor:g}.")
        for name in self.estimators:
            if name != "all":
                find_estimator(name)
