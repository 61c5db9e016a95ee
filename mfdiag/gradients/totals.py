"""Running totals of a pass, and how several processes share its samples.

The samples come in stretches of the order of the cells. Within a stretch each process measures one consecutive part by
itself; at its end the processes add their sums of the cells that are complete. So every position between stretches is
one from which any number of processes can resume.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfdiag.gradients.accumulate import Accumulator
from mfdiag.gradients.cells import Cells
from mfdiag.gradients.factors import Dense, Factors
from mfdiag.gradients.pass_types import Plan
from mfdiag.world import World, current_world

__all__ = ["Totals", "stretch"]

_STRETCHES = 128  # of a pass that several processes share: more cost messages, fewer lose more work to a kill


def stretch(start: int, limit: int, samples: int, chunk: int, world: World) -> tuple[int, list[tuple[int, int]]]:
    """The next stretch of a pass, which does not depend on time, so that equal runs add in equal order.

    Args:
        start: The position where it begins.
        limit: The last position that it may reach, after `start`.
        samples: All samples of the pass.
        chunk: The most samples at once.
        world: The processes that share it.

    Returns:
        Where it ends, and the positions (first, one after the last) of each of this process's chunks.
    """
    chunks = 1 if world.size == 1 else max(1, samples // (_STRETCHES * world.size * chunk))
    stop = min(limit, start + world.size * chunks * chunk)
    share = -(-(stop - start) // world.size)
    own = range(min(start + world.rank * share, stop), min(start + (world.rank + 1) * share, stop))
    return stop, [(first, min(first + chunk, own.stop)) for first in own[::chunk]]


class Totals:
    """Running totals of a pass: gradient and output moments, and numbers per sample.

    Args:
        cells: The samples' cells and blocks.
        parameters: Number of entries by name.
        plan: What the pass measures.
    """

    def __init__(self, cells: Cells, parameters: dict[str, int], plan: Plan) -> None:
        self.cells = cells
        self.gradient = Accumulator(cells, parameters, plan.groups, plan.size)
        self.output: Accumulator | None = None
        self.scalars: dict[str, Tensor] = {}
        self._between_stretches = True
        self._layouts_agree = current_world().size == 1

    def add(
        self,
        index: np.ndarray,
        scalars: dict[str, Tensor],
        outputs: Tensor | None,
        factors: Iterable[tuple[str, Factors]],
    ) -> None:
        """Add samples of the present stretch.

        Args:
            index: Their numbers.
            scalars: Numbers [n] by name.
            outputs: Residuals [C, n, *shape] whose moments are measured, or None.
            factors: Factors of their gradients by parameter.
        """
        self._between_stretches = False
        for name, values in scalars.items():
            self._numbers(name)[torch.as_tensor(index)] = values.double().cpu()
        if outputs is not None:
            output = self._output(outputs[0, 0].numel(), len(outputs))
            output.add(index, [("output", Dense(outputs.flatten(2)))])
        self.gradient.add(index, factors)

    def advance(self, stop: int) -> None:
        """End the stretch at the position `stop`, in all processes together."""
        if not self._layouts_agree:
            self._take_layouts()
        if self.output is not None:
            self.output.advance(stop)
        self.gradient.advance(stop)
        self._between_stretches = True

    def share(self) -> None:
        """Give every process the totals of all, once every sample is in."""
        self.gradient.share()
        if self.output is not None:
            self.output.share()
        self.scalars = current_world().broadcast(self._all_scalars())

    @property
    def resumable(self) -> bool:
        """Whether `state` is consistent, and samples remain to resume with."""
        return self._between_stretches and self.gradient.position < len(self.cells.leaf)

    def state(self) -> dict[str, Any]:
        """What `restore` takes. All processes call it together; rank 0 returns the totals of all."""
        output = None
        if self.output is not None:
            output = (self.output.parameters["output"], self.output.size, self.output.state())
        return {"gradient": self.gradient.state(), "output": output, "scalars": self._all_scalars()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state` of the same cells, parameters and plan."""
        self.gradient.restore(state["gradient"])
        self.scalars = state["scalars"]
        if state["output"] is not None:
            dim, size, accumulated = state["output"]
            self._output(dim, size).restore(accumulated)

    def _numbers(self, name: str) -> Tensor:
        """The numbers [N] of a name; zeros for samples of other processes."""
        if name not in self.scalars:
            self.scalars[name] = torch.zeros(len(self.cells.leaf), dtype=torch.float64)
        return self.scalars[name]

    def _all_scalars(self) -> dict[str, Tensor]:
        """The numbers of all processes, on rank 0."""
        return dict(zip(self.scalars, current_world().sums_on_first(list(self.scalars.values())), strict=True))

    def _output(self, dim: int, size: int) -> Accumulator:
        if self.output is None:
            self.output = Accumulator(self.cells, {"output": dim}, 1, size)
            self.output.skip(self.gradient.position)
        return self.output

    def _take_layouts(self) -> None:
        """Take what rank 0 measures, which has samples in every stretch: another process may have had none so far."""
        own = None if self.output is None else (self.output.parameters["output"], self.output.size, self.output.layout)
        self.gradient.layout, output, names = current_world().broadcast((self.gradient.layout, own, list(self.scalars)))
        if output is not None:
            dim, size, layout = output
            self._output(dim, size).layout = layout
        self.scalars = {name: self._numbers(name) for name in names}
        self._layouts_agree = True
