"""A pass that several processes share: the moments of one process, jackknife replicates included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from worlds import in_threads

from mfdiag.errors import InputError
from mfdiag.fields.builder import FieldNeeds
from mfdiag.fields.fields import Fields
from mfdiag.flow.data.datasets import load_data
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.gradients import accumulate
from mfdiag.gradients.accumulate import Accumulator
from mfdiag.gradients.moments import BlockMoments
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.gradients.sample_pass import PassResult, PassSettings, run_pass
from mfdiag.gradients.totals import stretch
from mfdiag.models.networks.mlp import MLP
from mfdiag.world import World, current_world


class TwoPoints:
    """Two cotangents, moments in output space, and a number for each sample."""

    groups, size, needs, losses = 1, 2, FieldNeeds(posterior=False), ()

    def cotangents(self, fields: Fields) -> Tensor:
        return torch.stack([fields.plane[0], fields.u])

    def outputs(self, fields: Fields) -> Tensor:
        return self.cotangents(fields)

    def scalars(self, fields: Fields) -> dict[str, Tensor]:
        return {"gap": fields.gap.flatten()}


def measured(
    module: nn.Module | None = None,
    checkpoint: PassCheckpoint | None = None,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> PassResult:
    if module is None:
        module = MLP(2, hidden=8, depth=2)
        generator = torch.Generator().manual_seed(0)
        for p in module.parameters():
            p.data = torch.randn(p.shape, generator=generator) * 0.3
    draws = Draws(load_data("two_moons"), parse_times("uniform"), 0)
    settings = PassSettings(**{"samples": 40, "bins": (2, 2), "dtype": torch.float64} | options)
    return run_pass(TwoPoints(), module, draws, settings, checkpoint=checkpoint, say=say)


def assert_equal_sums(actual: BlockMoments, expected: BlockMoments) -> None:
    """Block by block, so that every jackknife replicate is the same."""
    for name in ("gram", "own", "cross", "norm", "products"):
        one, other = getattr(actual, name), getattr(expected, name)
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13 * np.abs(other).max())
    np.testing.assert_array_equal(actual.count, expected.count)
    np.testing.assert_array_equal(actual.sizes, expected.sizes)


def assert_same(actual: PassResult, expected: PassResult) -> None:
    for ours, theirs in ((actual.gradient, expected.gradient), (actual.output, expected.output)):
        assert ours is not None and theirs is not None and ours.moments.keys() == theirs.moments.keys()
        for cell, layers in theirs.moments.items():
            assert list(ours.moments[cell]) == list(layers)
            for layer, blocks in layers.items():
                assert_equal_sums(ours.moments[cell][layer], blocks)
        assert ours.sample_gram is not None and theirs.sample_gram is not None
        torch.testing.assert_close(ours.diagonal, theirs.diagonal, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(ours.sample_gram, theirs.sample_gram, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(actual.scalars["gap"], expected.scalars["gap"])
    np.testing.assert_array_equal(actual.t, expected.t)


@settings(deadline=None, max_examples=6)
@given(
    size=st.integers(2, 4),
    samples=st.integers(2, 70),
    chunk=st.none() | st.integers(1, 90),
    bins=st.sampled_from([None, (1, 3), (2, 2)]),
)
def test_any_number_of_processes_measures_what_one_does(
    size: int, samples: int, chunk: int | None, bins: tuple[int, int] | None
) -> None:
    options: dict[str, Any] = {"samples": samples, "bins": bins}
    one = measured(**options)
    halves = one.gradient.halves()
    for result, of_halves in in_threads(size, lambda: ((r := measured(chunk=chunk, **options)), r.gradient.halves())):
        assert_same(result, one)
        for half, expected in zip(of_halves, halves, strict=True):
            assert_equal_sums(half, expected)


def test_sums_that_are_folded_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accumulate, "_EXACT_BYTES", 0)
    monkeypatch.setattr(accumulate, "_FOLD_WIDTHS", (2,))
    one = measured()
    assert one.gradient.folding
    assert_same(in_threads(3, measured)[2], one)


def test_a_chunk_fills_the_sums_of_few_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = measured(samples=60, bins=(4, 4))
    open_leaves = []
    of_all = Accumulator.add

    def watched(self: Accumulator, *arguments: Any) -> None:
        of_all(self, *arguments)
        open_leaves.append(sum(bool(self._incomplete[leaf].blocks) for leaf in self._leaves & {*self._incomplete}))

    monkeypatch.setattr(Accumulator, "add", watched)
    leaf = 60 * 2 * 4 * sum(expected.gradient.parameters.values())  # blocks, cotangents, bytes
    for leaf_bytes, most in ((0, 1), (2 * leaf, 2), (100 * leaf, 10)):
        monkeypatch.setattr(accumulate, "_LEAF_BYTES", leaf_bytes)
        open_leaves.clear()
        assert_same(measured(samples=60, bins=(4, 4)), expected)
        assert max(open_leaves) == most


@given(samples=st.integers(1, 10_000), chunk=st.integers(1, 300), size=st.integers(1, 9), cell=st.integers(1, 3000))
def test_stretches_give_every_sample_to_one_process(samples: int, chunk: int, size: int, cell: int) -> None:
    start, measured_by = 0, np.zeros(samples, int)
    while start < samples:
        stops = set()
        for rank in range(size):
            world = World()
            world.rank, world.size = rank, size
            limit = min(samples, (start // cell + 1) * cell)
            stop, chunks = stretch(start, limit, samples, chunk, world)
            assert start < stop <= limit
            assert chunks or rank > 0, "rank 0 has samples, so that it knows their layout"
            stops.add(stop)
            for first, last in chunks:
                assert 0 < last - first <= chunk
                measured_by[first:last] += 1
        (start,) = stops
    assert (measured_by == 1).all()


class Often(PassCheckpoint):
    """Due after every stretch."""

    def due(self) -> bool:
        return True


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 3), (3, 2), (2, 2)])
def test_another_number_of_processes_resumes_a_pass(tmp_path: Path, before: int, after: int) -> None:
    saved = []

    class Stopping(Often):
        def save(self, state: dict[str, Any]) -> None:
            super().save(state)
            saved.append(state["gradient"]["position"])
            if len(saved) == 2:
                raise KeyboardInterrupt

    path = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        in_threads(before, lambda: measured(checkpoint=Stopping(path, "key"), chunk=5))
    assert saved[:2] == [5 * before, 10 * before] and path.exists()
    whole = measured()
    for result in in_threads(after, lambda: measured(checkpoint=Often(path, "key"), chunk=5)):
        assert_same(result, whole)
    assert not path.exists()


class Spoiled(nn.Module):
    """NaN for one sample, recognized by its time."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.t, self.linear = t, nn.Linear(2, 2)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        factor = torch.where((t - self.t).abs() < 1e-6, torch.nan, 1 + t)
        return self.linear(x) * factor[:, None]


