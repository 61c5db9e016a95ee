"""Networks that the user's own code builds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mfdiag.errors import InputError
from mfdiag.usercode import call_user_factory

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "PARAMETER_ORDER",
    "RUNS_EAGERLY",
    "call_factory",
    "freeze_as_buffers",
    "has_frozen_parameters",
    "is_sharded",
    "without_parallelism",
]

PARAMETER_ORDER = "_mfdiag_parameter_order"  # attribute of a network: its parameters before frozen ones became buffers
RUNS_EAGERLY = "_mfdiag_runs_eagerly"  # attribute of a network whose code compiles or scripts parts of it


def call_factory(factory: str, option: str = "--model", arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a network with the user's code.

    In a network that has trained parameters, frozen and empty ones become buffers of the same names: training never
    changed them, so they have no gradient to measure. A network is taken out of wrappers for several devices, and
    parts that the code compiles or scripts stay as they are written.

    Args:
        factory: `FILE.py:factory` or `pkg.module:factory`; the code is run.
        option: The option or card that names the factory, for errors.
        arguments: Keyword arguments of the factory.

    Returns:
        The network.

    Raises:
        InputError: If the code is missing or fails, or returns something other than a torch.nn.Module.
    """
    from torch import nn

    with _eager_code() as skipped:
        model = call_user_factory(factory, option, arguments)
    model = _whole_network(model)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"Expected {factory} to return a torch.nn.Module, but it returned {type(model).__name__}; "
            "return the network itself."
        )
    if skipped:
        model.__dict__[RUNS_EAGERLY] = True
    model.__dict__[PARAMETER_ORDER] = [name for name, _ in model.named_parameters()]
    if has_frozen_parameters(model):
        freeze_as_buffers(model)
    return model


def has_frozen_parameters(model: nn.Module) -> bool:
    """Whether a network has parameters that training never changed, beside others."""
    trained = [p.requires_grad and p.numel() > 0 for p in model.parameters()]
    return any(trained) and not all(trained)


def freeze_as_buffers(model: nn.Module) -> None:
    """Make buffers of frozen and empty parameters, in place."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad or not parameter.numel():
                delattr(module, name)
                module.register_buffer(name, parameter.detach())


@contextmanager
def _eager_code() -> Iterator[list[str]]:
    """Within this context, `torch.compile` and `torch.jit.script` return what they get; yields which were called.

    Compiled code would be compiled again for every transformation of it, and scripted code supports few of them.
    """
    import torch

    skipped: list[str] = []

    def replacement(name: str) -> Any:
        def unchanged(target: Any = None, *args: Any, **options: Any) -> Any:
            skipped.append(name)
            return (lambda function: function) if target is None else target

        return unchanged

    places: list[tuple[Any, str]] = [(torch, "compile"), (torch.nn.Module, "compile"), (torch.jit, "script")]
    before = [getattr(place, name) for place, name in places]
    for place, name in places:
        setattr(place, name, replacement(name))
    try:
        yield skipped
    finally:
        for (place, name), value in zip(places, before, strict=True):
            setattr(place, name, value)


def without_parallelism(model: Any) -> Any:
    """Look inside the wrappers that spread a network over devices or compile it.

    Args:
        model: The network.

    Returns:
        The innermost network, or the first that shards its parameters.
    """
    from torch import nn

    while not is_sharded(model):
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model, nn.Module) and isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            break
    return model


def is_sharded(model: object) -> bool:
    """Whether a module is one of FSDP, whose parameters are spread over processes."""
    kind = type(model).__name__
    return kind == "FullyShardedDataParallel" or kind.startswith("FSDP")


def _whole_network(model: Any) -> Any:
    """The network that a factory returned, without wrappers. Raises InputError for one that shards its parameters."""
    network = without_parallelism(model)
    if is_sharded(network):
        raise InputError(
            f"Expected a network with whole parameters, but the factory returned a {type(network).__name__}, which "
            "shards them; return the network itself, before it is sharded."
        )
    return network
