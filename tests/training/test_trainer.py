"""Training: resuming after a kill changes nothing, draws do not depend on buffers, bad requests are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mfdiag.errors import InputError, MfdiagError
from mfdiag.flow.datasets import load_data
from mfdiag.models.checkpoint import load_model
from mfdiag.training import trainer
from mfdiag.training.spec import TrainSpec
from mfdiag.training.trainer import Draws, initial_module, train


def spec_of(**changes: Any) -> TrainSpec:
    values = {
        "data": "gaussian:2,0.5,0.3",
        "model": {"name": "mlp", "arguments": {"dim": 2, "hidden": 8, "depth": 1}},
        "times": "logit_normal:-0.4,1,0.75",
        "loss": {"beta": 0.5, "anchor": {"lambda": 0.5, "delta_max": 0.01}},
        "batch_size": 16,
        "steps": 12,
        "learning_rate": 0.01,
        "ema_decay": 0.9,
        "seed": 3,
        "log_every": 5,
        "save_every": 4,
    }
    return TrainSpec.model_validate(values | changes)


class Killed(Exception):
    pass


@pytest.mark.parametrize(("stop", "kind"), [(7, Killed), (7, KeyboardInterrupt), (4, Killed), (2, Killed)])
def test_resumed_equals_uninterrupted(
    tmp_path: Path, stop: int, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of()
    whole = train(spec, tmp_path / "whole")
    original, out = trainer.update, tmp_path / "parts"
    done = []

    def dying(*arguments: Any) -> Any:
        if len(done) == stop:
            raise kind
        done.append(1)
        return original(*arguments)

    monkeypatch.setattr(trainer, "update", dying)
    with pytest.raises(kind):
        train(spec, out)
    assert not (out / trainer.CHECKPOINT).exists()
    monkeypatch.setattr(trainer, "update", original)
    parts = train(spec, out)
    assert parts.log == whole.log and [entry.step for entry in whole.log] == [5, 10, 12]
    assert parts.checkpoint.read_bytes() == whole.checkpoint.read_bytes()
    assert train(spec, out).log == whole.log, "a finished run is not trained again"
    assert train(spec, out, resume=False).checkpoint.read_bytes() == whole.checkpoint.read_bytes()


def test_checkpoint_describes_the_run(tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []
    spec = spec_of()
    result = train(spec, tmp_path, progress=lambda step, loss: seen.append((step, loss)))
    assert seen == [(entry.step, entry.loss) for entry in result.log]
    loaded = load_model(result.checkpoint)
    assert loaded.description is not None and loaded.step == 12
    assert TrainSpec.model_validate(loaded.description.specification) == spec
    assert not torch.equal(loaded.state["raw"]["layers.0.weight"], loaded.state["ema"]["layers.0.weight"])


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    changes = {"loss": {}, "steps": 300, "log_every": 1, "batch_size": 128}
    losses = [entry.loss for entry in train(spec_of(**changes), tmp_path).log]
    assert sum(losses[-30:]) < 0.8 * sum(losses[:30])


@pytest.mark.parametrize("data", ["gaussian:2,0,1", "digits"])
def test_draws_do_not_depend_on_the_buffer(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(data=data)
    usual = Draws(spec, load_data(data))
    monkeypatch.setattr(trainer, "_BUFFER_STEPS", 3)
    short = Draws(spec, load_data(data))
    assert (usual.steps, short.steps) == (200, 3)
    for step in (0, 7, 2):
        for one, other in zip(usual.batch(step), short.batch(step), strict=True):
            assert (one is None and other is None) or torch.equal(one, other)
    batch = usual.batch(0)
    assert batch.delta is not None and (batch.t - batch.delta >= 0).all() and (batch.delta <= 0.01).all()
    assert (batch.labels is None) == (data != "digits")


def test_initial_weights_depend_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one, again, other = (initial_module(spec_of(seed=seed)).layers[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_images_with_labels_train(tmp_path: Path) -> None:
    arguments = {"channels": 1, "size": 8, "width": 16, "depth": 1, "heads": 2, "num_classes": 10}
    result = train(spec_of(data="digits", model={"name": "dit", "arguments": arguments}, steps=3), tmp_path)
    assert load_model(result.checkpoint, weights="ema").module.label is not None


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shape \[2\], to the same shape, but got mat1"):
        train(spec_of(model={"name": "mlp", "arguments": {"dim": 3}}), tmp_path)
    with pytest.raises(InputError, match="num_classes to be 0 or the 0 classes"):
        train(spec_of(model={"name": "mlp", "arguments": {"dim": 2, "num_classes": 4}}), tmp_path)
    train(spec_of(), tmp_path)
    with pytest.raises(InputError, match="same specification, but it differs"):
        train(spec_of(seed=4), tmp_path)
    (tmp_path / trainer.STATE).write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="truncated or damaged"):
        train(spec_of(), tmp_path)


def test_divergence_is_reported_and_not_saved(tmp_path: Path) -> None:
    with pytest.raises(MfdiagError, match="diverged: weights are not finite after step 4"):
        train(spec_of(learning_rate=1e30), tmp_path)
    assert not (tmp_path / trainer.STATE).exists()
