"""Modules around a network that change its inputs or outputs. The tables show its parameters under their own names."""

from __future__ import annotations

from torch import nn

__all__ = ["Wrapper", "prefix_of", "unwrapped"]


class Wrapper(nn.Module):
    """Base of modules around a `network`; they add no parameters."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


def prefix_of(module: nn.Module) -> str:
    """The prefix that wrappers around a network add to the names of its parameters."""
    return f"network.{prefix_of(module.network)}" if isinstance(module, Wrapper) else ""


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside all wrappers."""
    while isinstance(module, Wrapper):
        module = module.network
    return module
