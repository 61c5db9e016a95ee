"""Modules around a network that change what it takes or gives; its parameters keep their own names."""

from __future__ import annotations

from torch import nn

__all__ = ["Wrapper", "prefix_of"]


class Wrapper(nn.Module):
    """Holds `network`, and no parameter besides its own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


def prefix_of(module: nn.Module) -> str:
    """What the wrappers around a network put before the names of its parameters."""
    return f"network.{prefix_of(module.network)}" if isinstance(module, Wrapper) else ""
