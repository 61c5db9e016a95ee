"""Checks that a network is a function of each sample alone: no randomness, and no layer that sees the batch."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mfdiag.errors import InputError, abbreviated
from mfdiag.fields.inputs import Inputs, require_velocity, select_samples
from mfdiag.flow.conditions import map_condition
from mfdiag.gradients.functional import hooked
from mfdiag.models.plain_calls import plain_calls

__all__ = ["mixing_layer", "require_repeatable"]

_CLOSE = 1e-4  # relative; other kernels, or another order of summation, stay far below
_COPIES = 16  # enough that an occasional label drop shows


class _Call(NamedTuple):
    """One call of a module: its `name` in the model, and the norms [n] of each sample in its input and output.

    The input is the first argument; None where its norms are not known.
    """

    name: str
    input: Tensor | None
    output: Tensor


def require_repeatable(module: nn.Module, inputs: Inputs) -> None:
    """Check that equal calls of `module` give equal results, and that no layer normalizes over the batch.

    Raises:
        InputError: Results differ or a layer does, which the error names; or the result is not one tensor like x.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None):
            raise InputError(
                f"{_place(module, name)} normalizes over the batch even in eval mode, so the model mixes its samples: "
                "make it use running statistics."
            )
    looks_random = _looks_random(module, inputs)
    _require_harmless_buffers(module, inputs)
    if not looks_random:
        return
    *others, condition = inputs
    x, r, t = map(_copies, others)
    copies = (x, r, t, map_condition(condition, _copies))
    layer = _first_difference(module, *(_calls(module, copies) for _ in range(2)))
    if layer is not None:
        raise InputError(
            f"Equal calls of the model give different results, first in {layer}: switch off its dropout, label drop or "
            "noise that eval mode leaves on."
        )


def _copies(values: Tensor) -> Tensor:
    return values.repeat(_COPIES, *[1] * (values.ndim - 1))


def _require_harmless_buffers(module: nn.Module, inputs: Inputs) -> None:
    """InputError where a buffer or a tensor that the model stores in a call changes the output of the next one."""
    calls = plain_calls(module)
    if calls is None:
        return

    def matters(place: str | tuple[str, str]) -> bool:
        with torch.no_grad(), calls.keeping(module, place):
            return not torch.equal(module(*inputs), module(*inputs))

    for name in sorted(calls.changed):
        if matters(name):
            layer, _, buffer = name.rpartition(".")
            raise InputError(
                f"{_place(module, layer)} changes its buffer {buffer!r} when it is called, and the model's output "
                "depends on it: fix the buffer in eval mode."
            )
    for place in sorted(calls.stored):
        if matters(place):
            raise InputError(
                f"{_place(module, place[0])} stores a tensor in {place[1]!r} when it is called, and the output of "
                "its next call depends on it: make it a function of its inputs in eval mode."
            )
    if calls.caches.changed:
        with torch.no_grad(), calls.keeping_containers(module):
            alike = torch.equal(module(*inputs), module(*inputs))
        if not alike:
            names = abbreviated(sorted({name for name, _ in calls.caches.changed}))
            raise InputError(
                f"The model stores tensors in containers of its own when it is called ({names}), and the output of its "
                "next call depends on them: make it a function of its inputs in eval mode."
            )


def _looks_random(module: nn.Module, inputs: Inputs) -> bool:
    """Whether a call draws random numbers from a shared generator, or equal calls differ."""
    device = inputs[0].device
    before = _generators(device)
    with torch.no_grad():
        u = require_velocity("The model", module(*inputs), inputs[0])
        draws = any(a != b for a, b in zip(before, _generators(device), strict=True))
        return draws or not torch.equal(u, module(*inputs))


def _generators(device: torch.device) -> list[object]:
    """States of the global generators that networks draw from."""
    of_numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - the global one, which networks may draw from
    of_torch = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return [random.getstate(), str(of_numpy), *(state.numpy().tobytes() for state in of_torch)]


def mixing_layer(module: nn.Module, inputs: Inputs) -> str | None:
    """The first layer whose output for one sample depends on the others; None if no single layer shows it."""
    return _first_difference(module, _calls(module, select_samples(inputs, slice(1))), _calls(module, inputs))


def _calls(module: nn.Module, inputs: Inputs) -> list[_Call]:
    """Each call of each module, inner ones first."""
    calls: list[_Call] = []
    n = len(inputs[0])

    def norms(values: object) -> Tensor | None:
        if isinstance(values, Tensor) and values.is_floating_point() and values.numel() % n == 0:
            return values.reshape(n, -1).double().norm(dim=1)
        return None

    def hook_for(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(layer: nn.Module, args: tuple[object, ...], out: object) -> None:
            if (output := norms(out)) is not None:
                calls.append(_Call(name, norms(args[0]) if args else None, output))

        return hook

    with hooked(dict(module.named_modules()), hook_for), torch.no_grad():
        module(*inputs)
    return calls


def _first_difference(module: nn.Module, calls: list[_Call], others: list[_Call]) -> str | None:
    """Where results first differ in the samples that both have: in a layer, or in what its parent passes to it."""
    for call, other in zip(calls, others, strict=False):
        if _differ(call.output, other.output):
            inherited = call.input is not None and other.input is not None and _differ(call.input, other.input)
            return _place(module, call.name.rpartition(".")[0] if inherited else call.name)
    return None


def _differ(a: Tensor, b: Tensor) -> bool:
    return bool(torch.dist(a, b[: len(a)]) > _CLOSE * a.norm())


def _place(module: nn.Module, name: str) -> str:
    kind = type(module.get_submodule(name)).__name__
    return f"{name} ({kind})" if name else kind
