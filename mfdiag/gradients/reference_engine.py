"""The slow, obvious engine: per-sample gradients by vmap, multiplied out. The fast engine must agree with it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from mfdiag.derivatives.attention import twice_differentiable
from mfdiag.derivatives.reverse_mode import vjp
from mfdiag.errors import NETWORK_ERRORS
from mfdiag.fields.inputs import Inputs, select_samples
from mfdiag.flow.conditions import Conditions
from mfdiag.gradients.agreement import disagreeing_parameters
from mfdiag.gradients.capabilities import NetworkCapabilities
from mfdiag.gradients.engine_protocol import Engine
from mfdiag.gradients.factors import Dense, Factors
from mfdiag.gradients.functional import call, flat_gradient, gradient_size, parameter_places
from mfdiag.gradients.recorder import RecordedForward

__all__ = ["ReferenceEngine", "per_sample_gradients", "vmap_is_right"]


def per_sample_gradients(
    module: nn.Module,
    inputs: Inputs,
    cotangents: Tensor,
    names: Iterable[str] | None = None,
    *,
    one_by_one: bool = False,
) -> dict[str, Tensor]:
    """Compute (du_i/dtheta)^T e[c, i]. A network that vmap does not support is differentiated one sample at a time.

    Args:
        module: The network.
        inputs: n samples.
        cotangents: e, [C, n, *shape].
        names: The parameters; None takes all.
        one_by_one: Do not try vmap.

    Returns:
        Name of each parameter -> its gradients [C, n, *parameter shape].
    """
    state = {k: p.detach() for k, p in module.named_parameters()}
    parameters = {k: state[k] for k in (state if names is None else names)}
    if one_by_one:
        return _one_by_one(module, inputs, cotangents, parameters)
    places = parameter_places(module)
    x, r, t, condition = inputs
    tensors = condition.tensors if isinstance(condition, Conditions) else condition  # vmap knows no other classes

    def of_sample(x: Tensor, r: Tensor, t: Tensor, own: Any, e: Tensor) -> dict[str, Tensor]:
        one = condition.with_tensors(own) if isinstance(condition, Conditions) else own

        def product(parameters: dict[str, Tensor], e_c: Tensor) -> Tensor:
            batch = (x[None], r[None], t[None], None if one is None else one[None])
            return (call(module, places, {**state, **parameters}, batch)[0] * e_c).sum()

        return vmap(grad(product), in_dims=(None, 0))(parameters, e)

    in_dims = (0, 0, 0, None if condition is None else 0, 1)
    with twice_differentiable(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # the reference may be slow
        try:
            gradients = vmap(of_sample, in_dims=in_dims, randomness="error")(x, r, t, tensors, cotangents)
        except NETWORK_ERRORS:  # a network that fails on single samples too raises its own error
            return _one_by_one(module, inputs, cotangents, parameters)
    return {name: values.transpose(0, 1) for name, values in gradients.items()}  # out_dims=1 fails on unused parameters


def vmap_is_right(
    module: nn.Module,
    inputs: Inputs,
    cotangent: Tensor,
    singles: Mapping[str, Sequence[Tensor]],
    names: Iterable[str] | None = None,
) -> bool:
    """Whether `per_sample_gradients` gives the gradients of single samples: some of torch's batching rules are wrong.

    Those of PReLU go wrong where there are as many cotangents as samples, so both are n here.

    Args:
        module: The network.
        inputs: n samples.
        cotangent: e, [n, *shape].
        singles: Every parameter's name -> its gradients at these samples and cotangents, by plain reverse mode.
        names: The parameters; None takes all.

    Returns:
        Whether they agree.
    """
    n = len(cotangent)
    scales = [1.0 + c for c in range(n)]
    gradients = per_sample_gradients(module, inputs, torch.stack([scale * cotangent for scale in scales]), names)
    for name, values in gradients.items():
        if values.shape[:2] != (n, n):
            return False
        for scale, of_scale in zip(scales, values, strict=True):
            flat = Dense(flat_gradient(of_scale[None] / scale, 2))
            if disagreeing_parameters([(name, flat)], {name: singles[name]}):
                return False
    return True


def _one_by_one(
    module: nn.Module, inputs: Inputs, cotangents: Tensor, parameters: dict[str, Tensor]
) -> dict[str, Tensor]:
    """`per_sample_gradients` of `parameters`, by a loop over samples and cotangents."""
    state = {name: p.detach() for name, p in module.named_parameters()}
    leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
    places = parameter_places(module)
    gradients = {name: p.new_empty(*cotangents.shape[:2], *p.shape) for name, p in parameters.items()}
    for i in range(len(inputs[0])):
        sample = slice(i, i + 1)
        with torch.enable_grad():
            u = call(module, places, {**state, **leaves}, select_samples(inputs, sample))
        for c, e in enumerate(cotangents[:, sample]):
            products = vjp([u], [e], list(leaves.values()), retain_graph=True)
            for name, product in zip(leaves, products, strict=True):
                gradients[name][c, i] = product
    return gradients


class ReferenceEngine(Engine):
    """Per-sample gradients of every parameter in memory, [C, n, P] for the whole chunk."""

    uses_rules = False

    def __init__(self, module: nn.Module, *, one_by_one: bool = False) -> None:
        self.module = module
        parameters = dict(module.named_parameters())
        self.capabilities = NetworkCapabilities(
            layers=frozenset(),
            bare={},
            fallback=frozenset(parameters),
            reversible=False,
            linearized=False,
            one_by_one=one_by_one,
            bytes_per_sample=sum(gradient_size(p) * p.element_size() for p in parameters.values()),
        )

    def forward_graph(self, inputs: Inputs) -> None:
        """Nothing is shared: derivatives come from torch.func.jvp."""

    def factors(
        self, inputs: Inputs, cotangents: Tensor, graph: RecordedForward | None = None
    ) -> Iterator[tuple[str, Factors]]:
        with torch.no_grad():
            one_by_one = self.capabilities.one_by_one
            gradients = per_sample_gradients(self.module, inputs, cotangents, one_by_one=one_by_one)
        for name, values in gradients.items():
            yield name, Dense(flat_gradient(values, 2))
