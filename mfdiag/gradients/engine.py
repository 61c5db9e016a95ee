"""The engine of a run, once a few samples have shown that the model can be measured sample by sample at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.gradients.calling import call, parameter_places
from mfdiag.gradients.factors import Factors
from mfdiag.gradients.fast import FastEngine
from mfdiag.gradients.opened import Opened
from mfdiag.gradients.reference import Inputs, ReferenceEngine, per_sample_gradients

__all__ = ["Engine", "check_additive", "prepare_engine"]


class Engine(Protocol):
    """Turns inputs and cotangents [C, n, *shape] into the factors of every parameter's per-sample gradients."""

    bytes_per_sample: int

    def open(self, inputs: Inputs) -> Opened | None:
        """A forward pass for `factors` to share, if it also gives directional derivatives."""
        ...

    def factors(
        self, inputs: Inputs, cotangents: Tensor, opened: Opened | None = None
    ) -> Iterator[tuple[str, Factors]]: ...


def prepare_engine(
    module: nn.Module, inputs: Inputs, kind: Literal["auto", "fast", "reference"], say: Callable[[str], None]
) -> Engine:
    """The engine for `module`, tried on the few samples of `inputs`; `auto` is fast.

    Raises InputError for a model that cannot be called as u(x, r, t, labels), that is not finite, or that mixes the
    samples of a batch.
    """
    signs = torch.randint(0, 2, (1, *inputs[0].shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
    cotangents = signs.to(inputs[0])
    try:
        truth = per_sample_gradients(module, inputs, cotangents)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"The model cannot be evaluated as u(x, r, t, labels) on samples of shape {tuple(inputs[0].shape[1:])}: "
            f"{str(error).splitlines()[0]}. Check that --data fits the model, and --model."
        ) from error
    check_additive(module, inputs, cotangents[0], truth)
    return ReferenceEngine(module) if kind == "reference" else FastEngine(module, inputs, cotangents, truth, say)


def check_additive(module: nn.Module, inputs: Inputs, cotangent: Tensor, per_sample: dict[str, Tensor]) -> None:
    """Per-sample gradients must sum to the batch gradient of plain reverse mode; InputError if they do not.

    On the few samples of `inputs` with one `cotangent` [n, *shape]; `per_sample` [1, n, ...] is the reference's.
    """
    state = {k: p.detach().requires_grad_() for k, p in module.named_parameters()}
    with torch.enable_grad():
        u = call(module, parameter_places(module), state, inputs)
        if u.shape != cotangent.shape:
            came, expected = tuple(u.shape[1:]), tuple(cotangent.shape[1:])
            raise InputError(f"The model returns samples of shape {came} where u of shape {expected} is expected.")
        whole = torch.autograd.grad(u, list(state.values()), cotangent, allow_unused=True, materialize_grads=True)
    if not u.isfinite().all() or not all(part.isfinite().all() for part in whole):
        raise InputError("The model or its gradient is NaN or infinite on the first samples: check its weights.")
    difference = sum((g - per_sample[k][0].sum(0)).square().sum() for k, g in zip(state, whole, strict=True)) ** 0.5
    scale = sum(g[0].square().sum() for g in per_sample.values()) ** 0.5
    if difference > 1e-3 * scale:
        raise InputError(
            f"The gradients of single samples do not sum to the batch gradient (off by {float(difference / scale):.0%})"
            ": the model mixes the samples of a batch, so switch off its batch normalisation, dropout or other "
            "batch-dependent layers."
        )
