"""What every engine provides, however it computes gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from mfdiag.fields.inputs import Inputs
from mfdiag.gradients.capabilities import NetworkCapabilities
from mfdiag.gradients.factors import Factors
from mfdiag.gradients.recorder import RecordedForward

__all__ = ["Engine"]


class Engine(Protocol):
    """Turns inputs and cotangents into the factors of every parameter's per-sample gradients."""

    capabilities: NetworkCapabilities
    uses_rules: bool
    """Whether fast paths are used where the network allows them; False for the reference."""

    def forward_graph(self, inputs: Inputs) -> RecordedForward | None:
        """The forward pass that derivatives and `factors` of these inputs share; None if nothing is shared."""
        ...

    def factors(
        self, inputs: Inputs, cotangents: Tensor, graph: RecordedForward | None = None
    ) -> Iterator[tuple[str, Factors]]:
        """Compute the per-sample gradients (du_i/dtheta)^T e[c, i], parameter by parameter, in factored form.

        Args:
            inputs: Where the network is evaluated.
            cotangents: e, [C, n, *shape].
            graph: `forward_graph(inputs)`, which is used up; None computes it.

        Yields:
            The name of each parameter, and its factors [C, n, P].
        """
        ...
