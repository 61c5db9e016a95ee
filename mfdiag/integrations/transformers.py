"""`mfdiag.Monitor` as a callback of Hugging Face's Trainer: `pip install mfdiag[hf]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mfdiag.diagnosis.monitor import Monitor

__all__ = ["TrainerMonitor"]


class TrainerMonitor(TrainerCallback):
    """Monitors the Trainer's network, on the first process. Spikes show in the losses that the Trainer logs.

    Args:
        data: The data it is trained on, as `mfdiag.measure` takes them.
        network: Finds the network u(x, r, t, labels) in the Trainer's model; by default that model itself.
        **options: As for `mfdiag.Monitor`.
    """

    def __init__(
        self, data: Any, network: Callable[[nn.Module], nn.Module] = lambda model: model, **options: Any
    ) -> None:
        self.data, self.network, self.options = data, network, options
        self.monitor: Monitor | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.monitor = Monitor(self.network(kwargs["model"]), self.data, **self.options)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.monitor is not None:
            self.monitor.step(state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs.get("logs") or {}
        if self.monitor is not None and "loss" in logs:
            self.monitor.look_at(state.global_step, float(logs["loss"]))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.monitor is not None:
            self.monitor.close()
