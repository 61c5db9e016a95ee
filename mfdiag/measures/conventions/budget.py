"""What a comparison of readings may take."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from time import thread_time

__all__ = ["Budget"]


@dataclass
class Budget:
    """A limit in seconds of one core.

    Work is counted, so that what is compared does not depend on the machine. A clock stops the comparison where a
    network takes longer than its count says.

    Attributes:
        seconds: The limit on counted work.
        per_call: Counted seconds of a call of the network.
        per_sample: Counted seconds of each sample in it.
        stop: Time of this thread's clock after which nothing more is evaluated.
        evaluations: Evaluations of single samples that the clock does not stop.
        draws: Samples that may be drawn at once.
        held: Counted seconds that are held back for what comes later.
        spent: Counted seconds so far.
        evaluated: Evaluations so far.
    """

    seconds: float = inf
    per_call: float = 0.0
    per_sample: float = 0.0
    stop: float = inf
    evaluations: float = 0.0
    draws: float = inf
    held: float = 0.0
    spent: float = 0.0
    evaluated: int = 0

    @property
    def left(self) -> float:
        """Counted seconds that are left."""
        return self.seconds - self.held - self.spent

    @property
    def samples_left(self) -> float:
        """Evaluations that are left, without what calls cost."""
        return self.left / self.per_sample if self.per_sample else inf

    def cost(self, samples: float, calls: float = 1) -> float:
        """Counted seconds of calls with so many samples in all."""
        return calls * self.per_call + samples * self.per_sample

    def affords(self, samples: float, calls: float = 1) -> bool:
        """Whether these calls are within the limit, and the clock has not passed its own."""
        if self.cost(samples, calls) > self.left:
            return False
        return self.evaluated + samples <= self.evaluations or self.stop == inf or thread_time() < self.stop

    def take(self, samples: int) -> None:
        """Count a call."""
        self.spent += self.cost(samples)
        self.evaluated += samples
