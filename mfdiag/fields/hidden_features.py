"""Hidden features of a network: the output of a layer from the middle of its longest stack of layers."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["hidden_features"]


def hidden_features(module: Callable[..., Tensor], evaluate: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Evaluate a network and keep what a layer in its middle returns.

    Stacks are the nn.ModuleList and nn.Sequential of the network. The longest is the one with the most elements that
    the evaluation calls and that return a tensor, first or alone; the first of several. Where there is none, the
    features are the network's own output.

    Args:
        module: The network; without layers to look up, the features are its output.
        evaluate: Calls it once, or a copy that runs its layers.

    Returns:
        u [n, *shape], and features [n, number of features].
    """
    modules = module.modules() if isinstance(module, nn.Module) else ()
    stacks = [list(m) for m in modules if isinstance(m, nn.ModuleList | nn.Sequential)]
    outputs: dict[int, Tensor] = {}

    def keep(layer: nn.Module, args: object, out: object) -> None:
        first = out[0] if isinstance(out, tuple | list) and out else out
        if isinstance(first, Tensor) and first.is_floating_point():
            outputs.setdefault(id(layer), first)

    handles = [layer.register_forward_hook(keep) for layer in {id(e): e for stack in stacks for e in stack}.values()]
    try:
        u = evaluate()
    finally:
        for handle in handles:
            handle.remove()
    n = len(u)
    used = [[outputs[id(e)] for e in stack if id(e) in outputs and outputs[id(e)].numel() % n == 0] for stack in stacks]
    longest: list[Tensor] = max(used, key=len, default=[])
    hidden = longest[len(longest) // 2] if longest else u
    return u, hidden.reshape(n, -1)  # also where tokens are folded into the batch axis
