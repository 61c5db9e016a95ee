"""The device a command computes on, checked before anything starts."""

from __future__ import annotations

import torch

from mfdiag.errors import InputError, first_line

__all__ = ["checked_device"]


def checked_device(name: str) -> str:
    """`name`, if a computation on it works. Raises InputError with the backend's reason otherwise."""
    try:
        torch.ones(1, device=name).item()  # computes something: naming an absent or `meta` device raises nothing yet
    except Exception as error:  # each backend raises its own errors
        reason = first_line(error).partition(". ")[0].rstrip(".")
        if reason.startswith("Expected one of"):  # torch lists every backend that it could be built with
            reason = "torch knows no such device"
        raise InputError(
            f"--device {name!r} cannot be used here: {reason}. Pass cpu, or a GPU of this machine."
        ) from None
    return name
