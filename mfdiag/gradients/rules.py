"""Rules of layers: from input and output cotangents to the factors of the parameters' per-sample gradients.

One rule per layer type, all of one signature. A layer of another class, as many repositories write their own, gets the
rule of the layer type that its parameters resemble. Every rule is compared with the reference before it is used
(`trials.py`), so a wrong guess costs nothing. A layer without a rule is no error: its parameters are left to the
reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfdiag.gradients.factors import Dense, Factors, Outer

__all__ = [
    "LINEAR_RULES",
    "Rule",
    "convolution_factors",
    "is_guess",
    "linear_factors",
    "rule_for",
    "transposed_convolution_factors",
]

Rule = Callable[[nn.Module, Tensor, Tensor], dict[str, Factors]]
"""(module, input [n, ...], output cotangents [C, n, ...]) -> parameter name within the module -> factors."""

_RULES: dict[type[nn.Module], Rule] = {}


def _rule(*types: type[nn.Module]) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(types, rule))
        return rule

    return register


def rule_for(module: nn.Module) -> Rule | None:
    """The rule of a module whose forward is a known layer type's, else of the type that its parameters resemble.

    No rule holds for complex parameters.
    """
    if any(p.is_complex() for p in module.parameters(recurse=False)):
        return None
    kind = _known_kind(module)
    if kind is None:
        return _likely_rule(module)
    return _RULES[kind] if _rule_applies(module) else None


def is_guess(module: nn.Module) -> bool:
    """Whether the rule of a module follows from the shapes of its parameters alone."""
    return _known_kind(module) is None


def _known_kind(module: nn.Module) -> type[nn.Module] | None:
    return next((k for k in _RULES if isinstance(module, k) and type(module).forward is k.forward), None)


def _likely_rule(module: nn.Module) -> Rule | None:
    parameters = dict(module.named_parameters(recurse=False))
    if "weight" not in parameters or parameters.keys() - {"weight", "bias"} or [*module.children()]:
        return None
    axes = parameters["weight"].ndim
    if axes == 1:
        return group_norm if hasattr(module, "num_groups") and hasattr(module, "eps") else None
    return {2: linear, 3: same_convolution, 4: same_convolution, 5: same_convolution}.get(axes)


def _rule_applies(module: nn.Module) -> bool:
    """Embeddings that renormalize their rows or rescale their gradient do not follow the chain rule."""
    return not (isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq))


@_rule(nn.Linear)
def linear(module: nn.Module, a: Tensor, g: Tensor) -> dict[str, Factors]:
    return linear_factors(a, g)


def linear_factors(a: Tensor, g: Tensor) -> dict[str, Factors]:
    """Factors of weight and bias of y = a W^T + b.

    Args:
        a: Inputs [n, ..., p].
        g: Cotangents of the output, [C, n, ..., q].

    Returns:
        Factors of `weight` [q, p] and `bias` [q].
    """
    a, g = a.reshape(len(a), -1, a.shape[-1]), g.reshape(*g.shape[:2], -1, g.shape[-1])
    return {"weight": Outer(a, g), "bias": Dense(g.sum(2))}


@_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(module: nn.Module, a: Tensor, g: Tensor) -> dict[str, Factors]:
    assert isinstance(module, nn.modules.conv._ConvNd)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    a = F.pad(a, module._reversed_padding_repeated_twice, mode=mode)
    return convolution_factors(a, g, module.kernel_size, module.stride, module.dilation, module.groups)


@_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution(module: nn.Module, a: Tensor, g: Tensor) -> dict[str, Factors]:
    assert isinstance(module, nn.modules.conv._ConvTransposeNd)
    assert not isinstance(module.padding, str)
    return transposed_convolution_factors(
        a, g, module.kernel_size, module.stride, module.padding, module.dilation, module.groups
    )


def same_convolution(module: nn.Module, a: Tensor, g: Tensor) -> dict[str, Factors]:
    """A convolution of unknown class: stride 1, and padding with zeros that keeps the size."""
    assert isinstance(module.weight, Tensor)
    _, channels, *kernel = module.weight.shape
    ones = [1] * len(kernel)
    a = F.pad(a, [size // 2 for size in reversed(kernel) for _ in range(2)])
    return convolution_factors(a, g, kernel, ones, ones, a.shape[1] // channels)


def convolution_factors(
    a: Tensor, g: Tensor, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int], groups: int
) -> dict[str, Factors]:
    """Factors of weight and bias of a convolution.

    Args:
        a: Inputs with their padding, [n, channels, *spatial].
        g: Cotangents of the output, [C, n, channels, *spatial].
        kernel: Size of the window along each spatial axis.
        strides: Steps from window to window.
        dilation: Steps within a window.
        groups: Groups of channels.

    Returns:
        Factors of `weight` and `bias`.
    """
    a = _patches(a, kernel, strides, dilation, groups)
    g = g.flatten(3).transpose(2, 3)  # [C, n, positions, channels-out]
    bias = Dense(g.sum(2))
    if groups == 1:
        return {"weight": Outer(a[:, 0], g), "bias": bias}
    # each group of channels sees its own patches; the groups' gradients are concatenated
    g = g.unflatten(3, (groups, -1))
    values = torch.einsum("cntgo,ngtp->cngop", g, a)
    return {"weight": Dense(values.flatten(2)), "bias": bias}


def _patches(a: Tensor, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
    """The windows of a [n, channels, *spatial]: [n, groups, positions, channels / groups * kernel]."""
    spatial = a.ndim - 2
    for axis, (size, stride, step) in enumerate(zip(kernel, strides, dilation, strict=True), start=2):
        a = a.unfold(axis, (size - 1) * step + 1, stride)[..., ::step]  # the window becomes a last axis
    return a.unflatten(1, (groups, -1)).movedim(2, 2 + spatial).flatten(2 + spatial).flatten(2, 1 + spatial)


def transposed_convolution_factors(
    a: Tensor,
    g: Tensor,
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> dict[str, Factors]:
    """Factors of weight and bias of a transposed convolution y = W^T a + b, where W is a convolution.

    <g, W^T a> = <W g, a>: the gradient is that of the convolution W of g with the cotangent a.

    Args:
        a: Inputs [n, channels, *spatial].
        g: Cotangents of the output, [C, n, channels, *spatial].
        kernel: Size of the window along each spatial axis.
        strides: Steps from window to window.
        padding: What the convolution pads on both sides.
        dilation: Steps within a window.
        groups: Groups of channels.

    Returns:
        Factors of `weight` and `bias`.
    """
    bias = Dense(g.flatten(3).sum(3))
    cotangents, n = g.shape[:2]
    g = F.pad(g.flatten(0, 1), [width for width in reversed(padding) for _ in range(2)])
    for axis, (size, length, stride, step) in enumerate(zip(a.shape[2:], kernel, strides, dilation, strict=True), 2):
        g = g.narrow(axis, 0, (size - 1) * stride + (length - 1) * step + 1)  # output padding may allow more windows
    patches = _patches(g, kernel, strides, dilation, groups).unflatten(0, (cotangents, n))
    a = a.flatten(2).transpose(1, 2)  # [n, positions, channels-in]
    if groups == 1:
        return {"weight": Outer(a, patches[:, :, 0], inputs_first=True), "bias": bias}
    values = torch.einsum("ntgi,cngto->cngio", a.unflatten(2, (groups, -1)), patches)
    return {"weight": Dense(values.flatten(2)), "bias": bias}


LINEAR_RULES = (linear, convolution, same_convolution, transposed_convolution)
"""Rules of layers y = W a + b."""


@_rule(nn.Embedding)
def embedding(module: nn.Module, a: Tensor, g: Tensor) -> dict[str, Factors]:
    assert isinstance(module, nn.Embedding)
    index = a.reshape(len(a), -1)
    one_hot = F.one_hot(index, module.num_embeddings).to(g.dtype)
    if module.padding_idx is not None:
        one_hot[..., module.padding_idx] = 0
    return {"weight": Outer(one_hot, g.reshape(*g.shape[:2], -1, g.shape[-1]), inputs_first=True)}


@_rule(nn.LayerNorm)
def layer_norm(module: nn.Module, a: Tensor, g: Tensor) -> dict[str, Factors]:
    assert isinstance(module, nn.LayerNorm)
    return _affine(F.layer_norm(a, module.normalized_shape, eps=module.eps), g, len(module.normalized_shape))


@_rule(nn.RMSNorm)
def rms_norm(module: nn.Module, a: Tensor, g: Tensor) -> dict[str, Factors]:
    assert isinstance(module, nn.RMSNorm)
    return _affine(F.rms_norm(a, module.normalized_shape, eps=module.eps), g, len(module.normalized_shape))


@_rule(nn.GroupNorm)
def group_norm(module: nn.Module, a: Tensor, g: Tensor) -> dict[str, Factors]:
    normal = F.group_norm(a, int(module.num_groups), eps=float(module.eps))  # type: ignore[arg-type]
    return _affine(normal.movedim(1, -1), g.movedim(2, -1), 1)


def _affine(normal: Tensor, g: Tensor, axes: int) -> dict[str, Factors]:
    """weight and bias of y = weight * normal + bias, whose shape is the last `axes` axes."""
    shape = normal.shape[normal.ndim - axes :].numel()
    g, normal = g.reshape(*g.shape[:2], -1, shape), normal.reshape(len(normal), -1, shape)
    return {"weight": Dense((g * normal).sum(2)), "bias": Dense(g.sum(2))}
