"""How a run differentiates the network along tangents: exactly where it can, else by central differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mfdiag.derivatives.attention import FusedAttentionDetector
from mfdiag.derivatives.differentiable_jvp import DifferentiableJvp
from mfdiag.derivatives.finite_difference import central_difference, difference_quotients
from mfdiag.derivatives.forward_graph import CheckedJvp, forward_graph
from mfdiag.derivatives.forward_mode import NoForwardModeError, forward_mode_derivatives
from mfdiag.errors import NETWORK_ERRORS, InputError, did_you_mean
from mfdiag.fields.inputs import Differentiate, Inputs
from mfdiag.flow.conditions import Condition

__all__ = ["Derivative", "choose_derivative", "forward_mode", "parse_derivative"]

_KINDS = ("auto", "jvp", "difference")
_LARGEST_STEP = 0.5  # of times in [0, 1]
_WRONG = 0.01  # a relative error that rounding does not explain
_QUICK_STEPS = (2.0**-7, 2.0**-14)  # for times as they are and multiplied by 1000, in the run's own precision
_CAREFUL_STEP = 2.0**-16  # in float64: small enough for times multiplied by 1000, large enough for rounding


class Derivative(NamedTuple):
    """What differentiates the network, and its `name` in tables: jvp, or difference:h.

    `jvp` is the same with a gradient to the parameters. It is None where derivatives are exact; then exact methods with
    a gradient serve.
    """

    name: str
    differentiate: Differentiate
    jvp: DifferentiableJvp | None = None


def parse_derivative(spec: str) -> tuple[str, float | None]:
    """Kind and step of `auto`, `jvp`, `difference` or `difference:h`.

    Raises:
        InputError: `spec` is anything else.
    """
    kind, _, text = spec.partition(":")
    if kind not in _KINDS:
        raise did_you_mean("derivative", kind, _KINDS)
    if not text and spec == kind:
        return kind, None
    try:
        step = float(text)
    except ValueError:
        step = math.nan
    if kind != "difference" or not 0 < step <= _LARGEST_STEP:
        raise InputError(
            "--derivative takes auto, jvp, difference, or difference:h with a step h above 0 and at most "
            f"{_LARGEST_STEP}, such as difference:0.005; got {spec!r}."
        )
    return kind, step


def choose_derivative(
    spec: str,
    module: nn.Module,
    inputs: Inputs,
    dx: Tensor,
    dt: Tensor,
    say: Callable[[str], None],
    checked: CheckedJvp | None = None,
    *,
    smooth_times: bool = True,
) -> Derivative:
    """Choose how to differentiate a network, and check it on a few samples.

    `auto` takes the first that works: forward mode, double backward, central differences.

    Args:
        spec: A derivative as `parse_derivative` takes it.
        module: The network, u(x, r, t, labels).
        inputs: The samples to check on.
        dx: Tangents of x to check along, [m, n, *shape].
        dt: Tangents of t, [m, n], each 0 or 1.
        say: Receives notes.
        checked: Derivatives that an engine has computed by double backward and found right. Forward mode is not tried
            then; these are compared with difference quotients instead.
        smooth_times: Whether times reach the output smoothly. Where they do not, as is said elsewhere, derivatives are
            compared along x alone.

    Returns:
        The derivative.

    Raises:
        InputError: `spec` is jvp, and the network has no exact derivative; or `spec` is auto, and the exact derivative
            differs from a difference quotient. Under jvp the latter is only a note.
    """
    kind, step = parse_derivative(spec)
    if kind != "difference":
        try:
            derivative, checked = _exact_derivative(module, inputs, dx, dt, checked)
        except NoForwardModeError as missing:
            if kind == "jvp":
                raise
            say(f"the network supports neither forward mode nor double backward: {missing.reason}.")
        else:
            if not smooth_times:
                along_x = dx, torch.zeros_like(dt)
                checked = CheckedJvp(inputs, *along_x, derivative.differentiate(*inputs, *along_x)[1])
            with FusedAttentionDetector() as attention:
                _require_agreement(module, checked, None if kind == "auto" else say)
            if attention.seen:
                say("attention runs in elementary steps (MATH backend): fused kernels cannot be differentiated twice.")
            return derivative
    difference = central_difference(module, inputs, dx, dt, step)
    say(f"derivatives by central differences of step {difference.step:g}, relative error about {difference.error:.1g}.")
    return Derivative(difference.name, difference, difference.jvp)


def forward_mode(module: nn.Module) -> Derivative:
    """Forward mode, without a check that the network supports it."""
    return Derivative("jvp", partial(forward_mode_derivatives, module))


def _exact_derivative(
    module: nn.Module, inputs: Inputs, dx: Tensor, dt: Tensor, checked: CheckedJvp | None
) -> tuple[Derivative, CheckedJvp]:
    """The exact derivative, and values of it. Raises NoForwardModeError where the network has none."""
    if checked is not None:
        return Derivative("jvp", partial(_forward_mode_or_double_backward, module)), checked
    try:
        derivatives = forward_mode_derivatives(module, *inputs, dx, dt)[1]
        return forward_mode(module), CheckedJvp(inputs, dx, dt, derivatives)
    except NoForwardModeError:
        if not _reversible(module, inputs):
            raise
        derivatives = _double_backward(module, *inputs, dx, dt)[1]
        return Derivative("jvp", partial(_double_backward, module)), CheckedJvp(inputs, dx, dt, derivatives)


def _reversible(module: nn.Module, inputs: Inputs) -> bool:
    """Whether double backward works and is right."""
    try:
        return forward_graph(module, inputs).check_jvp() is not None
    except NETWORK_ERRORS:
        return False


def _forward_mode_or_double_backward(
    module: nn.Module, x: Tensor, r: Tensor, t: Tensor, condition: Condition, dx: Tensor, dt: Tensor
) -> tuple[Tensor, Tensor]:
    """Forward mode, which is cheaper for many tangents, where the network supports it. Both are right."""
    try:
        return forward_mode_derivatives(module, x, r, t, condition, dx, dt)
    except NoForwardModeError:
        return _double_backward(module, x, r, t, condition, dx, dt)


def _double_backward(
    module: nn.Module, x: Tensor, r: Tensor, t: Tensor, condition: Condition, dx: Tensor, dt: Tensor
) -> tuple[Tensor, Tensor]:
    return forward_graph(module, (x, r, t, condition)).derivatives(dx, dt)


def _require_agreement(module: nn.Module, checked: CheckedJvp, say: Callable[[str], None] | None) -> None:
    """InputError, or a note where `say` takes it, if the derivatives differ from a difference quotient."""
    inputs, dx, dt, derivatives = checked
    x, r, t, _ = inputs
    gap = (t - r).view(-1, *[1] * (x.ndim - 1))  # derivatives enter the residual times t - r

    def error_against(quotients: Tensor) -> float:
        exact = derivatives[: len(quotients)]
        distance, size = ((gap * part).flatten(2).norm(dim=2) for part in (exact - quotients, exact))
        return float((distance / (distance + size).clamp_min(torch.finfo(x.dtype).tiny)).max())

    # one quick quotient that agrees is enough; one that disagrees may be wrong itself
    with torch.no_grad():
        for step in _QUICK_STEPS:
            if error_against(difference_quotients(module, x.dtype, inputs, dx[:1], dt[:1], step)) <= _WRONG:
                return
    difference = central_difference(module, inputs, dx, dt, _CAREFUL_STEP)
    error = error_against(difference(*inputs, dx, dt)[1])
    if not (difference.error < _WRONG / 10 and error > _WRONG):
        return
    text = (
        f"the model's own derivative differs by {error:.0%} from its difference quotient, so some operation (detach, a "
        "view as another type, a kernel) cuts the graph, and parameter gradients may be wrong too"
    )
    if say is None:
        raise InputError(
            f"{text[0].upper()}{text[1:]}: replace that operation, or pass --derivative jvp to measure with it, or "
            "--derivative difference to avoid it."
        )
    say(f"{text}.")
