"""`mfdiag.Monitor` as a callback of Lightning: `pip install mfdiag[lightning]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from mfdiag.diagnosis.monitor import Monitor

__all__ = ["LightningMonitor"]


class LightningMonitor(Callback):
    """Monitors a LightningModule's network, on the first process.

    Args:
        data: The data it is trained on, as `mfdiag.measure` takes them.
        network: Finds the network in the LightningModule; by default that module itself is u(x, r, t, labels).
        average: Finds the averaged network; None for none.
        **options: As for `mfdiag.Monitor`.
    """

    def __init__(
        self,
        data: Any,
        network: Callable[[LightningModule], nn.Module] = lambda module: module,
        average: Callable[[LightningModule], nn.Module] | None = None,
        **options: Any,
    ) -> None:
        self.data, self.network, self.average, self.options = data, network, average, options
        self.monitor: Monitor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            ema = None if self.average is None else self.average(pl_module)
            self.monitor = Monitor(self.network(pl_module), self.data, ema=ema, **self.options)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.monitor is not None:
            loss = outputs["loss"] if isinstance(outputs, dict) else outputs
            self.monitor.step(trainer.global_step, loss)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.monitor is not None:
            self.monitor.__exit__(type(exception), exception, exception.__traceback__)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is not None:
            self.monitor.close()
