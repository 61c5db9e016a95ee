"""Modules around a network that change its inputs or outputs. The tables show its parameters under their own names."""

from __future__ import annotations

from torch import nn

__all__ = ["Wrapper", "conditions_taken", "conditions_without_null", "prefix_of", "unwrapped"]


class Wrapper(nn.Module):
    """Base of modules around a `network`; they add no parameters.

    Attributes:
        condition_names: Names of the arrays beside the samples that it passes on; None where the network decides.
        conditions_without_null: Those that no null value is known of, so that guidance cannot drop them.
    """

    condition_names: tuple[str, ...] | None = None
    conditions_without_null: tuple[str, ...] = ()

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


def prefix_of(module: nn.Module) -> str:
    """The prefix that wrappers around a network add to the names of its parameters."""
    return f"network.{prefix_of(module.network)}" if isinstance(module, Wrapper) else ""


def conditions_taken(network: object) -> tuple[str, ...]:
    """Names of the arrays beside the samples that a network takes in `Conditions`."""
    adapter = _adapter(network)
    return () if adapter is None else adapter.condition_names or ()


def conditions_without_null(network: object) -> tuple[str, ...]:
    """Names of the arrays that a network takes and that guidance cannot drop."""
    adapter = _adapter(network)
    return () if adapter is None else adapter.conditions_without_null


def _adapter(network: object) -> Wrapper | None:
    """The outermost wrapper that decides about conditions."""
    while isinstance(network, Wrapper) and network.condition_names is None:
        network = network.network
    return network if isinstance(network, Wrapper) else None


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside all wrappers."""
    while isinstance(module, Wrapper):
        module = module.network
    return module
