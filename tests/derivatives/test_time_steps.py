"""Times that do not reach the output smoothly are told apart, and smooth ones are not accused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfdiag.derivatives.time_steps import time_notes
from mfdiag.fields.inputs import Inputs
from mfdiag.models.networks.dit import DiT
from mfdiag.models.networks.mlp import MLP
from mfdiag.models.precision import measured_copy

N = 8


class Timed(nn.Module):
    """Sinusoidal embeddings of the times that `change` makes of r and t."""

    def __init__(self, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], scale: float) -> None:
        super().__init__()
        self.change, self.scale = change, scale
        self.body = nn.Sequential(nn.Linear(2 + 16, 16), nn.SiLU(), nn.Linear(16, 2))

    def embed(self, time: Tensor) -> Tensor:
        angles = self.scale * time[:, None].float() * torch.tensor([1.0, 0.3, 0.1, 0.01])
        return torch.cat([angles.sin(), angles.cos()], 1)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        r, t = self.change(r, t)
        return self.body(torch.cat([x, self.embed(r).to(x), self.embed(t).to(x)], 1))


def inputs_of(dtype: torch.dtype) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, 2, generator=generator).to(dtype)
    t = torch.linspace(0.02, 0.98, N) + 0.003 * torch.rand(N, generator=generator)
    return x, (t * torch.rand(N, generator=generator)).to(dtype), t.to(dtype), None


def notes_of(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], scale: float, dtype: torch.dtype) -> list[str]:
    torch.manual_seed(0)
    return time_notes(measured_copy(Timed(change, scale), "cpu", dtype), inputs_of(dtype))


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
ODD = {
    "rounds t within, in steps of about 0.0": lambda r, t: (r, (100 * t).round() / 100),
    "rounds t within, in steps of about 0.00": lambda r, t: (r, (1000 * t).long() / 1000),
    "rounds r within": lambda r, t: ((20 * r).floor() / 20, t),
    "casts t to bfloat16": lambda r, t: (r, t.bfloat16()),
    "casts r to bfloat16": lambda r, t: ((1000 * r).bfloat16() / 1000, t),
    "casts t to float16": lambda r, t: (r, t.half()),
    "u changes with t only between about 0.28 and 0.72": lambda r, t: (r, t.clamp(0.3, 0.7)),
    "u does not depend on r": lambda r, t: (0 * r, t),
    "u does not depend on t": lambda r, t: (r, 0 * t),
}


@DTYPES
@pytest.mark.parametrize("expected", ODD)
def test_each_kind_is_named(expected: str, dtype: torch.dtype) -> None:
    (note,) = notes_of(ODD[expected], 3.0, dtype)
    assert expected in note


@DTYPES
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 1000.0, 30000.0])
def test_smooth_embeddings_are_not_accused(scale: float, dtype: torch.dtype) -> None:
    assert notes_of(lambda r, t: (r, t), scale, dtype) == []
    assert notes_of(lambda r, t: (t - r, t), scale, dtype) == []
    assert notes_of(lambda r, t: (r, torch.where(t < 0.5, t, t.square() + 0.25)), scale, dtype) == []


class Hidden(torch.autograd.Function):
    """A step at 0.44, with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        return (t > 0.44).to(t)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 0 * gradient


@DTYPES
def test_a_jump_that_no_function_of_torch_shows_is_named(dtype: torch.dtype) -> None:
    (note,) = notes_of(lambda r, t: (r, t + Hidden.apply(t)), 1.0, dtype)
    assert note == (
        "u jumps with t at 0.44, as where a branch begins; derivatives are those on either side, so the residual lacks "
        "the jump, as it does in a training with this network."
    )
    (note,) = notes_of(lambda r, t: (r + Hidden.apply(r), t), 1.0, dtype)
    assert "u jumps with r at 0.44," in note and "losses with du/dr lack the jump." in note


