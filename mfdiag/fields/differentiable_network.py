"""The measured network as losses see it: with a gradient to its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mfdiag.fields.fields import Fields

__all__ = ["DifferentiableNetwork", "Loss"]


class DifferentiableNetwork:
    """u with a gradient to its parameters, its directional derivatives, and its hidden features.

    Times broadcast against x [n, *shape], or are [n].
    """

    def __init__(
        self, module: nn.Module, evaluate: Callable[..., Tensor], labels: Tensor | None, jvp: Callable[..., Any]
    ) -> None:
        self._module, self._evaluate, self._labels, self._jvp = module, evaluate, labels, jvp

    def __call__(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """u(x, r, t), shaped as x [n, *shape]."""
        return self._evaluate(x, r.flatten(), t.flatten(), self._labels)

    def along(
        self, x: Tensor, r: Tensor, t: Tensor, *, dx: Tensor | None = None, dr: float = 0.0, dt: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """u(x, r, t) and its derivative along (dx, dr, dt), each shaped as x."""
        r, t = r.flatten(), t.flatten()
        tangents = (torch.zeros_like(x) if dx is None else dx, torch.full_like(r, dr), torch.full_like(t, dt))
        return self._jvp(lambda *at: self._evaluate(*at, self._labels), (x, r, t), tangents)

    def features(self, x: Tensor, r: Tensor, t: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """u(x, r, t) and the hidden features [n, ...] in the middle of the network's longest stack of layers.

        `labels` belong to x where x are not the batch's own samples.
        """
        outputs: list[Tensor] = []
        handle = _middle(self._module).register_forward_hook(lambda module, args, out: outputs.append(out))
        try:
            u = self._evaluate(x, r.flatten(), t.flatten(), self._labels if labels is None else labels)
        finally:
            handle.remove()
        return u, outputs[0].reshape(len(x), -1)  # where tokens are folded into the batch, sample by sample


Loss = Callable[[Fields, DifferentiableNetwork], Tensor]
"""(fields, network) -> loss of each sample [n]."""


def _middle(module: nn.Module) -> nn.Module:
    """The middle element of the longest nn.ModuleList or nn.Sequential; the module itself where there is none."""
    stacks = [m for m in module.modules() if isinstance(m, nn.ModuleList | nn.Sequential)]
    longest = max(stacks, key=len, default=None)
    return module if longest is None or not len(longest) else longest[len(longest) // 2]
