"""Where in a network an error was raised."""

from __future__ import annotations

from torch import nn

from mfdiag.errors import first_line
from mfdiag.models.wrapper import unwrapped

__all__ = ["failing_layer", "reason_of"]


def failing_layer(error: BaseException) -> str | None:
    """The innermost layer of a network in which an error was raised, as "name (Kind)"; None if it was in none."""
    parts: list[nn.Module] = []
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            parts.append(owner)
        trace = trace.tb_next
    if not parts:
        return None
    network = unwrapped(parts[0])
    names = {part: name for name, part in network.named_modules()}
    kind = type(parts[-1]).__name__
    name = names.get(parts[-1], "")
    return f"{name} ({kind})" if name else kind


def reason_of(error: BaseException) -> str:
    """The first line of an error, with its kind if that says more, and the layer in which it was raised."""
    line = first_line(error).removesuffix(".")
    text = (
        line if isinstance(error, RuntimeError) or line == type(error).__name__ else f"{type(error).__name__}: {line}"
    )
    layer = failing_layer(error)
    return text if layer is None else f"{text}, in {layer}"
