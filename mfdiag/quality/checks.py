"""Checks that samples of a network depend on their noise alone: not on chance, other samples, or earlier calls."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mfdiag.errors import InputError, MfdiagError, is_out_of_memory
from mfdiag.fields.inputs import Inputs, require_velocity, select_samples
from mfdiag.gradients.sample_independence import mixing_layer, require_repeatable
from mfdiag.models.failures import reason_of

__all__ = ["repeatable_output", "require_same_output"]

_MIXED = 1e-3  # relative; float32 kernels for one sample and for a batch round differently


def repeatable_output(network: nn.Module, inputs: Inputs) -> Tensor:
    """u of a few samples, computed for all of them together.

    Args:
        network: u(x, r, t, condition), in eval mode.
        inputs: Samples x [n, *shape], times r and t [n], condition.

    Returns:
        u [n, *shape].

    Raises:
        InputError: The network fails, equal calls of it differ, or u of a sample depends on the others.
    """
    try:
        require_repeatable(network, inputs)
        with torch.no_grad():
            u = require_velocity("The model", network(*inputs), inputs[0])
            alone = network(*select_samples(inputs, slice(1)))
        if u.isfinite().all() and torch.dist(u[:1], alone) > _MIXED * u[:1].norm():
            layer = mixing_layer(network, inputs)
            place = f", first in {layer}" if layer else ""
            raise InputError(
                f"The model mixes the samples of a batch{place}, so they depend on --chunk: make each output depend on "
                "its own input alone."
            )
    except MfdiagError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's network raises
        if is_out_of_memory(error):
            raise
        raise InputError(
            f"Expected a model that maps noise of shape {list(inputs[0].shape)} to samples of that shape, but it "
            f"failed: {reason_of(error)}. Check --data and --model."
        ) from error
    return u


def require_same_output(network: nn.Module, inputs: Inputs, before: Tensor) -> None:
    """Check that a network still gives what it gave before it was measured.

    Args:
        network: The network.
        inputs: The inputs of `repeatable_output`.
        before: Its result.

    Raises:
        InputError: It does not.
    """
    with torch.no_grad():
        after = network(*inputs)
    if not torch.equal(before.nan_to_num(), after.nan_to_num()):
        raise InputError(
            "The model gives another result after its samples were drawn than before: it counts its calls or stores "
            "something. Make it a function of its inputs in eval mode."
        )
