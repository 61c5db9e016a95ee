"""The monitor in real loops of Lightning, Hugging Face's Trainer and accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import Trainer as HuggingFaceTrainer
from transformers import TrainingArguments

from mfdiag.integrations import accelerate, lightning, transformers
from mfdiag.models.networks.mlp import MLP
from mfdiag.tables.store import read_table

OPTIONS: dict[str, Any] = {"times": "uniform", "samples": 64, "budget": 0.99, "say": lambda note: None}
STEPS = 4


def points() -> torch.Tensor:
    return torch.randn(8 * STEPS, 2, generator=torch.Generator().manual_seed(0))


def loss_of(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    t = torch.full((len(x),), 0.5)
    return network(x, t, t).square().mean()


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = MLP(2, hidden=8, depth=1)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return loss_of(self.net, batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(callbacks: list[Any], folder: Path) -> dict[str, torch.Tensor]:
    module = Module()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(TensorDataset(points()), batch_size=8))
    return dict(module.net.state_dict())


def impatient(monitor: Any) -> None:
    """The first measurement does not wait."""
    monitor._start -= 1000


def test_lightning(tmp_path: Path) -> None:
    class Callback(lightning.LightningMonitor):
        def on_train_start(self, *args: Any) -> None:
            super().on_train_start(*args)
            impatient(self.monitor)

    plain = fit([], tmp_path)
    watched = fit([Callback("two_moons", lambda module: module.net, out=tmp_path / "out", **OPTIONS)], tmp_path)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    assert set(read_table("doctor", tmp_path / "out")["step"]) == set(range(1, STEPS + 1))


class WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = MLP(2, hidden=8, depth=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": loss_of(self.net, x)}


def test_hugging_face_trainer(tmp_path: Path) -> None:
    class Callback(transformers.TrainerMonitor):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            super().on_train_begin(*args, **kwargs)
            impatient(self.monitor)

    callback = Callback("two_moons", lambda model: model.net, out=tmp_path / "out", **OPTIONS)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=8,
        max_steps=STEPS,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    data: Any = [{"x": x} for x in points()]
    HuggingFaceTrainer(WithLoss(), arguments, train_dataset=data, callbacks=[callback]).train()
    assert set(read_table("doctor", tmp_path / "out")["step"]) == set(range(1, STEPS + 1))
    assert callback.monitor is not None and len(callback.monitor._losses) == STEPS


def test_accelerate(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    network: nn.Module = MLP(2, hidden=8, depth=1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    prepared = accelerator.prepare(network, optimizer, DataLoader(TensorDataset(points()), batch_size=8))
    network, optimizer, batches = prepared
    with accelerate.monitor(accelerator, network, "two_moons", out=tmp_path / "out", **OPTIONS) as monitor:
        impatient(monitor)
        for step, (x,) in enumerate(batches, 1):
            loss = loss_of(network, x)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            monitor.step(step, loss)
    assert set(read_table("doctor", tmp_path / "out")["step"]) == set(range(1, STEPS + 1))
