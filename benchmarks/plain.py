"""What one would write without mfdiag: nothing shared between coefficients, per-sample gradients multiplied out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

Sample = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""x_t, r, t, v_c, vhat, each with the samples first."""


def variance_by_loop(module: nn.Module, samples: Sample, beta: float, chunk: int) -> float:
    """tr Cov of MeanFlow's per-sample gradient with tangent v_c + beta (vhat - v_c), by vmap(grad)."""
    parameters = {k: p.detach() for k, p in module.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, r: Tensor, t: Tensor, v_c: Tensor, vhat: Tensor) -> Tensor:
        def u(x: Tensor, t: Tensor) -> Tensor:
            return functional_call(module, parameters, (x[None], r[None], t[None]))[0]

        tangent = v_c + beta * (vhat - v_c)
        value, along = jvp(u, (x, t), (tangent, torch.ones_like(t)))
        target = (v_c - (t - r) * along).detach()
        return (value - target).square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0, 0))
    squares, total = 0.0, None
    for part in zip(*(a.split(chunk) for a in samples), strict=True):
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no forward-mode derivative
            gradients = per_sample(parameters, *part)
        flat = torch.cat([g.flatten(1) for g in gradients.values()], 1)
        squares += float(flat.double().square().sum())
        total = flat.sum(0).double() if total is None else total + flat.sum(0)
    assert total is not None
    n = len(samples[0])
    return (squares - float(total @ total) / n) / (n - 1)


def forward_backward(module: nn.Module, samples: Sample) -> None:
    """One plain forward and backward of the batch, weight gradients included."""
    x, r, t, v_c, _ = samples
    module.zero_grad(set_to_none=True)
    (module(x, r, t) - v_c).square().sum().backward()
