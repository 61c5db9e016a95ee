"""How a run differentiates the network along tangents: exactly where it can, else by differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mfdiag.derivatives.attention import twice_differentiable
from mfdiag.derivatives.differentiable_jvp import DifferentiableJvp
from mfdiag.derivatives.finite_difference import difference_of, differences
from mfdiag.derivatives.forward_graph import CheckedJvp, ForwardGraph
from mfdiag.derivatives.forward_mode import NoForwardModeError, forward_mode_derivatives
from mfdiag.errors import InputError, did_you_mean
from mfdiag.fields.inputs import Differentiate, Inputs

__all__ = ["Derivative", "choose_derivative", "forward_mode", "parse_derivative"]

_KINDS = ("auto", "jvp", "difference")
_WRONG = 0.01  # a relative error that rounding does not explain
_TRIED_STEP = 2.0**-16  # small enough for times multiplied by 1000, large enough for float64
_QUICK_STEPS = (2.0**-7, 2.0**-14)  # for times as they are and multiplied by 1000, in the run's own precision


class Derivative(NamedTuple):
    """What differentiates, and its `name` in tables: jvp, or difference:h.

    `jvp` does it with a gradient to the parameters; None where derivatives are exact, and an engine's own ways serve.
    """

    name: str
    differentiate: Differentiate
    jvp: DifferentiableJvp | None = None


def parse_derivative(spec: str) -> tuple[str, float | None]:
    """Kind and step of `auto`, `jvp`, `difference` or `difference:h`. Raises InputError for anything else."""
    kind, _, text = spec.partition(":")
    if kind not in _KINDS:
        raise did_you_mean("derivative", kind, _KINDS)
    if not text and spec == kind:
        return kind, None
    try:
        step = float(text)
    except ValueError:
        step = math.nan
    if kind != "difference" or not 0 < step <= 0.5:
        raise InputError(
            f"--derivative takes auto, jvp, difference or difference:h with a step h above 0 and at most 0.5, as in "
            f"difference:0.005; got {spec!r}."
        )
    return kind, step


def forward_mode(module: nn.Module) -> Derivative:
    """By dual numbers, whether or not the module knows them."""
    return Derivative("jvp", partial(forward_mode_derivatives, module))


def choose_derivative(
    spec: str,
    module: nn.Module,
    inputs: Inputs,
    dx: Tensor,
    dt: Tensor,
    say: Callable[[str], None],
    tried: tuple[Inputs, CheckedJvp] | None = None,
) -> Derivative:
    """What `spec` asks for, tried at `inputs` along the tangents dx [m, n, *shape], dt [m, n].

    `auto` is forward mode; without it the backward pass differentiated, if that can be done rightly, as an engine's was
    when it was `tried` (at inputs of its own); without both central differences, which it says. Raises InputError where
    `jvp` is asked for and cannot be had, and where the derivative is wrong by a difference quotient, which under `jvp`
    is but said.
    """
    kind, step = parse_derivative(spec)
    if kind != "difference":
        try:
            if tried is not None:
                found, checked = Derivative("jvp", partial(_by_either, module)), tried
            else:
                found, along = _exact(module, inputs, dx, dt)
                checked = inputs, CheckedJvp(dx, dt, along)
        except NoForwardModeError as missing:
            if kind == "jvp":
                raise
            say(f"no derivative by forward mode or by double backward: {missing.reason}.")
        else:
            with _Fused() as attention:
                _require_right(module, *checked, None if kind == "auto" else say)
            if attention.seen:
                say("attention runs in elementary steps (MATH backend): fused kernels cannot be differentiated twice.")
            return found
    quotient = difference_of(module, inputs, dx, dt, step)
    say(f"derivatives by central differences of step {quotient.step:g}, relative error about {quotient.error:.1g}.")
    return Derivative(quotient.name, quotient, quotient.jvp)


def _exact(module: nn.Module, inputs: Inputs, dx: Tensor, dt: Tensor) -> tuple[Derivative, Tensor]:
    """The exact derivative, and what it gives. Raises NoForwardModeError where there is none."""
    try:
        return forward_mode(module), forward_mode_derivatives(module, *inputs, dx, dt)[1]
    except NoForwardModeError:
        if not _reversible(module, inputs):
            raise
        return Derivative("jvp", partial(_by_reverse, module)), _by_reverse(module, *inputs, dx, dt)[1]


def _require_right(module: nn.Module, inputs: Inputs, tried: CheckedJvp, say: Callable[[str], None] | None) -> None:
    """InputError, or a note where `say` takes it, if the derivatives tried differ from a trusted quotient."""
    x, r, t, _ = inputs
    dx, dt, along = tried
    gap = (t - r).view(-1, *[1] * (x.ndim - 1))  # as they enter the residual

    def error_against(found: Tensor) -> float:
        off, size = ((gap * part).flatten(2).norm(dim=2) for part in (along[: len(found)] - found, along[: len(found)]))
        return float((off / (off + size).clamp_min(torch.finfo(x.dtype).tiny)).max())

    # a quick quotient that agrees settles it; one that does not may itself be the wrong one
    with torch.no_grad():
        if any(error_against(differences(module, x.dtype, inputs, dx[:1], dt[:1], h)) <= _WRONG for h in _QUICK_STEPS):
            return
    quotient = difference_of(module, inputs, dx, dt, _TRIED_STEP)
    error = error_against(quotient(*inputs, dx, dt)[1])
    if not (quotient.error < _WRONG / 10 and error > _WRONG):
        return
    text = (
        f"the model's own derivative is {error:.0%} off its difference quotient, so something in it (detach, a view as "
        "another type, a kernel) cuts its graph, and gradients of parameters may be wrong too"
    )
    if say is None:
        raise InputError(
            f"{text[0].upper()}{text[1:]}: replace that part, or pass --derivative jvp to measure with it, or "
            "--derivative difference to go round it."
        )
    say(f"{text}.")


class _Fused(TorchFunctionMode):
    """Notes whether fused attention is called."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or func in _FUSED
        return func(*args, **(kwargs or {}))


_FUSED = {
    F.scaled_dot_product_attention,
    F.multi_head_attention_forward,  # nn.MultiheadAttention
    torch._transformer_encoder_layer_fwd,
}


def _opened(module: nn.Module, inputs: Inputs) -> ForwardGraph:
    """A forward pass with a graph to x and t."""
    x, r, t, labels = inputs
    x, t = (a.detach().requires_grad_() for a in (x, t))
    with torch.enable_grad(), twice_differentiable():
        return ForwardGraph(module(x, r, t, labels), x, t, [], {})


def _by_either(
    module: nn.Module, x: Tensor, r: Tensor, t: Tensor, labels: Tensor | None, dx: Tensor, dt: Tensor
) -> tuple[Tensor, Tensor]:
    """Forward mode, which is cheaper for many tangents, else reverse; both are right."""
    try:
        return forward_mode_derivatives(module, x, r, t, labels, dx, dt)
    except NoForwardModeError:
        return _by_reverse(module, x, r, t, labels, dx, dt)


def _by_reverse(
    module: nn.Module, x: Tensor, r: Tensor, t: Tensor, labels: Tensor | None, dx: Tensor, dt: Tensor
) -> tuple[Tensor, Tensor]:
    return _opened(module, (x, r, t, labels)).derivatives(dx, dt)


def _reversible(module: nn.Module, inputs: Inputs) -> bool:
    """Whether the backward pass can be differentiated, and rightly."""
    try:
        return _opened(module, inputs).check_jvp() is not None
    except (RuntimeError, NotImplementedError):
        return False