@pytest.mark.parametrize("network", [lambda: MLP(dim=2), DiT])
def test_networks_of_the_project_are_not_accused(network: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = measured_copy(network(), "cpu", torch.float32)
    _, r, t, _ = inputs_of(torch.float32)
    shape = (4, 8, 8) if isinstance(module, DiT) else (2,)
    assert time_notes(module, (torch.randn(N, *shape), r, t, None)) == []


class Trunk(Timed):
    """An embedding of each time by `of_t`, in a network with a table, an embedding MLP, and a trunk."""

    def __init__(self, of_t: Callable[[Trunk, Tensor], Tensor]) -> None:
        super().__init__(lambda r, t: (r, t), 3.0)
        self.of_t, self.table = of_t, nn.Embedding(1001, 8)
        self.mix = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.body(torch.cat([x, self.embed(r).to(x), self.mix(self.of_t(self, t).to(x))[:, :8]], 1))


def straight_through(t: Tensor) -> Tensor:
    return t + ((100 * t).round() / 100 - t).detach()


ROUNDED = "rounds t within, in steps of about {}, as an integer index does: its derivative by t is 0"
KINDS: list[tuple[Callable[[Trunk, Tensor], Tensor], str]] = [
    (lambda net, t: net.table((1000 * t).long()), ROUNDED.format("0.0005")),
    (lambda net, t: net.table(torch.floor(1000 * t).clamp(max=999).int()), ROUNDED.format("0.0005")),
    (lambda net, t: net.table((50 * t).ceil().to(torch.long)), ROUNDED.format("0.02")),
    (lambda net, t: net.embed(torch.div(t, 0.01, rounding_mode="floor") / 100), ROUNDED.format("0.008")),
    (lambda net, t: net.embed(torch.round(t, decimals=2)), ROUNDED.format("0.004")),
    (lambda net, t: net.table((torch.linspace(0, 1, 50).to(t) - t[:, None]).abs().argmin(1)), ROUNDED.format("0.008")),
    (lambda net, t: net.embed((1000 * t).to(torch.bfloat16).to(t) / 1000), "casts t to bfloat16 within"),
    (lambda net, t: net.embed((1000 * t).half().to(t) / 1000), "casts t to float16 within"),
    (lambda net, t: net.embed(t).bfloat16(), "derivatives pass through the rounding"),
    (lambda net, t: net.embed(straight_through(t)), "derivatives pass through the rounding"),
    (lambda net, t: net.embed(t.clamp(0.2, 0.8)), "only between about 0.19 and 0.81"),
    (lambda net, t: net.embed(torch.relu(t - 0.5)), "only between about 0.5 and 1"),
    (lambda net, t: net.embed((t + 0.01).log()), ""),
    (lambda net, t: net.embed(1000 * t), ""),
]


@DTYPES
@pytest.mark.parametrize(("of_t", "expected"), KINDS)
def test_kinds_within_a_larger_network(
    of_t: Callable[[Trunk, Tensor], Tensor], expected: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    notes = time_notes(measured_copy(Trunk(of_t), "cpu", dtype), inputs_of(dtype))
    assert len(notes) == bool(expected) and all(expected in note for note in notes)


class PartlyRounded(Timed):
    """A table of rounded times beside a smooth embedding of them."""

    def __init__(self, index: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(lambda r, t: (r, t), 3.0)
        self.index, self.table = index, nn.Embedding(1001, 2)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return super().forward(x + self.table(self.index(x, t)), r, t)


@DTYPES
@pytest.mark.parametrize(
    ("index", "count"),
    [
        (lambda x, t: (1000 * t).long(), 1),
        (lambda x, t: (10 * t).round().to(torch.int64), 1),
        (lambda x, t: torch.bucketize(t, torch.linspace(0, 1, 9).to(t)), 1),
        (lambda x, t: (torch.linspace(0, 1, 50).to(t) - t[:, None]).abs().argmin(1), 1),
        (lambda x, t: (-(torch.linspace(0, 1, 20).to(t) - t[:, None]).square()).max(1).indices, 1),
        (lambda x, t: (t[:, None] > torch.linspace(0, 1, 30).to(t)).sum(1), 1),
        (lambda x, t: (4 * t).round().long(), 1),
        (lambda x, t: (5 * t).long(), 1),
        (lambda x, t: torch.bucketize(t, torch.tensor([0.3, 0.6]).to(t)), 1),
        (lambda x, t: torch.tensor([int(1000 * v) for v in t.tolist()]), 1),
        (lambda x, t: torch.tensor([int(4 * v.item()) for v in t]), 1),
        (lambda x, t: torch.tensor([int(50 * v) for v in t]), 1),
        (lambda x, t: torch.from_numpy((20 * t.detach().numpy()).astype(int)), 1),
        (lambda x, t: torch.tensor([int(f"{v:.2f}"[2:]) for v in t]), 1),
        (lambda x, t: ((x[:, 0] + t).abs() * 10).long(), 0),  # not of the time alone, as in quantized activations
        (lambda x, t: 0 * (1000 * t).long(), 0),
    ],
)
def test_a_part_that_rounds_a_time_is_named(
    index: Callable[[Tensor, Tensor], Tensor], count: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    notes = time_notes(measured_copy(PartlyRounded(index), "cpu", dtype), inputs_of(dtype))
    assert len(notes) == count and all("a part of the network rounds t" in note for note in notes)


class Beside(Timed):
    """Something else that depends on t, beside a smooth embedding; weights are in float64 during the trials."""

    def __init__(self, part: Callable[[Beside, Tensor], Tensor]) -> None:
        super().__init__(lambda r, t: (r, t), 3.0)
        self.part, self.table = part, nn.Embedding(1001, 2)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return super().forward(x + self.part(self, t).to(x), r, t)


def interpolated(net: Beside, t: Tensor, rows: int) -> Tensor:
    place = rows * t
    lower = place.floor().long().clamp(max=rows - 1)
    fraction = (place - lower)[:, None]
    return (1 - fraction) * net.table(lower) + fraction * net.table(lower + 1)


def no_derivative(net: Beside, t: Tensor) -> Tensor:
    with torch.no_grad():
        return net.embed(t)[:, :2]


class Sine(torch.autograd.Function):
    """sin(3 t) with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, t: Tensor) -> Tensor:
        ctx.save_for_backward(t)
        return torch.sin(3 * t)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (t,) = ctx.saved_tensors
        return 3 * gradient * torch.cos(3 * t)


def wide(values: Tensor) -> Tensor:
    return values[:, None].expand(-1, 2)


PARTS: list[tuple[Callable[[Beside, Tensor], Tensor], str]] = [
    (lambda net, t: wide(Sine.apply(t)), ""),
    (lambda net, t: wide(torch.sin(2 * torch.pi * (50 * t - torch.floor(50 * t)))), ""),  # u has no jump
    (lambda net, t: wide((t[:, None] - torch.linspace(0, 1, 9).to(t)).relu().sum(1)), ""),  # piecewise linear
    (lambda net, t: interpolated(net, t, 3), ""),
    (lambda net, t: wide(torch.sin(30000 * t)), ""),
    (lambda net, t: net.embed(torch.round(4 * t) / 4)[:, :2], "rounds"),
    (lambda net, t: net.embed(torch.div(t, 0.2, rounding_mode="floor"))[:, :2], "rounds"),
    (lambda net, t: net.embed(t.clone().mul_(5).floor_())[:, :2], "rounds"),
    (lambda net, t: wide(torch.tensor([math.sin(v) for v in t.tolist()])), "takes t without a derivative"),
    (lambda net, t: wide(torch.tensor([math.sin(3 * v.item()) for v in t])), "takes t without a derivative"),
    (lambda net, t: interpolated(net, t, 10), ""),  # continuous, and du/dt is right but at the nodes
    (lambda net, t: interpolated(net, t, 1000), ""),
    (lambda net, t: straight_through(t)[:, None].sin().expand(-1, 2), ""),  # right over visible differences
    (lambda net, t: wide(8 * t % 1), "u jumps with t"),  # a sawtooth
    (lambda net, t: wide(torch.frac(3 * t)), "u jumps with t, as at 0.333, 0.667, as where"),
    (lambda net, t: wide(torch.fmod(t, 0.3)), "u jumps with t"),
    (lambda net, t: wide(5 * t - torch.floor(5 * t)), "rounds t"),
    (lambda net, t: wide(torch.round(2 * t)), "u jumps with t, as at 0.25, 0.75,"),
    (lambda net, t: wide(torch.floor(3 * t) * t), "rounds t"),
    (lambda net, t: wide(torch.atan2((20 * t).sin(), (20 * t).cos())), "u jumps with t"),
    (lambda net, t: wide(((t > 0.2) & (t < 0.7)).to(t)), "rounds t"),
    (lambda net, t: wide((8 * t % 1 - 0.5).abs()), ""),  # a triangle is continuous
    (lambda net, t: wide((torch.remainder(1000 * t, 1) * 2 * torch.pi).sin()), ""),
    (lambda net, t: wide(torch.atan2((2 * t).sin(), (2 * t).cos())), ""),
    (lambda net, t: torch.where(t < 0.3, 3 * t, 0.6 + t)[:, None].expand(-1, 2), ""),
    (lambda net, t: net.table(torch.topk(-(torch.linspace(0, 1, 40).to(t) - t[:, None]).abs(), 1)[1][:, 0]), "rounds"),
    (lambda net, t: net.table((t > 0.5).long()), "u jumps with t at 0.5, as where a branch begins"),
    (lambda net, t: net.table(torch.tensor([int(v > 0.3) for v in t.tolist()])), "u jumps with t at 0.3,"),
    (lambda net, t: torch.where(t[:, None] < 0.61, net.embed(t), net.embed(1 - t))[:, :2], "u jumps with t at 0.61,"),
    (lambda net, t: wide(torch.stack([2 * v if v > 0.37 else v for v in t])), "u jumps with t at 0.37,"),
    (lambda net, t: wide(torch.log((t - 0.5).clamp_min(0) + 1e-3)), ""),  # steep, and continuous
    (lambda net, t: wide(torch.sigmoid(1e4 * (t - 0.5))), ""),
    (lambda net, t: wide((t - 0.4).abs()), ""),
    (lambda net, t: wide(t.sqrt()), ""),
    (lambda net, t: net.embed(t.detach())[:, :2], "takes t without a derivative"),
    (no_derivative, "takes t without a derivative"),
]


@DTYPES
@pytest.mark.parametrize(("part", "expected"), PARTS)
def test_a_part_is_named_where_the_derivative_lacks_what_differences_show(
    part: Callable[[Beside, Tensor], Tensor], expected: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    notes = time_notes(measured_copy(Beside(part), "cpu", dtype), inputs_of(dtype))
    assert len(notes) == bool(expected) and all(expected in note for note in notes)
