"""Training logs: the same numbers from every format, and what they show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfdiag.diagnosis.log_formats import _leveldb_records
from mfdiag.diagnosis.training_log import read_log
from mfdiag.errors import InputError

STEPS = np.arange(0, 400, 2)
LOSS = np.exp(-STEPS / 200) * np.exp(0.1 * np.random.default_rng(0).normal(size=len(STEPS)))


def as_csv(folder: Path, loss: np.ndarray) -> Path:
    path = folder / "log.csv"
    pd.DataFrame({"step": STEPS, "loss": loss, "lr": 1e-3}).to_csv(path, index=False)
    return path


def as_json_lines(folder: Path, loss: np.ndarray) -> Path:
    path = folder / "log.jsonl"
    lines = [json.dumps({"step": int(s), "train/loss": float(v)}) for s, v in zip(STEPS, loss, strict=True)]
    path.write_text("\n".join(lines))
    return path


def as_trainer_state(folder: Path, loss: np.ndarray) -> Path:
    path = folder / "trainer_state.json"
    history = [{"step": int(s), "loss": float(v), "epoch": 0.1} for s, v in zip(STEPS, loss, strict=True)]
    path.write_text(json.dumps({"log_history": [*history, {"step": 400, "train_runtime": 1.0}]}))
    return path


def as_events(folder: Path, loss: np.ndarray) -> Path:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "events"))
    for step, value in zip(STEPS, loss, strict=True):
        writer.add_scalar("loss", value, int(step))
    writer.close()
    return folder / "events"


def as_wandb(folder: Path, loss: np.ndarray) -> Path:
    pytest.importorskip("wandb")
    code = (
        "import json, sys, wandb\n"
        "run = wandb.init(mode='offline', project='test', dir=sys.argv[1])\n"
        "for step, value in json.loads(sys.stdin.read()): run.log({'loss': value}, step=step)\n"
        "run.finish()\n"
    )
    rows = json.dumps([(int(s), float(v)) for s, v in zip(STEPS, loss, strict=True)])
    environment = {**os.environ, "WANDB_SILENT": "true", "HOME": str(folder)}
    subprocess.run([sys.executable, "-c", code, str(folder)], input=rows, text=True, check=True, env=environment)
    return next((folder / "wandb").glob("offline-run-*"))


@pytest.mark.parametrize("write", [as_csv, as_json_lines, as_trainer_state, as_events, as_wandb])
def test_every_format_gives_the_same_loss(tmp_path: Path, write: Callable[[Path, np.ndarray], Path]) -> None:
    log = read_log(write(tmp_path, LOSS))
    assert log.loss is not None
    steps, values = log.loss
    np.testing.assert_array_equal(steps, STEPS)
    np.testing.assert_allclose(values, LOSS, rtol=1e-6)


def test_spikes_are_at_their_steps(tmp_path: Path) -> None:
    spiking = LOSS.copy()
    spiking[[60, 150]] *= 20
    assert read_log(as_csv(tmp_path, spiking)).spikes() == [120, 300]


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), noise=st.floats(0.01, 0.5))
def test_a_noisy_loss_that_falls_has_no_spikes_and_is_not_pinned(
    tmp_path_factory: pytest.TempPathFactory, seed: int, noise: float
) -> None:
    rng = np.random.default_rng(seed)
    loss = np.exp(-STEPS / 200) * np.exp(noise * rng.normal(size=len(STEPS)))
    log = read_log(as_csv(tmp_path_factory.mktemp("log"), loss))
    assert not log.spikes() and log.pinned() is None and log.first_nonfinite() is None


def test_a_loss_that_stays_at_one_is_pinned(tmp_path: Path) -> None:
    assert read_log(as_csv(tmp_path, 1 + 0.005 * np.sin(STEPS))).pinned() == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_has_its_first_step(tmp_path: Path, value: float) -> None:
    loss = LOSS.copy()
    loss[100:] = value
    path = tmp_path / "log.csv"
    pd.DataFrame({"step": STEPS, "loss": loss, "lr": 1e-3}).to_csv(path, index=False, na_rep="nan")
    assert read_log(path).first_nonfinite() == 200


@pytest.mark.parametrize("history", [5, [5], [{"loss": 10**400}], [{"loss": [1]}]])
def test_a_history_without_numbers_is_refused(tmp_path: Path, history: object) -> None:
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    with pytest.raises(InputError, match="ass another --log"):
        read_log(tmp_path / "trainer_state.json")


@pytest.mark.parametrize("name", ["log.csv", "run.wandb", "events.out.tfevents.1"])
def test_a_log_that_cannot_be_held_is_refused(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(2**29)
    with pytest.raises(InputError, match="at most 256 MiB"):
        read_log(tmp_path / name)
    os.mkfifo(tmp_path / f"pipe.{name}")
    with pytest.raises(InputError, match="no regular file"):
        read_log(tmp_path / f"pipe.{name}")


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl", "trainer_state.json", "run.wandb"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"a", b"[]", b"{}"])
def test_a_file_that_is_no_log_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="Expected a training log"):
        read_log(tmp_path / name)


@given(st.binary(max_size=200))
def test_any_bytes_end_the_records_of_leveldb(content: bytes) -> None:
    assert len(list(_leveldb_records(b":W&B\xe1\xbe\x00" + content))) <= len(content)
