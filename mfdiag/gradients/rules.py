"""How each kind of layer leaves its parameters' per-sample gradients: input and output cotangent -> factors.

One rule per layer type, all of one signature. A layer type without a rule, or with an overridden forward, is no
error: its parameters go to the reference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfdiag.gradients.factors import Dense, Factors, Outer

__all__ = ["RULES", "Rule", "rule_for"]

Rule = Callable[[nn.Module, Tensor, Tensor], dict[str, Factors]]
"""(module, input [n, ...], output cotangents [C, n, ...]) -> parameter name within the module -> factors."""

RULES: dict[type[nn.Module], Rule] = {}


def _rule(*types: type[nn.Module]) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(types, rule))
        return rule

    return register


def rule_for(module: nn.Module) -> Rule | None:
    """The rule of a module whose forward is exactly that of a known layer type."""
    for kind, rule in RULES.items():
        if isinstance(module, kind) and type(module).forward is kind.forward and rule_applies(module):
            return rule
    return None


def rule_applies(module: nn.Module) -> bool:
    """Embeddings that renormalise or rescale their own gradient do not follow the chain rule below."""
    return not (isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq))


@_rule(nn.Linear)
def linear(module: nn.Module, a: Tensor, g: Tensor) -> dict[str, Factors]:
    a, g = a.reshape(len(a), -1, a.shape[-1]), g.reshape(*g.shape[:2], -1, g.shape[-1])
    return {"weight": Outer(a, g), "bias": Dense(g.sum(2))}


@_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(module: nn.Module, a: Tensor, g: Tensor) -> dict[str, Factors]:
    assert isinstance(module, nn.modules.conv._ConvNd)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    a = F.pad(a, module._reversed_padding_repeated_twice, mode=mode)
    spatial = a.ndim - 2
    for axis, (size, stride, step) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
    ):
        a = a.unfold(axis, (size - 1) * step + 1, stride)[..., ::step]  # the window becomes a last axis
    groups = module.groups
    # patches [n, groups, positions, channels-in / groups * kernel]
    a = a.unflatten(1, (groups, -1)).movedim(2, 2 + spatial).flatten(2 + spatial).flatten(2, 1 + spatial)
    g = g.flatten(3).transpose(2, 3)  # [C, n, positions, channels-out]
    bias = Dense(g.sum(2))
    if groups == 1:
        return {"weight": Outer(a[:, 0], g), "bias": bias}
    # each group of channels meets its own patches: lay the groups' gradients side by side
    g = g.unflatten(3, (groups, -1))
    values = torch.einsum("cntgo,ngtp->cngop", g, a)
    return {"weight": Dense(values.flatten(2)), "bias": bias}


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
    assert isinstance(module, nn.GroupNorm)
    normal = F.group_norm(a, module.num_groups, eps=module.eps)
    return _affine(normal.movedim(1, -1), g.movedim(2, -1), 1)


def _affine(normal: Tensor, g: Tensor, axes: int) -> dict[str, Factors]:
    """weight and bias of y = weight * normal + bias, whose shape is the last `axes` axes."""
    shape = normal.shape[normal.ndim - axes :].numel()
    g, normal = g.reshape(*g.shape[:2], -1, shape), normal.reshape(len(normal), -1, shape)
    return {"weight": Dense((g * normal).sum(2)), "bias": Dense(g.sum(2))}
