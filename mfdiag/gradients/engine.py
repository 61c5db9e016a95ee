"""The engine of a run, once a few samples have shown that the model can be measured sample by sample at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from mfdiag.derivatives.forward_graph import CheckedJvp, ForwardGraph
from mfdiag.derivatives.vector_jacobian import vjp
from mfdiag.errors import InputError
from mfdiag.fields.inputs import Inputs, require_velocity, select_samples
from mfdiag.gradients.factors import Factors
from mfdiag.gradients.fast_engine import FastEngine
from mfdiag.gradients.functional import call, parameter_places
from mfdiag.gradients.reference_engine import ReferenceEngine
from mfdiag.gradients.sample_independence import mixing_layer, require_repeatable

__all__ = ["Engine", "prepare_engine", "single_gradients"]


class Engine(Protocol):
    """Turns inputs and cotangents [C, n, *shape] into the factors of every parameter's per-sample gradients."""

    bytes_per_sample: int
    checked_jvp: CheckedJvp | None
    """Derivatives by its own graph at the samples it was prepared with, where these are right."""

    def forward_graph(self, inputs: Inputs) -> ForwardGraph | None:
        """A forward pass for `factors` to share, if it also gives directional derivatives."""
        ...

    def factors(
        self, inputs: Inputs, cotangents: Tensor, graph: ForwardGraph | None = None
    ) -> Iterator[tuple[str, Factors]]: ...


def prepare_engine(
    module: nn.Module, inputs: Inputs, kind: Literal["auto", "fast", "reference"], say: Callable[[str], None]
) -> Engine:
    """The engine for `module`, tried on the few samples of `inputs`; `auto` is fast.

    Raises InputError for a model that cannot be called as u(x, r, t, labels), that is random or not finite, or that
    mixes the samples of a batch.
    """
    signs = torch.randint(0, 2, inputs[0].shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cotangent = signs.to(inputs[0])
    try:
        require_repeatable(module, inputs)
        truth = single_gradients(module, inputs, cotangent)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"The model cannot be evaluated as u(x, r, t, labels) on samples of shape {tuple(inputs[0].shape[1:])}: "
            f"{str(error).splitlines()[0]}. Check that --data fits the model, and --model."
        ) from error
    if kind == "reference":
        _require_sum(module, inputs, cotangent, truth)
        return ReferenceEngine(module)
    notes: list[str] = []
    engine = FastEngine(module, inputs, cotangent[None], truth, notes.append)
    if engine.fallback:  # without, all that it reads off the batch's own gradient has been found equal to the truth
        _require_sum(module, inputs, cotangent, truth)
    for note in notes:
        say(note)
    return engine


def single_gradients(module: nn.Module, inputs: Inputs, cotangent: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """(du_i/dtheta)^T e_i of each sample, from a batch of it alone, by plain reverse mode: name -> n tensors [*shape].

    `cotangent` [n, *shape]. Raises InputError where they are not finite.
    """
    each = (slice(i, i + 1) for i in range(len(cotangent)))
    singles = [_gradient(module, select_samples(inputs, one), cotangent[one]) for one in each]
    if not get_total_norm([gradient for single in singles for gradient in single.values()]).isfinite():
        raise InputError(
            "The gradient of the model's output is NaN or infinite on the first samples: check its weights."
        )
    return {name: tuple(single[name] for single in singles) for name in singles[0]}


def _gradient(module: nn.Module, inputs: Inputs, cotangent: Tensor) -> dict[str, Tensor]:
    """The gradient of <u, cotangent> summed over the batch, by plain reverse mode."""
    state = {k: p.detach().requires_grad_() for k, p in module.named_parameters()}
    with torch.enable_grad():
        u = require_velocity("The model", call(module, parameter_places(module), state, inputs), inputs[0])
        if not u.requires_grad:
            return {k: torch.zeros_like(p) for k, p in state.items()}
        return dict(zip(state, vjp([u], [cotangent], list(state.values())), strict=True))


def _require_sum(module: nn.Module, inputs: Inputs, cotangent: Tensor, singles: dict[str, tuple[Tensor, ...]]) -> None:
    """InputError where the gradients of single samples do not sum to that of the batch."""
    whole = _gradient(module, inputs, cotangent)
    off = torch.stack([torch.dist(whole[name], sum(parts[1:], parts[0])) for name, parts in singles.items()]).norm()
    scale = get_total_norm([part for parts in singles.values() for part in parts])
    if not off <= 1e-3 * scale:  # NaN too
        layer = mixing_layer(module, inputs)
        raise InputError(
            f"The gradients of single samples do not sum to the batch gradient (off by {float(off / scale):.0%}): the "
            f"model mixes the samples of a batch{'' if layer is None else f', first in {layer}'}, so switch off its "
            "batch normalisation or other batch-dependent layers."
        )
