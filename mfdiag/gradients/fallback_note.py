"""What a run says about parameters that it computes by the slower reference method."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from mfdiag.errors import abbreviated
from mfdiag.models.wrapper import prefix_of

__all__ = ["fallback_note"]

_LISTED = 4  # parameters that a note names


def fallback_note(module: nn.Module, parameters: Iterable[str], of: str = "") -> str:
    """The note about parameters that no fast path serves.

    Args:
        module: The network.
        parameters: Their names in `module`.
        of: What they are computed for, such as " for some estimators"; empty for everything.

    Returns:
        One sentence. It shows names as the network has them, without the prefix of wrappers.
    """
    names = sorted(name.removeprefix(prefix_of(module)) for name in parameters)
    count = f"{len(names)} parameter{'s' * (len(names) > 1)}"
    listed = abbreviated(names, _LISTED)
    return f"{count} computed by the slower reference method{of}, with the same result: {listed}."
