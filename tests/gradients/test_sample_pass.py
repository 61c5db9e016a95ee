"""A pass that is interrupted: what it saves, and that it resumes to the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mfdiag.fields.builder import FieldNeeds
from mfdiag.fields.fields import Fields
from mfdiag.fields.inputs import Inputs
from mfdiag.flow.data.datasets import load_data
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.gradients import fast_engine, sample_pass
from mfdiag.gradients.cells import make_cells
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.gradients.reference_engine import per_sample_gradients
from mfdiag.gradients.sample_pass import PassResult, PassSettings, run_pass
from mfdiag.models.networks.mlp import MLP


class Residual:
    """One cotangent, e_0."""

    groups, size, needs, losses = 1, 1, FieldNeeds(posterior=False), ()

    def cotangents(self, fields: Fields) -> Tensor:
        return fields.plane[0][None]

    def outputs(self, fields: Fields) -> Tensor:
        return self.cotangents(fields)

    def scalars(self, fields: Fields) -> dict[str, Tensor]:
        return {"gap": fields.gap.flatten()}


class Recording(PassCheckpoint):
    """Due after every chunk; notes how many samples each saved state holds."""

    def due(self) -> bool:
        return True

    def save(self, state: dict) -> None:
        super().save(state)
        self.positions = [*getattr(self, "positions", []), state["gradient"]["position"]]


def measured(checkpoint: PassCheckpoint | None = None, stop_at: int | None = None) -> PassResult:
    torch.manual_seed(0)
    draws = Draws(load_data("two_moons"), parse_times("uniform"), 0)

    def progress(done: int, total: int) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    settings = PassSettings(samples=40, chunk=10, bins=(2, 2))
    module = MLP(2, hidden=8, depth=2)
    return run_pass(Residual(), module, draws, settings, checkpoint=checkpoint, progress=progress)


@pytest.mark.parametrize("stop_at", [10, 30])
def test_an_interrupted_pass_resumes_to_the_same_numbers(tmp_path: Path, stop_at: int) -> None:
    whole = measured()
    checkpoint = PassCheckpoint(tmp_path / "state.pt", "key")
    with pytest.raises(KeyboardInterrupt):
        measured(checkpoint, stop_at)
    state = checkpoint.load()
    assert state is not None and state["gradient"]["position"] == stop_at
    resumed = measured(checkpoint)
    for actual, expected in ((resumed.gradient, whole.gradient), (resumed.output, whole.output)):
        assert actual is not None and expected is not None
        assert torch.equal(actual.diagonal, expected.diagonal)
        np.testing.assert_array_equal(actual.halves()[0].norm, expected.halves()[0].norm)
    np.testing.assert_array_equal(resumed.scalars["gap"], whole.scalars["gap"])
    assert not checkpoint.path.exists()


def test_a_state_without_samples_to_resume_with_is_not_saved(tmp_path: Path) -> None:
    """A run that resumed from it would have no samples to compute the last moments from."""
    checkpoint = Recording(tmp_path / "state.pt", "key")
    measured(checkpoint)
    assert checkpoint.positions == [10, 20, 30]
    with pytest.raises(KeyboardInterrupt):
        measured(checkpoint, stop_at=40)
    state = checkpoint.load()
    assert state is not None and state["gradient"]["position"] == 30


class TokensFirst(nn.Module):
    """Its layer takes tokens before samples, so that the reference serves it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.last = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.first(x + (r * t)[:, None])[:, None].expand(-1, 5, -1).cumsum(1)
        return self.last(self.wide(h.transpose(0, 1)).tanh().transpose(0, 1).sum(1))


def test_chunks_leave_room_for_the_gradients_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = []

    def counted(module: nn.Module, inputs: Inputs, cotangents: Tensor, *args: Any, **options: Any) -> dict[str, Tensor]:
        gradients = per_sample_gradients(module, inputs, cotangents, *args, **options)
        chunks.append(sum(g.numel() * g.element_size() for g in gradients.values()))
        return gradients

    monkeypatch.setattr(fast_engine, "per_sample_gradients", counted)
    monkeypatch.setattr(sample_pass, "_CHUNK_BYTES", budget := 4000)
    torch.manual_seed(0)
    draws = Draws(load_data("two_moons"), parse_times("uniform"), 0)
    run_pass(Residual(), TokensFirst(), draws, PassSettings(samples=100))
    assert len(chunks) > 3 and max(chunks) <= budget


def test_chunks_of_a_large_network_grow_with_its_parameters() -> None:
    small, large, largest = (nn.Linear(width, width, device="meta") for width in (8, 8192, 65536))
    assert sample_pass._chunk_bytes(small) == sample_pass._CHUNK_BYTES
    assert sample_pass._CHUNK_BYTES < sample_pass._chunk_bytes(large) < sample_pass._chunk_bytes(largest) == 2 << 30


def test_a_chunk_holds_sums_of_few_cells() -> None:
    times = np.random.default_rng(0).random((2, 4096))
    r, t = times.min(0), times.max(0)
    assert sample_pass._chunk(10**6, make_cells(r, t, None)) == 1024
    assert sample_pass._chunk(10**6, make_cells(r, t, (5, 5))) <= 4096 // 15
