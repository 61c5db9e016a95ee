"""Passes over networks whose layers see a part of the samples or tokens: both engines against plain gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import randomised
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import silu

from mfdiag.errors import InputError
from mfdiag.fields.builder import FieldNeeds
from mfdiag.fields.differentiable_network import DifferentiableNetwork
from mfdiag.fields.fields import Fields
from mfdiag.flow.data.datasets import FiniteData
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.gradients.pass_checkpoint import PassCheckpoint
from mfdiag.gradients.running_check import Decision, Sums
from mfdiag.gradients.sample_pass import PassResult, PassSettings, run_pass

DIM, WIDTH, CLASSES, SAMPLES = 4, 6, 3, 48
LABELS = np.array([0, 1] * 5 + [2, 2])  # the last class is rare, and not among the first samples
LATE = 1.0  # only later samples are above it
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "float64"])


class Routed(nn.Module):
    """u = last(tanh(middle(tanh(first(x, r, t)), y))) with a `middle` made of `count` experts."""

    def __init__(self, middle: Callable[..., Tensor], count: int = CLASSES) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(DIM + 2, WIDTH), nn.Linear(WIDTH, DIM)
        self.experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(count)])
        self.middle = middle

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.first(torch.cat([x, r[:, None], t[:, None]], 1)))
        return self.last(torch.tanh(self.middle(self.experts, h, y)))


Experts = Sequence[nn.Module]


def by_mask(experts: Experts, h: Tensor, y: Tensor) -> Tensor:
    out, expert = torch.zeros_like(h), h[:, : len(experts)].argmax(1)
    for k, layer in enumerate(experts):
        out[expert == k] = layer(h[expert == k])
    return out


def by_index_add(experts: Experts, h: Tensor, y: Tensor) -> Tensor:
    weights, chosen = h[:, : len(experts)].softmax(1).topk(2, dim=1)
    out = torch.zeros_like(h)
    for k, layer in enumerate(experts):
        row, place = (chosen == k).nonzero(as_tuple=True)
        out = out.index_add(0, row, layer(h[row]) * weights[row, place, None])
    return out


def by_class(experts: Experts, h: Tensor, y: Tensor) -> Tensor:
    out = torch.zeros_like(h)
    for k, layer in enumerate(experts):
        if (y == k).any():
            out[y == k] = layer(h[y == k])
    return out


def late_class(experts: Experts, h: Tensor, y: Tensor) -> Tensor:
    """The last class alone has an expert: none of the first samples uses it."""
    rows = y == CLASSES - 1
    out = h.clone()
    out[rows] = experts[0](h[rows]) + experts[1](h[rows]) * 0.5
    return out + 0 * experts[2](h)


def masked_tokens(experts: Experts, h: Tensor, y: Tensor) -> Tensor:
    tokens = torch.stack([h, h.sin(), h.cos(), h * h], 1)
    kept = tokens[..., 0] > 0.2
    out = torch.zeros_like(tokens)
    out[kept] = experts[0](tokens[kept])
    return out.sum(1) + experts[1](tokens).mean(1) + experts[2](h)


def sorted_rows(experts: Experts, h: Tensor, y: Tensor) -> Tensor:
    """Each layer sees every sample once, in an order that depends on the data."""
    order = h[:, 0].argsort()
    for layer in experts:
        h = torch.tanh(layer(h[order]))[order.argsort()]
    return h


def ordered_by_python(experts: Experts, h: Tensor, y: Tensor) -> Tensor:
    order = sorted(range(len(h)), key=h[:, 0].tolist().__getitem__)
    rows = torch.cat([h[i : i + 1] for i in order])
    back = experts[0](rows)
    return torch.cat([back[order.index(i)][None] for i in range(len(h))]) + experts[1](h) + experts[2](h)


def twice(experts: Experts, h: Tensor, y: Tensor) -> Tensor:
    return experts[0](torch.tanh(experts[0](h))) + experts[1](h)  # the third is never called


def sometimes_twice(experts: Experts, h: Tensor, y: Tensor) -> Tensor:
    """The number of calls depends on the batch, the result on each sample alone."""
    rows = h[:, 0] > 0
    out = experts[0](h) + experts[1](h)
    if rows.any():
        out = torch.where(rows[:, None], experts[0](torch.tanh(out)), out)
    return out + experts[2](h)


def first_zero(experts: Experts, h: Tensor, y: Tensor) -> Tensor:
    """A layer whose gradient is zero except for the last class, though it sees every sample."""
    return experts[0](h) * (y == CLASSES - 1)[:, None] + experts[1](h) + experts[2](h)


def doubled_batch(experts: Experts, h: Tensor, y: Tensor) -> Tensor:
    first, second = experts[0](torch.cat([h, h.sin()])).chunk(2)
    return first * second + experts[1](h) + experts[2](h)


MIDDLES = {
    f.__name__: f
    for f in (
        by_mask, by_index_add, by_class, late_class, masked_tokens, sorted_rows, ordered_by_python, twice,
        sometimes_twice, first_zero, doubled_batch,
    )
}  # fmt: skip


class Spectral(nn.Module):
    """Complex parameters: bare, and in a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(DIM + 2, WIDTH), nn.Linear(WIDTH, DIM)
        self.filter = nn.Parameter(torch.randn(WIDTH // 2 + 1, dtype=torch.complex64))
        self.mixing = nn.Linear(WIDTH // 2 + 1, WIDTH // 2 + 1, dtype=torch.complex64)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        h = torch.fft.rfft(torch.tanh(self.first(torch.cat([x, r[:, None], t[:, None]], 1)))) * self.filter
        return self.last(torch.tanh(torch.fft.irfft(torch.tanh(self.mixing(h)), n=WIDTH)))


def loss_of_u(fields: Fields, network: DifferentiableNetwork) -> Tensor:
    return (network(fields.x, fields.r, fields.t) - fields.v_c).square().sum(1)


def loss_of_derivative(fields: Fields, network: DifferentiableNetwork) -> Tensor:
    u, du = network.jvp(fields.x, fields.r, fields.t, dx=fields.v_c, dt=1.0)
    return (u + 0.5 * du - fields.v_c).square().sum(1)


class Both:
    """Two cotangents, and two losses."""

    groups, needs = 1, FieldNeeds(posterior=False)

    def __init__(self, losses: Sequence[Any] = ()) -> None:
        self.losses = losses
        self.size = 2 + len(losses)

    def cotangents(self, fields: Fields) -> Tensor:
        return torch.stack([fields.plane[0], fields.u - fields.v_c])

    def outputs(self, fields: Fields) -> None:
        return None

    def scalars(self, fields: Fields) -> dict[str, Tensor]:
        return {}


def passed(
    module: nn.Module,
    dtype: torch.dtype,
    engine: str = "fast",
    losses: Sequence[Any] = (),
    chunk: int = 16,
    **options: Any,
) -> PassResult:
    points = np.random.default_rng(0).standard_normal((12, DIM))
    draws = Draws(FiniteData("points", points, LABELS), parse_times("uniform"), 3)
    chosen = PassSettings(samples=SAMPLES, chunk=chunk, bins=(2, 2), dtype=dtype, engine=engine)  # type: ignore[arg-type]
    return run_pass(Both(losses), module, draws, chosen, **options)


def assert_same(actual: PassResult, expected: PassResult, tolerance: float) -> None:
    ours, theirs = actual.gradient, expected.gradient
    assert float((ours.diagonal - theirs.diagonal).abs().max()) <= tolerance * float(theirs.diagonal.max())
    assert ours.moments.keys() == theirs.moments.keys()
    for cell, layers in theirs.moments.items():
        assert layers.keys() == ours.moments[cell].keys()
        whole = max(float(np.abs(blocks.norm).max()) for blocks in layers.values())
        for layer, blocks in layers.items():
            for name in ("norm", "gram", "own"):
                one, other = (np.asarray(getattr(b, name)) for b in (ours.moments[cell][layer], blocks))
                scale = max(float(np.abs(other).max()), 1e-3 * whole)
                assert np.abs(one - other).max() <= tolerance * scale, (cell, layer, name)


def plain_norms(module: nn.Module, dtype: torch.dtype) -> Tensor:
    """Squared norms of the gradient of <u, u - v_c> with u - v_c held fixed, sample by sample, real and imaginary."""
    points = np.random.default_rng(0).standard_normal((12, DIM))
    draws = Draws(FiniteData("points", points, LABELS), parse_times("uniform"), 3)
    batch = draws.batch(np.arange(SAMPLES))
    norms = []
    for i in range(SAMPLES):
        one = slice(i, i + 1)
        assert batch.labels is not None
        x, r, t, v = (a[one].to(dtype) for a in (batch.x_t, batch.r, batch.t, batch.velocity))
        u = module(x, r, t, batch.labels[one])
        gradients = torch.autograd.grad(
            u, list(module.parameters()), (u - v).detach(), allow_unused=True, materialize_grads=True
        )
        norms.append(sum(g.abs().double().square().sum() for g in gradients))
    return torch.stack(norms)  # type: ignore[arg-type]


def module_of(middle: Callable[..., Tensor] | None) -> nn.Module:
    torch.manual_seed(0)
    return randomised(Spectral() if middle is None else Routed(middle), 0.5)


def in_double(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    return module._apply(lambda a: a.to(dtype.to_complex() if a.is_complex() else dtype))


@DTYPES
@pytest.mark.parametrize("name", [*MIDDLES, "spectral"])
def test_cotangents_and_losses_are_those_of_single_samples(name: str, dtype: torch.dtype) -> None:
    module = module_of(MIDDLES.get(name))
    losses = (loss_of_u, loss_of_derivative)
    notes: list[str] = []
    fast = passed(module, dtype, losses=losses, say=notes.append)
    assert_same(fast, passed(module, dtype, "reference", losses), TOLERANCE[dtype])
    plain = plain_norms(in_double(module, dtype), dtype)
    assert float((fast.gradient.diagonal[:, 0, 1] - plain).abs().max()) <= TOLERANCE[dtype] * float(plain.max())
    assert any("reference" in note for note in notes) == (name not in ("first_zero", "twice")), notes


def test_no_number_changes_where_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of(first_zero)
    checked = passed(module, torch.float32, losses=(loss_of_u,))
    monkeypatch.setattr(Sums, "due", lambda self, position: False)
    unchecked = passed(module, torch.float32, losses=(loss_of_u,))
    assert torch.equal(checked.gradient.diagonal, unchecked.gradient.diagonal)
    np.testing.assert_array_equal(checked.gradient.halves()[0].norm, unchecked.gradient.halves()[0].norm)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3), st.sampled_from([5, 16, 48]), st.booleans())
def test_random_routing(seed: int, count: int, top: int, chunk: int, ordered: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    router = torch.randn(WIDTH, count, generator=generator)
    top = min(top, count)
    dropped = float(torch.rand((), generator=generator)) - 0.5

    def middle(experts: Experts, h: Tensor, y: Tensor) -> Tensor:
        scores = h @ router.to(h)
        weights, chosen = scores.topk(top, dim=1)
        out = h.clone()
        for k, layer in enumerate(experts):
            row, place = ((chosen == k) & (weights > dropped)).nonzero(as_tuple=True)
            if ordered:
                order = h[row, 1].argsort()
                row, place = row[order], place[order]
            out = out.index_add(0, row, silu(layer(h[row])) * weights[row, place, None])
        return out

    torch.manual_seed(seed)
    module = randomised(Routed(middle, count), 0.5, seed)
    losses = (loss_of_u,)
    fast = passed(module, torch.float64, losses=losses, chunk=chunk)
    assert_same(fast, passed(module, torch.float64, "reference", losses), TOLERANCE[torch.float64])


def test_the_note_names_the_layer_and_the_parameters() -> None:
    notes: list[str] = []
    passed(module_of(late_class), torch.float32, say=notes.append)
    assert any("restarts" in note and "experts.0 is called on a part" in note for note in notes), notes
    assert any("experts.0.bias, experts.0.weight" in note for note in notes), notes


def mixing_late(experts: Experts, h: Tensor, y: Tensor) -> Tensor:
    """Samples of one batch see each other, but only from the third on."""
    return experts[0](h) + experts[1](h) + experts[2](h[2:].mean(0, keepdim=True) if len(h) > 2 else h)


def test_a_network_that_mixes_samples_later_is_refused() -> None:
    with pytest.raises(InputError, match="mixes the samples of a batch"):
        passed(module_of(mixing_late), torch.float32, chunk=48)


def test_a_resumed_pass_keeps_the_decision(tmp_path: Path) -> None:
    module = module_of(late_class)
    whole = passed(module, torch.float32, losses=(loss_of_u,))
    checkpoint = PassCheckpoint(tmp_path / "state.pt", "key")

    def stop(done: int, total: int) -> None:
        if done == 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        passed(module, torch.float32, losses=(loss_of_u,), checkpoint=checkpoint, progress=stop)
    state = checkpoint.load()
    assert state is not None and state["gradient"]["position"] == 32
    decision = Decision.from_state(state["left_to_reference"])
    assert {"experts.0.weight", "experts.0.bias"} <= decision.cotangents
    notes: list[str] = []
    resumed = passed(module, torch.float32, losses=(loss_of_u,), checkpoint=checkpoint, say=notes.append)
    assert torch.equal(resumed.gradient.diagonal, whole.gradient.diagonal)
    np.testing.assert_array_equal(resumed.gradient.halves()[0].norm, whole.gradient.halves()[0].norm)
    assert any("experts.0" in note for note in notes) and not any("restarts" in note for note in notes)


def test_a_restart_replaces_an_older_state(tmp_path: Path) -> None:
    """A run that is killed after a restart must not resume from sums of the path that failed."""
    states: list[dict[str, Any]] = []

    class Recording(PassCheckpoint):
        def save(self, state: dict[str, Any]) -> None:
            super().save(state)
            states.append(state)

    passed(module_of(late_class), torch.float32, checkpoint=Recording(tmp_path / "state.pt", "key"))
    assert states[0]["gradient"]["position"] == 0 and states[0]["left_to_reference"]["cotangents"]


def test_a_loss_alone_makes_the_pass_restart() -> None:
    """A layer that only the loss calls on a part of the samples: the cotangents keep their fast path."""

    def routed_loss(fields: Fields, network: DifferentiableNetwork) -> Tensor:
        rows = fields.x[:, 0] > LATE
        x = torch.where(rows[:, None], fields.x, 0.1 * fields.x) if rows.any() else fields.x
        value = (network(x, fields.r, fields.t) - fields.v_c).square().sum(1)
        if rows.any():  # a further call of every layer, which the first samples do not show
            value = value + rows * network(0.5 * x, fields.r, fields.t).square().sum(1)
        return value

    notes: list[str] = []
    module = module_of(twice)
    fast = passed(module, torch.float64, losses=(routed_loss,), say=notes.append)
    assert_same(fast, passed(module, torch.float64, "reference", (routed_loss,)), TOLERANCE[torch.float64])
    assert sum("restarts" in note for note in notes) == 1, notes
    unaffected = passed(module, torch.float64)
    torch.testing.assert_close(fast.gradient.diagonal[:, :, :2], unaffected.gradient.diagonal, rtol=1e-12, atol=0)
