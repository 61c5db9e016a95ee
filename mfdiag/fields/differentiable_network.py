"""The measured network as losses use it: with a gradient to its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mfdiag.fields.fields import Fields
from mfdiag.fields.hidden_features import hidden_features
from mfdiag.flow.conditions import Condition

__all__ = ["DifferentiableNetwork", "Loss"]


class DifferentiableNetwork:
    """u(x, r, t) with a gradient to the network's parameters, its directional derivatives and its hidden features.

    The engines make one for each loss and batch; a loss calls it. Times are [n], or [n, 1, ...] as in `Fields`. The
    condition is that of the batch.

    Args:
        module: The measured network, whose layers `features` looks up.
        evaluate: (x, r, t, condition) -> u [n, *shape], with a gradient to the parameters.
        condition: Condition of the batch.
        jvp: (function, (x, r, t), tangents) -> its value and directional derivative, both with a gradient.
    """

    def __init__(
        self, module: nn.Module, evaluate: Callable[..., Tensor], condition: Condition, jvp: Callable[..., Any]
    ) -> None:
        self._module, self._evaluate, self._condition, self._jvp = module, evaluate, condition, jvp

    def __call__(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """u(x, r, t) [n, *shape] at x [n, *shape]."""
        return self._evaluate(x, r.flatten(), t.flatten(), self._condition)

    def jvp(
        self, x: Tensor, r: Tensor, t: Tensor, *, dx: Tensor | None = None, dr: float = 0.0, dt: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """u and its derivative along one direction.

        Args:
            x: Points [n, *shape].
            r: Start times.
            t: End times.
            dx: Tangent of x, [n, *shape]; zero by default.
            dr: Tangent of r.
            dt: Tangent of t.

        Returns:
            u(x, r, t) and du/dx dx + du/dr dr + du/dt dt, both [n, *shape].
        """
        r, t = r.flatten(), t.flatten()
        tangents = (torch.zeros_like(x) if dx is None else dx, torch.full_like(r, dr), torch.full_like(t, dt))
        return self._jvp(lambda *inputs: self._evaluate(*inputs, self._condition), (x, r, t), tangents)

    def features(self, x: Tensor, r: Tensor, t: Tensor, condition: Condition = None) -> tuple[Tensor, Tensor]:
        """u and hidden features from the middle of the network's longest stack of layers.

        Args:
            x: Points [n, *shape].
            r: Start times.
            t: End times.
            condition: Condition of x if these are not the batch's own samples.

        Returns:
            u(x, r, t) [n, *shape], and features [n, number of features].
        """
        own = self._condition if condition is None else condition
        return hidden_features(self._module, lambda: self._evaluate(x, r.flatten(), t.flatten(), own))


Loss = Callable[[Fields, DifferentiableNetwork], Tensor]
"""(fields, network) -> loss of each sample [n]."""
