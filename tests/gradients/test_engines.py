"""The fast engine against the reference, parameter by parameter and moment by moment; the reference against a loop."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from engine_cases import DTYPES, GROUPS, SAMPLES, SIZE, TOLERANCE, prepared
from networks import NETWORKS, Network
from torch import Tensor, nn
from torch.func import jvp

from mfdiag import measure
from mfdiag.fields.inputs import Inputs
from mfdiag.gradients.accumulate import Accumulator
from mfdiag.gradients.cells import make_cells
from mfdiag.gradients.engine import Engine, prepare_engine
from mfdiag.gradients.fast_engine import FastEngine
from mfdiag.gradients.reference_engine import per_sample_gradients
from mfdiag.gradients.running_check import FastPathError


def engines(module: nn.Module, inputs: Inputs) -> tuple[Engine, Engine, list[str]]:
    """The fast engine, the reference, and the notes of the fast one."""
    x, r, t, y = inputs
    notes: list[str] = []
    first = (x[:3], r[:3], t[:3], None if y is None else y[:3])
    fast, reference = (prepare_engine(module, first, kind, notes.append) for kind in ("fast", "reference"))
    return fast, reference, notes


def assert_near(actual: Tensor | np.ndarray, expected: Tensor | np.ndarray, scale: float, tolerance: float) -> None:
    error = np.abs(np.asarray(actual) - np.asarray(expected)).max()
    assert error <= tolerance * scale, f"{error / scale:.1e} of the scale, tolerance {tolerance:.0e}"


@DTYPES
@pytest.mark.parametrize("name", NETWORKS)
def test_factors_of_both_engines_agree(name: str, dtype: torch.dtype) -> None:
    module, inputs, cotangents = prepared(NETWORKS[name], dtype)
    fast, reference, notes = engines(module, inputs)
    expected = dict(reference.factors(inputs, cotangents))
    actual = dict(fast.factors(inputs, cotangents))
    assert actual.keys() == expected.keys() == dict(module.named_parameters()).keys()
    for parameter, factors in expected.items():
        gram = factors.gram(GROUPS)
        assert "idle" in parameter or gram.abs().max() > 1e-6, f"{parameter} has no gradient to compare"
        assert_near(actual[parameter].gram(GROUPS), gram, max(float(gram.abs().max()), 1e-30), TOLERANCE[dtype])
        for start, stop in ((0, SAMPLES), (3, 7)):
            total = factors.total(start, stop)
            scale = max(float(factors.dense(start, stop).norm(dim=2).sum(1).max()), 1e-30)
            assert_near(actual[parameter].total(start, stop), total, scale, TOLERANCE[dtype])
    assert (not notes) == NETWORKS[name].ruled


class _Summed(nn.Module):
    """A bare parameter [1, 3] that is summed whole, so that a copy for each sample would make another network."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.gate = nn.Linear(4, 2), nn.Parameter(torch.tensor([[0.5, 0.7, 0.9]]))

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return torch.tanh(self.layer(torch.cat([x, r[:, None], t[:, None]], 1)) * self.gate.sum())


def test_a_wrong_guess_of_a_bare_parameter_leaves_the_derivative_right() -> None:
    torch.manual_seed(0)
    module = _Summed().double().eval().requires_grad_(False)
    x, (r, t) = torch.randn(2, 2).double(), torch.tensor([[0.1, 0.2], [0.6, 0.9]]).double()
    engine = prepare_engine(module, (x, r, t, None), "fast", lambda note: None)
    checked = engine.capabilities.checked_jvp
    assert checked is not None
    _, dx, dt, along = checked
    truth = jvp(lambda x, t: module(x, r, t), (x, t), (dx[0], dt[0]))[1]
    torch.testing.assert_close(along[0], truth)


@DTYPES
@pytest.mark.parametrize("name", NETWORKS)
def test_moments_of_both_engines_agree_by_layer_and_cell(name: str, dtype: torch.dtype) -> None:
    module, inputs, cotangents = prepared(NETWORKS[name], dtype)
    fast, reference, _ = engines(module, inputs)
    cells = make_cells(inputs[1].numpy(), inputs[2].numpy(), (2, 2))
    x, r, t, y = (part[cells.order] for part in inputs if part is not None)
    sizes = {k: p.numel() for k, p in module.named_parameters()}
    accumulators = []
    for engine in (fast, reference):
        accumulator = Accumulator(cells, sizes, GROUPS, SIZE)
        for part in torch.arange(SAMPLES).split(5):
            rows = cells.order[part]
            accumulator.add(rows, engine.factors((x[part], r[part], t[part], y[part]), cotangents[:, rows]))
            accumulator.advance(int(part[-1]) + 1)
        accumulators.append(accumulator)
    actual, expected = (accumulator.moments for accumulator in accumulators)
    assert actual.keys() == expected.keys() and len(actual) > 3
    first, second = (accumulator.diagonal for accumulator in accumulators)
    assert_near(first, second, float(second.max()), TOLERANCE[dtype])
    for cell, layers in expected.items():
        assert layers.keys() == actual[cell].keys()
        for layer, blocks in layers.items():
            ours, theirs = actual[cell][layer].replicates(), blocks.replicates()
            scale = max(float(theirs.Q[0].max()), 1e-30)
            for which in ("S", "M", "Q"):
                one, other = getattr(ours, which)[0], getattr(theirs, which)[0]
                if blocks.count.sum() > 1:  # one sample alone has no covariance
                    assert_near(one, other, scale, TOLERANCE[dtype])
                    assert np.isfinite(other).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_reference_is_a_backward_pass_per_sample(name: str) -> None:
    module, inputs, cotangents = prepared(NETWORKS[name], torch.float64)
    x, r, t, y = inputs
    assert y is not None
    actual = per_sample_gradients(module, inputs, cotangents)
    module.requires_grad_()
    parameters = dict(module.named_parameters())
    for i in range(0, SAMPLES, 5):
        u = module(x[i : i + 1], r[i : i + 1], t[i : i + 1], y[i : i + 1])
        gradients = torch.autograd.grad(
            u, list(parameters.values()), cotangents[1, i : i + 1], allow_unused=True, materialize_grads=True
        )
        for parameter, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(actual[parameter][1, i], gradient, rtol=1e-9, atol=1e-11)