def test_the_error_of_one_process_is_raised_in_all() -> None:
    last = int(measured().cells.order[-1])
    module = Spoiled(float(measured().t[last]))
    errors = []

    def failing() -> None:
        try:
            measured(module)
        except InputError as error:
            errors.append((current_world().rank, str(error)))

    in_threads(3, failing)
    assert sorted(rank for rank, _ in errors) == [0, 1, 2]
    assert len({text for _, text in errors}) == 1 and f"first at sample {last} " in errors[0][1]


def test_different_networks_or_data_in_different_processes_are_refused() -> None:
    """A factory of the user that draws random numbers, or another file on another machine."""

    def different() -> None:
        torch.manual_seed(current_world().rank)
        measured(MLP(2, hidden=8, depth=1))

    with pytest.raises(InputError, match=r"those of rank \d are others\. .* fixed seed"):
        in_threads(2, different)


class Routed(nn.Module):
    """A layer that takes one sample alone, recognized by its time."""

    def __init__(self, t: float) -> None:
        super().__init__()
        self.t, self.first, self.part, self.last = t, nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.first(x + (r * t)[:, None]).tanh()
        rows, out = (t - self.t).abs() < 1e-6, h.clone()
        out[rows] = self.part(h[rows])
        return self.last(out.tanh())


def test_a_fast_path_that_fails_in_one_process_restarts_all(tmp_path: Path) -> None:
    module = Routed(float(measured().t[32]))
    checkpoint, notes = Often(tmp_path / "state.pt", "key"), list[str]()
    one = measured(module, bins=None)
    for result in in_threads(2, lambda: measured(module, checkpoint, notes.append, bins=None, chunk=4)):
        assert_same(result, one)
    assert sum("The pass restarts" in note for note in notes) == 2, notes
