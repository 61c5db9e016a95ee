"""The monitor: it measures what the doctor measures, and leaves the training as it is to the bit."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mfdiag
from mfdiag.diagnosis.spike import examine_batch, stored_batch
from mfdiag.flow.paths import LINEAR
from mfdiag.models.networks.mlp import MLP
from mfdiag.tables.store import read_table

OPTIONS: dict[str, Any] = {"times": "uniform:r_ne_t=0.5", "samples": 128, "budget": 0.9, "say": lambda note: None}


class Noisy(nn.Module):
    """A network with everything that a measurement could disturb: dropout, batch statistics, generators."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = MLP(2, hidden=16, depth=2)
        self.norm = nn.BatchNorm1d(2)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: torch.Tensor, r: torch.Tensor, t: torch.Tensor, y: Any = None) -> torch.Tensor:
        output: torch.Tensor = self.mlp(self.dropout(self.norm(x)), r, t)
        return output


def train(out: Path | None, steps: int = 6, **options: Any) -> tuple[dict[str, torch.Tensor], mfdiag.Monitor | None]:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generator that a training may use
    random.seed(0)
    network, average = Noisy(), Noisy()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    monitor = None
    if out is not None:
        monitor = mfdiag.Monitor(network, "two_moons", out=out, ema=average, **{**OPTIONS, **options})
        monitor._expected = 0.0  # the first measurement does not wait
    for step in range(1, steps + 1):
        noise = torch.randn(32, 2) * float(np.random.rand()) * random.random()  # noqa: NPY002
        loss = network(noise, torch.rand(32), torch.rand(32)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if monitor is not None:
            monitor._start -= 100  # as if a step took long: each is measured
            monitor.step(step, loss)
    return network.state_dict(), monitor


@pytest.mark.filterwarnings("error:Converting a tensor")  # a loss still has its graph
def test_weights_are_bit_identical_with_and_without(tmp_path: Path) -> None:
    without, _ = train(None)
    with_it, monitor = train(tmp_path)
    assert monitor is not None
    assert monitor.frame["step"].nunique() >= 3
    assert all(torch.equal(without[name], with_it[name]) for name in without)


def test_it_writes_the_doctors_numbers_at_each_step(tmp_path: Path) -> None:
    _, monitor = train(tmp_path)
    assert monitor is not None
    frame = read_table("doctor", tmp_path)
    assert {"velocity_error", "variance", "tail_index", "tangent_optimum", "weight_distance"} <= set(frame["quantity"])
    assert monitor.value("velocity_error", weights="raw") > 0
    counts = frame[(frame["quantity"] == "variance") & frame["t_low"].isna()].groupby("step")["n_samples"].max()
    assert counts.iloc[0] == 64 and counts.max() == 128


def test_the_numbers_are_those_of_measure_on_the_same_weights(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = MLP(2, hidden=16, depth=2)
    monitor = mfdiag.Monitor(network, "two_moons", out=tmp_path, **OPTIONS)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)  # as a step does
    monitor._start -= 1000
    assert monitor.step(1)
    expected = mfdiag.measure(network, "two_moons", tables=["variance"], samples=64, times="uniform:r_ne_t=0.5")
    row = expected["variance"].query("quantity == 'variance' and layer == 'all' and t_low.isna()").iloc[0]
    assert monitor.value("variance", estimator="meanflow") == pytest.approx(row["value"], rel=1e-5)


def test_it_keeps_its_budget(tmp_path: Path) -> None:
    network = MLP(2, hidden=16, depth=2)
    monitor = mfdiag.Monitor(network, "two_moons", out=tmp_path, **{**OPTIONS, "budget": 0.02})
    assert not monitor.step(1)  # it would take more than 2 % of no time at all
    monitor._start -= 1000
    assert monitor.step(2)
    assert not monitor.step(2)
    assert monitor.share < 0.02


def test_every_is_the_least_distance(tmp_path: Path) -> None:
    network = MLP(2, hidden=16, depth=2)
    monitor = mfdiag.Monitor(network, "two_moons", out=tmp_path, every=10, **OPTIONS)
    monitor._start -= 10000
    assert [step for step in range(1, 25) if monitor.step(step)] == [1, 11, 21]


def test_spikes_are_stored_within_a_bound_and_can_be_examined(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = MLP(2, hidden=16, depth=2)
    monitor = mfdiag.Monitor(network, "two_moons", out=tmp_path, **{**OPTIONS, "budget": 1e-6})
    rng = np.random.default_rng(0)
    for step in range(300):
        spike = {100: 50.0, 150: 90.0, 200: 70.0, 250: 60.0, 260: float("nan")}.get(step)
        monitor.step(step, spike or float(np.exp(0.1 * rng.normal())), batch={"t": torch.full((4,), 0.5)})
    stored = sorted(path.name for path in (tmp_path / "spikes").iterdir())
    assert stored == ["step-150.pt", "step-200.pt", "step-260.pt"]  # the largest three
    content = torch.load(tmp_path / "spikes" / "step-150.pt", weights_only=False)
    assert content["loss"] == 90 and content["batch"]["t"].tolist() == [0.5] * 4
    assert all(torch.equal(content["model"][name], value) for name, value in network.state_dict().items())


def test_a_loop_that_dies_leaves_the_table_and_its_last_state(tmp_path: Path) -> None:
    network = MLP(2, hidden=16, depth=2)

    def loop() -> None:
        with mfdiag.Monitor(network, "two_moons", out=tmp_path, **OPTIONS) as monitor:
            monitor._start -= 1000
            monitor.step(1, 0.5)
            raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        loop()
    assert len(read_table("doctor", tmp_path))
    assert [path.name for path in (tmp_path / "spikes").iterdir()] == ["step-1.pt"]


def test_a_failing_measurement_never_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    network = MLP(2, hidden=16, depth=2)
    monitor = mfdiag.Monitor(network, "two_moons", out=tmp_path, **{**OPTIONS, "say": notes.append})
    monkeypatch.setattr(monitor, "_measure", lambda step: 1 / 0)
    monitor._start -= 1000
    monitor.step(1)
    assert "stops at step 1" in notes[-1]
    assert not monitor.step(2)


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_wrapped_networks(tmp_path: Path, wrap: Any) -> None:
    monitor = mfdiag.Monitor(wrap(MLP(2, hidden=16, depth=2)), "two_moons", out=tmp_path, **OPTIONS)
    monitor._start -= 1000
    assert monitor.step(1)
    assert "layers.0" in set(monitor.frame["layer"])


def test_a_writer_of_either_kind(tmp_path: Path) -> None:
    scalars: dict[str, float] = {}

    class Board:
        def add_scalar(self, name: str, value: float, step: int) -> None:
            scalars[name] = value

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            logged.update(values)

    logged: dict[str, float] = {}
    for writer in (Board(), Run()):
        monitor = mfdiag.Monitor(MLP(2, hidden=16, depth=2), "two_moons", out=tmp_path, writer=writer, **OPTIONS)
        monitor._start -= 1000
        monitor.step(1)
    assert scalars.keys() == logged.keys() and "mfdiag/variance" in scalars


def test_a_budget_outside_its_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(mfdiag.InputError, match="budget above 0"):
        mfdiag.Monitor(MLP(2), "two_moons", out=tmp_path, budget=2)


def test_the_stored_batch_says_which_sample_a_spike_came_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = MLP(2, hidden=16, depth=2)
    monitor = mfdiag.Monitor(network, "two_moons", out=tmp_path, **{**OPTIONS, "budget": 1e-6})
    x0, x1, r, t = torch.randn(32, 2), torch.randn(32, 2), torch.zeros(32), torch.full((32,), 0.5)
    x0[5] *= 100
    for step in range(80):
        monitor.step(step, 1000.0 if step == 70 else 1 + 0.01 * (step % 7), batch={"x0": x0, "x1": x1, "r": r, "t": t})
    (path,) = (tmp_path / "spikes").iterdir()
    batch = stored_batch(path)
    assert batch is not None
    spike = examine_batch(network, LINEAR, batch)
    number, share, *_ = spike.largest()[0]
    assert number == 5 and share > 0.9
    # against table `samples` of the same residual: a plain gradient by forward mode
    double = copy.deepcopy(network).double()
    norms = []
    for k in range(32):
        x, v = (1 - t[k]) * x0[k] + t[k] * x1[k], x1[k] - x0[k]
        point = (x[None].double(), t[k][None].double())
        u, du = torch.func.jvp(
            lambda x, t: double(x, torch.zeros(1).double(), t), point, (v[None].double(), torch.ones(1).double())
        )
        e = (u - v + 0.5 * du).detach()
        gradients = torch.autograd.grad(
            (2 * e * double(point[0], torch.zeros(1).double(), point[1])).sum(), list(double.parameters())
        )
        norms.append(float(sum(g.square().sum() for g in gradients)))
    np.testing.assert_allclose(spike.share.numpy(), np.array(norms) / sum(norms), rtol=1e-4)


def test_a_batch_whose_tensors_do_not_fit_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "spikes"
    folder.mkdir()
    batch = {"x0": torch.randn(4, 2), "x1": torch.randn(4, 2), "r": torch.zeros(3), "t": torch.zeros(4)}
    torch.save({"model": {"a": torch.ones(1)}, "batch": batch}, folder / "step-1.pt")
    with pytest.raises(mfdiag.InputError, match="r and t of shape"):
        stored_batch(folder / "step-1.pt")
