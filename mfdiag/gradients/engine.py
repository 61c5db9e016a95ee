"""The engine of a run, once a few samples have shown that the model can be measured sample by sample at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from mfdiag.derivatives.reverse_mode import vjp
from mfdiag.errors import InputError, MfdiagError, is_out_of_memory
from mfdiag.fields.inputs import Inputs, require_velocity, select_samples
from mfdiag.gradients.engine_protocol import Engine
from mfdiag.gradients.fallback_note import fallback_note
from mfdiag.gradients.fast_engine import FastEngine
from mfdiag.gradients.functional import call, parameter_places
from mfdiag.gradients.reference_engine import ReferenceEngine, vmap_is_right
from mfdiag.gradients.sample_independence import mixing_layer, require_repeatable
from mfdiag.gradients.trials import find_capabilities
from mfdiag.models.call_adapter import per_sample
from mfdiag.models.failures import reason_of
from mfdiag.models.plain_calls import plain_calls, replaced_parameters_alone

__all__ = ["Engine", "batch_gradient", "prepare_engine", "require_sum", "single_gradients"]

_SUM_TOLERANCE = 1e-3  # relative; float32 kernels for one sample and for a batch round differently


def prepare_engine(
    module: nn.Module, inputs: Inputs, kind: Literal["auto", "fast", "reference"], say: Callable[[str], None]
) -> Engine:
    """Choose the engine for a network, and try it on a few samples.

    Args:
        module: The network, u(x, r, t, labels), without gradients and in eval mode.
        inputs: The few samples.
        kind: `auto` is fast.
        say: Receives a note about parameters that no fast path serves.

    Returns:
        The engine.

    Raises:
        InputError: The model cannot be called as u(x, r, t, labels), is random or not finite, or mixes the samples of a
            batch.
    """
    signs = torch.randint(0, 2, inputs[0].shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cotangent = signs.to(inputs[0])
    try:
        require_repeatable(module, inputs)
        singles = single_gradients(module, inputs, cotangent)
        _require_gradients(module, inputs, singles)
    except MfdiagError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's network raises
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"The model cannot be evaluated as u(x, r, t, labels) on samples of shape {tuple(inputs[0].shape[1:])}: "
            f"{reason_of(error)}. Check that --data fits the model, and check --model."
        ) from error
    if (calls := plain_calls(module)) is not None:
        for note in calls.notes(module):
            say(note)
    if kind == "reference":
        require_sum(module, inputs, cotangent, singles)
        _require_own_outputs(module, inputs)
        return ReferenceEngine(module, one_by_one=not vmap_is_right(module, inputs, cotangent, singles))
    capabilities = find_capabilities(module, inputs, cotangent[None], singles)
    if capabilities.fallback or capabilities.operations or capabilities.idle:
        # otherwise every gradient comes from the batch's own, and agrees with the singles
        require_sum(module, inputs, cotangent, singles)
    _require_own_outputs(module, inputs)
    if capabilities.fallback:
        right = vmap_is_right(module, inputs, cotangent, singles, capabilities.fallback)
        capabilities = replace(capabilities, one_by_one=not right)
        say(fallback_note(module, capabilities.fallback))
    return FastEngine(module, capabilities)


def single_gradients(module: nn.Module, inputs: Inputs, cotangent: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """Compute (du_i/dtheta)^T e_i for each sample, from a batch of that sample alone, by plain reverse mode.

    Args:
        module: The network.
        inputs: n samples.
        cotangent: e, [n, *shape].

    Returns:
        Name of each parameter -> n gradients, each of the parameter's shape.

    Raises:
        InputError: A gradient is not finite.
    """
    selections = [slice(i, i + 1) for i in range(len(cotangent))]
    singles = [batch_gradient(module, select_samples(inputs, one), cotangent[one]) for one in selections]
    if not get_total_norm([gradient for single in singles for gradient in single.values()]).isfinite():
        raise InputError(
            "The gradient of the model's output is NaN or infinite on the first samples: check its weights."
        )
    return {name: tuple(single[name] for single in singles) for name in singles[0]}


def _require_own_outputs(module: nn.Module, inputs: Inputs) -> None:
    """InputError where u of a sample depends on the others, also where gradients do not show it.

    At a tie, rounding may decide a sample's routing; a small step away from it does not.
    """
    x, r, t, condition = inputs
    if _depends_on_batch(module, inputs) and _depends_on_batch(module, (1.01 * x, r, t, condition)):
        layer = mixing_layer(module, inputs)
        raise InputError(
            "The output for a sample differs in a batch of others: the model mixes the samples of a batch"
            f"{'' if layer is None else f', first in {layer}'}. Make each output depend on its own sample alone."
        )


def _depends_on_batch(module: nn.Module, inputs: Inputs) -> bool:
    with torch.no_grad():
        whole, singles = module(*inputs), per_sample(module, *inputs)
        close = torch.dist(whole, singles) <= _SUM_TOLERANCE * whole.norm()  # false if single outputs are NaN
        return bool(whole.isfinite().all() and not close)


def _require_gradients(module: nn.Module, inputs: Inputs, singles: dict[str, tuple[Tensor, ...]]) -> None:
    """InputError where u depends on parameters that no gradient reaches."""
    if not singles:
        raise InputError("Expected a network with parameters to measure gradients of, but it has none.")
    state = {k: p.detach().requires_grad_() for k, p in module.named_parameters()}
    with torch.enable_grad(), replaced_parameters_alone(module):
        u = call(module, parameter_places(module), state, inputs)
    if u.requires_grad or any(gradient.any() for parts in singles.values() for gradient in parts):
        return
    with torch.no_grad():
        other = call(module, parameter_places(module), {k: 1.1 * p + 0.1 for k, p in state.items()}, inputs)
    if not torch.equal(u, other):
        raise InputError(
            "Expected gradients of the model's parameters, but its output has none: it runs under torch.no_grad or "
            "torch.inference_mode, or detaches its output; remove that from its forward."
        )


def batch_gradient(module: nn.Module, inputs: Inputs, cotangent: Tensor) -> dict[str, Tensor]:
    """Compute the gradient of <u, cotangent> summed over the batch, by plain reverse mode.

    Args:
        module: The network.
        inputs: n samples.
        cotangent: e, [n, *shape].

    Returns:
        Name of each parameter -> gradient of its shape.
    """
    state = {k: p.detach().requires_grad_() for k, p in module.named_parameters()}
    with torch.enable_grad():
        u = require_velocity("The model", call(module, parameter_places(module), state, inputs), inputs[0])
        if not u.requires_grad:
            return {k: torch.zeros_like(p) for k, p in state.items()}
        return dict(zip(state, vjp([u], [cotangent], list(state.values())), strict=True))


def require_sum(module: nn.Module, inputs: Inputs, cotangent: Tensor, singles: dict[str, tuple[Tensor, ...]]) -> None:
    """Check that the gradients of single samples sum to that of the batch.

    Args:
        module: The network.
        inputs: n samples.
        cotangent: e, [n, *shape].
        singles: `single_gradients` of the same.

    Raises:
        InputError: They do not, so the model mixes the samples of a batch.
    """
    whole = batch_gradient(module, inputs, cotangent)
    error = torch.stack([torch.dist(whole[name], sum(parts[1:], parts[0])) for name, parts in singles.items()]).norm()
    scale = get_total_norm([part for parts in singles.values() for part in parts])
    if not error <= _SUM_TOLERANCE * scale:  # NaN too
        layer = mixing_layer(module, inputs)
        size = f" (relative difference {float(error / scale):.2g})" if scale > 0 else ""
        raise InputError(
            f"The gradients of single samples do not sum to the batch gradient{size}: the "
            f"model mixes the samples of a batch{'' if layer is None else f', first in {layer}'}. Switch off batch "
            "normalization and other layers that depend on the batch."
        )
