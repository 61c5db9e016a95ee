"""Does the model treat its samples one by one? Nothing measured per sample means anything otherwise."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mfdiag.errors import InputError
from mfdiag.gradients.reference import Inputs

__all__ = ["check_additive"]


def check_additive(module: nn.Module, inputs: Inputs, cotangents: Tensor) -> None:
    """Per-sample gradients, each from a batch of one, must sum to the batch gradient; InputError if they do not.

    One cotangent, the few samples of `inputs`, plain reverse mode.
    """
    e = cotangents[0]

    def gradient(chosen: slice) -> Tensor:
        state = {k: p.detach().requires_grad_() for k, p in module.named_parameters()}
        x, r, t, labels = inputs
        with torch.enable_grad():
            u = functional_call(
                module, state, (x[chosen], r[chosen], t[chosen], None if labels is None else labels[chosen])
            )
            parts = torch.autograd.grad(u, list(state.values()), e[chosen], allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    whole = gradient(slice(None))
    if not whole.isfinite().all():
        raise InputError("The gradient of the model's output is not finite on the first samples: check its weights.")
    parts = [gradient(slice(i, i + 1)) for i in range(len(e))]
    scale = torch.stack([part.norm() for part in parts]).sum()
    difference = (whole - torch.stack(parts).sum(0)).norm()
    if difference > 1e-3 * scale:
        raise InputError(
            f"The gradients of single samples do not sum to the batch gradient (off by {float(difference / scale):.0%})"
            ": the model mixes the samples of a batch, so switch off its batch normalisation, dropout or other "
            "batch-dependent layers."
        )
