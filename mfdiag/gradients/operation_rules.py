"""Rules of operations: what one call of a torch function says about the per-sample gradients of its parameters.

They serve parameters that no layer of a known type holds: subclasses of layers, functional layers, weights made from
other parameters. A call names stride, padding and groups itself, so no guess is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mfdiag.gradients.factors import Dense, Factors, Outer
from mfdiag.gradients.rules import convolution_factors, linear_factors, transposed_convolution_factors

__all__ = ["Operation", "operation_of"]

_Rule = Callable[[Tensor, Tensor], dict[str, Factors]]


@dataclass(frozen=True)
class Operation:
    """A call y = W a + b of a torch function.

    Attributes:
        input: a.
        parameters: The arguments that may hold parameters, by name.
        rule: From a [n, ...] and cotangents [C, n, ...] of y to the factors of these arguments.
    """

    input: Tensor
    parameters: Mapping[str, Tensor | None]
    rule: _Rule


def operation_of(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Operation | None:
    """The operation that a call of a torch function is; None where no rule knows it.

    Args:
        function: The function.
        args: Its arguments.
        kwargs: Its arguments by keyword.

    Returns:
        The operation.
    """
    bind = _OPERATIONS.get(function)
    try:
        return None if bind is None else bind(*args, **kwargs)
    except TypeError:  # another overload
        return None


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operation | None:
    return Operation(input, {"weight": weight, "bias": bias}, linear_factors) if weight.ndim == 2 else None


def _product(input: Tensor, other: Tensor) -> Operation | None:
    """a W, with W [p, q]."""
    return Operation(input, {"weight": other}, _product_factors) if other.ndim == 2 and input.ndim > 1 else None


def _product_factors(a: Tensor, g: Tensor) -> dict[str, Factors]:
    by_name = linear_factors(a, g)
    outer = by_name["weight"]
    assert isinstance(outer, Outer)
    return {"weight": Outer(outer.inputs, outer.cotangents, inputs_first=True), "bias": by_name["bias"]}


def _added_product(input: Tensor, mat1: Tensor, mat2: Tensor) -> Operation | None:
    """b + a W."""
    return Operation(mat1, {"weight": mat2, "bias": input}, _product_factors) if input.ndim == 1 else None


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Operation | None:
    if input.ndim != weight.ndim:
        return None  # without a batch axis
    kernel = weight.shape[2:]
    strides, steps = (_each(value, len(kernel)) for value in (stride, dilation))
    if isinstance(padding, str):
        total = [step * (size - 1) * (padding == "same") for step, size in zip(steps, kernel, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(p, p) for p in _each(padding, len(kernel))]

    def rule(a: Tensor, g: Tensor) -> dict[str, Factors]:
        return convolution_factors(_padded(a, sides), g, kernel, strides, steps, groups)

    return Operation(input, {"weight": weight, "bias": bias}, partial(_folded, len(kernel), rule))


def _transposed_convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Operation | None:
    if input.ndim != weight.ndim:
        return None
    kernel = weight.shape[2:]
    strides, paddings, steps = (_each(value, len(kernel)) for value in (stride, padding, dilation))

    def rule(a: Tensor, g: Tensor) -> dict[str, Factors]:
        return transposed_convolution_factors(a, g, kernel, strides, paddings, steps, groups)

    return Operation(input, {"weight": weight, "bias": bias}, partial(_folded, len(kernel), rule))


def _folded(axes: int, rule: _Rule, a: Tensor, g: Tensor) -> dict[str, Factors]:
    """The factors where tokens may be folded into the batch: a is [n, channels, *axes] or [n, k, channels, *axes]."""
    if a.ndim == axes + 2:
        return rule(a, g)
    n, k = a.shape[:2]
    by_name = rule(a.flatten(0, 1), g.flatten(1, 2))
    unfolded: dict[str, Factors] = {}
    for name, factors in by_name.items():
        if isinstance(factors, Outer):
            inputs = factors.inputs.unflatten(0, (n, k)).flatten(1, 2)
            cotangents = factors.cotangents.unflatten(1, (n, k)).flatten(2, 3)
            unfolded[name] = Outer(inputs, cotangents, factors.inputs_first)
        else:
            assert isinstance(factors, Dense)
            unfolded[name] = Dense(factors.values.unflatten(1, (n, k)).sum(2))
    return unfolded


def _padded(a: Tensor, sides: Sequence[tuple[int, int]]) -> Tensor:
    return F.pad(a, [width for side in reversed(sides) for width in side])


def _each(value: int | Sequence[int], axes: int) -> list[int]:
    """One number for each axis."""
    numbers = [value] if isinstance(value, int) else [*value]
    return numbers * axes if len(numbers) == 1 else numbers


_OPERATIONS: dict[Callable[..., Any], Callable[..., Operation | None]] = {
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _product),
    **dict.fromkeys((torch.addmm, Tensor.addmm), _added_product),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    **dict.fromkeys(
        (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        _transposed_convolution,
    ),
}
