"""`mfdiag.Monitor` in a loop of Hugging Face's accelerate: `pip install mfdiag[hf]`."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from torch import nn

from mfdiag.diagnosis.monitor import Monitor

__all__ = ["monitor"]


def monitor(accelerator: Accelerator, model: nn.Module, data: Any, **options: Any) -> Monitor:
    """Monitor a prepared network, on the main process; the main numbers go to the accelerator's trackers.

    Args:
        accelerator: The accelerator that prepared the network.
        model: The prepared network, u(x, r, t, labels).
        data: The data it is trained on, as `mfdiag.measure` takes them.
        **options: As for `mfdiag.Monitor`.

    Returns:
        The monitor; on other processes, one that does nothing.
    """
    writer = accelerator if accelerator.trackers else None
    return Monitor(accelerator.unwrap_model(model), data, **{"writer": writer, **options})
