"""One table of one subject: what its plan and its rows can use, and the passes they run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mfdiag.estimators import Estimator
from mfdiag.flow.draw import Draws
from mfdiag.flow.time_sampler import TimeSampler
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.gradients.sample_pass import PassResult, PassSettings, Plan, SupportNetworks, run_pass
from mfdiag.measures.parts.rows import Rows
from mfdiag.measures.run.request import Progress, Request
from mfdiag.measures.run.subject import Subject

__all__ = ["Measurement"]


@dataclass
class Measurement:
    """One table of one subject under one request.

    Attributes:
        name: Name of the table.
        subject: The network, its proxy and the distribution of its samples.
        request: Estimators, coefficients, batch sizes, settings of a pass.
        draws: The samples of the request's seed.
        estimators: The estimators to measure, for tables that take some.
        progress: Receives (label, samples done, samples in all).
        say: Receives one-line notes.
        checkpoint: Where an interrupted pass keeps its state.
        derivative: How the last pass differentiated the network, as the tables say it.
    """

    name: str
    subject: Subject
    request: Request
    draws: Draws
    estimators: Sequence[Estimator] = ()
    progress: Progress | None = None
    say: Callable[[str], None] | None = None
    checkpoint: PassCheckpoint | None = None
    derivative: str | None = None

    @property
    def posterior_known(self) -> bool:
        """Whether the exact posterior over the data is computed."""
        return self.draws.posterior is not None

    @property
    def dim(self) -> int:
        """Number of coordinates d of a sample."""
        return math.prod(self.subject.data.shape)

    def run_pass(self, plan: Plan) -> PassResult:
        """One pass over the request's samples, resumed from the checkpoint of an interrupted one."""
        return self._pass(plan, self.draws, self.request.settings, self.checkpoint)

    def run_pass_with(self, plan: Plan, *, seed: int, times: TimeSampler) -> PassResult:
        """One pass over other samples, without bins.

        Args:
            plan: What to measure.
            seed: Seed of the samples.
            times: Sampler of (r, t).

        Returns:
            The result of the pass.
        """
        settings = replace(self.request.settings, bins=None)
        return self._pass(plan, replace(self.draws, times=times, seed=seed), settings, None)

    def rows(self, estimator: str | None = None) -> Rows:
        """Rows of the table about this subject; `estimator` where all of them are about one."""
        return Rows(self.name, self.common(estimator))

    def common(self, estimator: str | None = None) -> dict[str, Any]:
        """The values of the columns that all rows share."""
        subject, request = self.subject, self.request
        columns = {
            "run": subject.run,
            "checkpoint": subject.checkpoint,
            "checkpoint_sha256": subject.sha256,
            "step": subject.step,
            "dataset": subject.data.name,
            "estimator": estimator,
            "proxy": subject.proxy_name,
            "weighting": request.weighting.name,
            "times": subject.times.name,
            "seed": request.seed,
        }
        return columns if self.derivative is None else columns | {"derivative": self.derivative}

    def _pass(self, plan: Plan, draws: Draws, settings: PassSettings, checkpoint: PassCheckpoint | None) -> PassResult:
        def report(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(f"{self.name} of {self.subject.checkpoint}", done, total)

        result = run_pass(
            plan,
            self.subject.module,
            draws,
            settings,
            support=SupportNetworks(self.subject.proxy, self.subject.proxy_module, self.subject.networks),
            progress=report,
            say=self.say,
            checkpoint=checkpoint,
        )
        self.derivative = result.derivative
        return result
