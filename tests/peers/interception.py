"""Run a repository's own loss code with random weights on given samples, and see what it regresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Batch", "pulled", "returning", "shaken"]


class Batch(NamedTuple):
    """Samples as mfdiag drew them: x_0, x_1 [n, *shape], r, t [n], labels int64 [n] or None; data at t = 0.

    `dropped` [n] says which labels training hides (label dropout), `omega` [n] is the strength of guidance; None where
    there is none. `index` [n] are the samples' numbers. `conditions` are arrays [n, ...] by name.
    """

    x0: Tensor
    x1: Tensor
    r: Tensor
    t: Tensor
    y: Tensor | None
    dropped: Tensor | None = None
    omega: Tensor | None = None
    index: np.ndarray | None = None
    conditions: Mapping[str, Tensor] = {}


@contextmanager
def returning(owner: Any, name: str, *values: Any) -> Iterator[None]:
    """Within, calls of owner.name (a function, method or attribute of a module) return `values` one after another.

    Raises AssertionError at the end where fewer calls came than values were given: then the samples were not used.
    """
    left = list(values)
    with mock.patch.object(owner, name, lambda *_, **__: left.pop(0)):
        yield
    assert not left, f"{name} was called {len(values) - len(left)} times instead of {len(values)}"


def pulled(network: nn.Module, loss: Callable[[], Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """A loss [] or [n] as the repository computes it, and w e [n, *shape] of sum_i w_i |e_i|^2, the sum over samples.

    A zero is added to the network's output u (the first of several), and the loss differentiated with respect to it:
    whatever target and weight lie under stop-gradient, the derivative is 2 w e. A loss without axes is the mean over
    samples.
    """
    zero = torch.zeros_like(like, requires_grad=True)

    def add(_: nn.Module, __: Any, out: Any) -> Any:
        if isinstance(out, tuple):
            return (add(network, (), out[0]), *out[1:])
        return out + zero if torch.is_grad_enabled() and len(out) == len(zero) else out

    handle = network.register_forward_hook(add)
    try:
        value = loss()
        (gradient,) = torch.autograd.grad(value.sum(), zero)
    finally:
        handle.remove()
    return value.detach(), gradient * (len(zero) if value.ndim == 0 else 1) / 2


def shaken(module: nn.Module) -> nn.Module:
    """The module with every number of its state moved: no layer starts at zero, no copy equals its original."""
    with torch.no_grad():
        for value in module.state_dict().values():
            if isinstance(value, Tensor) and value.is_floating_point():
                value.add_(0.05 * torch.randn_like(value))
    return module
