"""Networks whose calls are no plain functions as written: both engines and derivatives against plain autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mfdiag.derivatives.choice import choose_derivative
from mfdiag.errors import InputError
from mfdiag.fields.inputs import Inputs
from mfdiag.gradients.engine import prepare_engine
from mfdiag.models.plain_calls import plain_calls
from mfdiag.models.precision import copy_network, measured_copy

N, WIDTH = 6, 8
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["float32", "float64"])


class Net(nn.Module):
    """u = last(tanh(middle(tanh(first(x, r, t)))))."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(5, WIDTH), middle, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.middle(torch.tanh(self.first(torch.cat([x, r[:, None], t[:, None]], 1))))
        return self.last(torch.tanh(h))


class Block(nn.Module):
    """A function of a linear layer and its input."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(WIDTH, WIDTH), function
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        return self.function(self, h)


def counted(block: nn.Module, h: Tensor) -> Tensor:
    block.count += 1
    return block.layer(h)


def assigned(block: nn.Module, h: Tensor) -> Tensor:
    block.mean = 0.9 * block.mean + 0.1 * h.detach().mean(0)
    return block.layer(h)


def copied(block: nn.Module, h: Tensor) -> Tensor:
    block.mean.copy_(h.mean(0))
    return block.layer(h)


def single(block: nn.Module, h: Tensor) -> Tensor:
    return block.layer(h.float().sin().to(torch.float32))


def remembered(block: nn.Module, h: Tensor) -> Tensor:
    block.latest = block.layer(h)  # a tensor with a graph stays behind, as in old-style weight_norm
    return block.latest


MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)),
    "two weight_norms": lambda: nn.utils.weight_norm(nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH), dim=1), "bias"),
    "prelu": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.PReLU(WIDTH), nn.Linear(WIDTH, WIDTH), nn.PReLU()),
    "functional prelu": lambda: Block(lambda block, h: torch.nn.functional.prelu(block.layer(h), block.layer.bias)),
    "gru": lambda: Block(lambda block, h: block.inner(h.view(-1, 2, 4))[0].flatten(1)),
    "counted": lambda: Block(counted),
    "assigned": lambda: Block(assigned),
    "copied": lambda: Block(copied),
    "single": lambda: Block(single),
    "remembered": lambda: Block(remembered),
    "reentrant": lambda: Block(lambda block, h: checkpoint(block.layer, h, use_reentrant=True)),
    "checkpointed": lambda: Block(lambda block, h: checkpoint(lambda a: block.layer(a).sin(), h, use_reentrant=False)),
}


def network(name: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    middle = MIDDLES[name]()
    if name == "gru":
        middle.inner = nn.GRU(4, 4, batch_first=True)
    return Net(middle).to(dtype).eval()


def inputs_of(dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 3, generator=generator, dtype=dtype)
    r, t = torch.rand(2, N, generator=generator, dtype=dtype).sort(0).values
    return x, r, t, None


@DTYPES
@pytest.mark.parametrize("name", MIDDLES)
def test_gradients_and_derivatives_are_those_of_single_samples(name: str, dtype: torch.dtype) -> None:
    inputs, notes = inputs_of(dtype), list[str]()
    e = torch.randn(N, 3, generator=torch.Generator().manual_seed(2), dtype=dtype)
    plain = network(name, dtype)
    if name == "reentrant":
        plain.middle.function = lambda block, h: block.layer(h)
    if name == "single":
        plain.middle.function = lambda block, h: block.layer(h.sin())  # what it is where casts are followed
    module = measured_copy(network(name, dtype), "cpu", dtype)
    first = tuple(None if a is None else a[:2] for a in inputs)
    engines = [prepare_engine(module, first, kind, notes.append) for kind in ("fast", "reference")]  # type: ignore[arg-type]
    factors = [dict(engine.factors(inputs, e[None])) for engine in engines]
    names = [parameter for parameter, _ in plain.named_parameters()]
    for i in range(N):
        x, r, t = (a[i : i + 1] for a in inputs[:3])  # type: ignore[index]
        truth = torch.autograd.grad(
            plain(x, r, t), list(plain.parameters()), e[i : i + 1], allow_unused=True, materialize_grads=True
        )
        scale = torch.stack([g.norm() for g in truth]).norm()
        for parameter, gradient in zip(names, truth, strict=True):
            for by_name in factors:
                error = torch.dist(by_name[parameter].dense(i, i + 1).flatten(), gradient.flatten())
                assert error <= TOLERANCE[dtype] * scale, (parameter, float(error / scale))
    dx, dt = torch.ones(1, N, 3, dtype=dtype), torch.ones(1, N, dtype=dtype)
    derivative = choose_derivative("auto", module, inputs, dx, dt, notes.append)
    assert derivative.name == "jvp"
    inside = [a.clone().requires_grad_() for a in (inputs[0], inputs[2])]
    rows = [
        torch.autograd.grad(plain(inside[0], inputs[1], inside[1])[:, k].sum(), inside, retain_graph=True)
        for k in range(3)
    ]
    expected = torch.stack([gx.sum(1) + gt for gx, gt in rows], 1)
    actual = derivative.differentiate(*inputs, dx, dt)[1][0]
    assert torch.dist(actual, expected) <= TOLERANCE[dtype] * expected.norm()
    buffers = "count", "mean"
    assert any("buffers" in note for note in notes) == (name in ("counted", "assigned", "copied")), notes
    assert any("float32" in note for note in notes) == (name == "single" and dtype == torch.float64), notes
    assert all(not dict(module.named_buffers()).get(f"middle.{b}", torch.zeros(())).any() for b in buffers)


class Delayed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        self.seen += 1
        return self.layer(h) * self.seen


def test_a_buffer_that_changes_the_output_is_refused_by_name() -> None:
    module = measured_copy(Net(nn.Sequential(Delayed())), "cpu", torch.float32)
    first = tuple(None if a is None else a[:2] for a in inputs_of(torch.float32))
    with pytest.raises(InputError, match=r"middle\.0 \(Delayed\) changes its buffer 'seen'.*depends on it"):
        prepare_engine(module, first, "fast", lambda note: None)  # type: ignore[arg-type]


def test_copies_are_independent() -> None:
    module = measured_copy(network("counted", torch.float32), "cpu", torch.float32)
    other = copy_network(module)
    assert plain_calls(other) is not plain_calls(module)
    other(*inputs_of(torch.float32))
    assert plain_calls(other).changed == {"middle.count"} and not plain_calls(module).changed  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(network("weight_norm", torch.float32))
