"""The slow, obvious engine: per-sample gradients by vmap, multiplied out. The fast engine is held to it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from mfdiag.derivatives.attention import twice_differentiable
from mfdiag.derivatives.forward_graph import CheckedJvp
from mfdiag.derivatives.vector_jacobian import vjp
from mfdiag.fields.inputs import Inputs
from mfdiag.gradients.factors import Dense, Factors
from mfdiag.gradients.functional import call, parameter_places

__all__ = ["ReferenceEngine", "per_sample_gradients"]


def per_sample_gradients(
    module: nn.Module, inputs: Inputs, cotangents: Tensor, names: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """(du_i/dtheta)^T e[c, i] for cotangents e [C, n, *shape]: name -> [C, n, *parameter shape].

    `names` limits the parameters; None takes all. Layers that vmap does not know are met one sample at a time.
    """
    state = {k: p.detach() for k, p in module.named_parameters()}
    wanted = {k: state[k] for k in (state if names is None else names)}
    places = parameter_places(module)
    x, r, t, labels = inputs

    def one(x: Tensor, r: Tensor, t: Tensor, labels: Tensor | None, e: Tensor) -> dict[str, Tensor]:
        def product(parameters: dict[str, Tensor], e_c: Tensor) -> Tensor:
            batch = (x[None], r[None], t[None], None if labels is None else labels[None])
            return (call(module, places, {**state, **parameters}, batch)[0] * e_c).sum()

        return vmap(grad(product), in_dims=(None, 0))(wanted, e)

    in_dims = (0, 0, 0, None if labels is None else 0, 1)
    with twice_differentiable(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # the reference may be slow
        try:
            found = vmap(one, in_dims=in_dims, randomness="error")(x, r, t, labels, cotangents)
        except RuntimeError as error:
            if not any(word in str(error) for word in ("functorch", "vmap")):
                raise
            return _one_by_one(module, inputs, cotangents, wanted)
    return {name: values.transpose(0, 1) for name, values in found.items()}  # out_dims=1 fails on unused parameters


def _one_by_one(module: nn.Module, inputs: Inputs, cotangents: Tensor, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same by a loop."""
    x, r, t, labels = inputs
    state = {name: p.detach() for name, p in module.named_parameters()}
    leaves = {name: p.clone().requires_grad_() for name, p in wanted.items()}
    places = parameter_places(module)
    found = {name: p.new_empty(*cotangents.shape[:2], *p.shape) for name, p in wanted.items()}
    for i in range(len(x)):
        one = slice(i, i + 1)
        with torch.enable_grad():
            batch = (x[one], r[one], t[one], None if labels is None else labels[one])
            u = call(module, places, {**state, **leaves}, batch)
        for c, e in enumerate(cotangents[:, one]):
            gradients = vjp([u], [e], list(leaves.values()), retain_graph=True)
            for name, gradient in zip(leaves, gradients, strict=True):
                found[name][c, i] = gradient
    return found


class ReferenceEngine:
    """Per-sample gradients of every parameter, held in memory: [C, n, P] for the whole chunk."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.checked_jvp: CheckedJvp | None = None
        self.bytes_per_sample = sum(p.numel() * p.element_size() for p in module.parameters())

    def forward_graph(self, inputs: Inputs) -> None:
        """Nothing is shared: derivatives come from torch.func.jvp."""

    def factors(self, inputs: Inputs, cotangents: Tensor, graph: object = None) -> Iterator[tuple[str, Factors]]:
        """(parameter name, factors) for each parameter."""
        with torch.no_grad():
            gradients = per_sample_gradients(self.module, inputs, cotangents)
        for name, values in gradients.items():
            yield name, Dense(values[..., None].flatten(2))