def test_what_has_no_rule_is_said_once() -> None:
    module, inputs, cotangents = prepared(NETWORKS["tokens_first"], torch.float32)
    fast, _, notes = engines(module, inputs)
    for _ in range(2):
        list(fast.factors(inputs, cotangents))
    assert len(notes) == 1 and notes[0].startswith("4 parameter") and "body.0.bias" in notes[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_engines_leave_the_module_as_it_was(name: str) -> None:
    module, inputs, cotangents = prepared(NETWORKS[name], torch.float32)
    before = dict(module.named_parameters(remove_duplicate=False))
    values = {k: p.clone() for k, p in before.items()}
    for engine in engines(module, inputs)[:2]:
        list(engine.factors(inputs, cotangents))
    for parameter, now in module.named_parameters(remove_duplicate=False):
        assert now is before[parameter] and torch.equal(now, values[parameter]), parameter


def test_names_limit_the_reference() -> None:
    module, inputs, cotangents = prepared(NETWORKS["mlp"], torch.float32)
    assert list(per_sample_gradients(module, inputs, cotangents, ["layers.0.bias"])) == ["layers.0.bias"]


class Turned(nn.Module):
    """u of points whose two coordinates are turned as one complex number first."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table)
        self.last = nn.Linear(2, 2)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        a, b = x.unbind(1)
        if self.table.is_complex():
            a, b = torch.view_as_real(torch.complex(a, b) * self.table).unbind(1)
        else:
            a, b = self.table[0] * a - self.table[1] * b, self.table[1] * a + self.table[0] * b
        return self.last(torch.stack([a, b], 1).sin() + (t - r)[:, None])


@DTYPES
def test_complex_buffers_keep_their_imaginary_part(dtype: torch.dtype) -> None:
    """A rotary table in a run of either precision, against the same rotation in real numbers."""
    tables = []
    for turn in (torch.tensor(0.6 + 0.8j), torch.tensor([0.6, 0.8])):
        torch.manual_seed(0)
        tables.append(
            measure(Turned(turn), "eight_gaussians", tables=["variance"], samples=64, dtype=dtype)["variance"]
        )
    pd.testing.assert_frame_equal(*tables, rtol=1e-3 if dtype == torch.float32 else 1e-6)


class Dead(nn.Module):
    """A shift whose gradient is zero at labels below 2, so that the first samples cannot tell how it broadcasts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.shift = nn.Linear(2, 2), nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is not None
        return self.layer(x + (y >= 2).to(x.dtype).view(-1, 1, 1) * self.shift)


def test_a_parameter_that_the_first_samples_do_not_use() -> None:
    module, (x, r, t, _), cotangents = prepared(Network(Dead, (2, 2)), torch.float64)
    inputs = (x, r, t, torch.arange(SAMPLES) // 2)
    fast = prepare_engine(module, (x[:2], r[:2], t[:2], inputs[3][:2]), "fast", lambda _: None)
    assert isinstance(fast, FastEngine) and fast.capabilities.idle == {"shift"}
    with pytest.raises(FastPathError) as error:
        list(fast.factors(inputs, cotangents))
    assert error.value.decision.cotangents == {"shift"}
    fast = fast.left_to_reference(error.value.decision.cotangents)
    actual = {name: factors.gram(1) for name, factors in fast.factors(inputs, cotangents)}
    truth = {k: f.gram(1) for k, f in prepare_engine(module, inputs, "reference", print).factors(inputs, cotangents)}
    assert truth["shift"].abs().max() > 1e-6
    for name, gram in truth.items():
        assert_near(actual[name], gram, float(gram.abs().max()), 1e-10)


class Clamps(nn.Module):
    """Overwrites its input, which no layer with a rule has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.layer(torch.cat([x, r[:, None], t.clamp_(1e-3, 1)[:, None]], 1)).sin()


class Joins(nn.Module):
    """Looks like a linear layer, but takes a list."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.zeros(2))

    def forward(self, parts: list[Tensor]) -> Tensor:
        return torch.tanh(torch.cat(parts, 1) @ self.weight.T + self.bias)


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = Joins(), nn.Linear(2, 2)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.last(self.first([x, r[:, None], t[:, None]]))


class Asserts(Clamps):
    """Checks the shape of a bare parameter, which a copy for each sample would change."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(1, 2))

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        assert self.scale.shape == (1, 2)
        return self.layer(torch.cat([self.scale * x, r[:, None], t[:, None]], 1)).sin()


@pytest.mark.parametrize(
    ("network", "fallback", "reversible"),
    [(Clamps, set(), False), (Lists, set(), True), (Asserts, set(), True)],
)
def test_a_network_that_refuses_a_trial_is_measured_without_it(
    network: type[nn.Module], fallback: set[str], reversible: bool
) -> None:
    module, inputs, cotangents = prepared(Network(network, (2,)), torch.float64)
    fast, reference, _ = engines(module, inputs)
    assert fast.capabilities.fallback == fallback and fast.capabilities.reversible == reversible
    actual = dict(fast.factors(inputs, cotangents))
    for name, factors in reference.factors(inputs, cotangents):
        torch.testing.assert_close(actual[name].gram(GROUPS), factors.gram(GROUPS), rtol=1e-9, atol=1e-12)
