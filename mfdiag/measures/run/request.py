"""What is measured, and what is asked about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import nn

from mfdiag.errors import InputError, did_you_mean
from mfdiag.estimators import find_estimator
from mfdiag.fields.builder import Proxy
from mfdiag.flow.couplings import INDEPENDENT, Coupling
from mfdiag.flow.data.datasets import Data
from mfdiag.flow.guidance import Guidance
from mfdiag.flow.paths import LINEAR, Path
from mfdiag.flow.sources import Source
from mfdiag.flow.times import TimeSampler
from mfdiag.flow.weighting import Weighting
from mfdiag.gradients.sample_pass import PassSettings
from mfdiag.measures.chosen import default_estimators
from mfdiag.measures.plans import EXTRAS

__all__ = ["Progress", "Request", "Subject"]

_LARGEST = 2**62  # tables hold 64-bit integers

Progress = Callable[[str, int, int], None]
"""(what is measured, samples done, samples in all)."""


@dataclass(frozen=True)
class Subject:
    """What is measured: a network, what guides it, and the draws it was trained on (`source` None is N(0, I)).

    `module` and `proxy_module` give average velocity; `prediction` says what they were made of.
    """

    module: nn.Module
    data: Data
    times: TimeSampler
    proxy: Proxy = "self"
    proxy_module: nn.Module | None = None
    proxy_name: str = "self"
    run: str = "model"
    checkpoint: str = "model"
    sha256: str | None = None
    step: int | None = None
    conditional: bool = False  # whether the network takes labels
    source: Source | None = None
    coupling: Coupling = INDEPENDENT
    path: Path = LINEAR
    prediction: str = "u"
    networks: Mapping[str, nn.Module] = field(default_factory=dict)  # "ema" and "teacher", where there are such
    guidance: Guidance | None = None

    def __post_init__(self) -> None:
        if self.guidance is not None:
            self._require_guidable(self.guidance)

    def _require_guidable(self, law: Guidance) -> None:
        if not self.conditional or not self.data.num_classes:
            who = f"{self.data.name} has none" if self.conditional else "the network takes none (num_classes)"
            raise InputError(f"--guidance {law.name} needs labels, but {who}; leave it out, or pass --guidance none.")
        if law.network == "head" and not hasattr(self.module, "velocity"):
            raise InputError(
                f"--guidance {law.name} guides by a velocity head, a method velocity(x, r, t, labels), which the "
                "network does not have; name another guidance."
            )
        if law.network == "teacher" and "teacher" not in self.networks:
            raise InputError(f"--guidance {law.name} needs the teacher it guides by: pass --proxy teacher=PATH.")

    @property
    def axes(self) -> dict[str, str]:
        """The draws' and the network's choices by name, besides data and times."""
        source = "gaussian" if self.source is None else self.source.name
        return {
            "source": source,
            "coupling": self.coupling.name,
            "path": self.path.name,
            "prediction": self.prediction,
            "guidance": "none" if self.guidance is None else self.guidance.name,
        }


@dataclass(frozen=True)
class Request:
    """What is asked about it. `batch_sizes` are the n of MSE_n and of the batch-aware optimum; `extras` of EXTRAS.

    `floor` is the least share of its trained density that the table `times` leaves to every (r, t).
    """

    betas: Sequence[float] = tuple(np.linspace(0, 1, 21))
    gammas: Sequence[float] = (0.0,)
    batch_sizes: Sequence[int] = (1, 64, 4096, 65536, 1048576)
    estimators: Sequence[str] = default_estimators("variance")
    weighting: Weighting = field(default_factory=Weighting)
    by_layer: bool = True
    seed: int = 0
    posterior: Literal["auto", "exact", "none"] = "auto"  # auto: unless it would take minutes
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
        for name in self.extras:
            if name not in EXTRAS:
                raise did_you_mean("extra", name, EXTRAS)
