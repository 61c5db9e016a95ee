"""The loss engine: all samples at once against one at a time; cross-Gram matrices; derivatives with a gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from helpers import randomised
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CLASSES, NETWORKS
from torch import Tensor, nn

from mfdiag.derivatives.choice import forward_mode
from mfdiag.derivatives.differentiable_jvp import jvp_by_double_backward, jvp_by_dual_numbers
from mfdiag.estimators import estimators
from mfdiag.fields.builder import FieldBuilder, FieldNeeds
from mfdiag.fields.fields import Fields
from mfdiag.flow.data.datasets import FiniteData
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.gradients.concatenated import Concatenated, sum_over_uses
from mfdiag.gradients.engine import prepare_engine
from mfdiag.gradients.factors import Dense, Factors, Fold, Outer, gram_of
from mfdiag.gradients.loss_engine import LossEngine
from mfdiag.gradients.sample_pass import evaluate_batch

N = 3
LOSSES = {name: e.loss for name, e in estimators().items() if e.loss is not None}
SLOW = {"tokens_first"}  # networks with a parameter that no fast path serves
ONLY_UNTRACKED = {"predicts_eps_by_forward_mode"}  # its own forward mode does not nest with dual numbers
MIXING = {"renormalised_embedding"}  # refused where labels repeat
ALIKE = {"decoupled_dit", "unet1d"}  # made of the layers of other networks


def engine_of(name: str, kind: str = "fast") -> tuple[LossEngine, Fields, list[str]]:
    build, shape, _ = NETWORKS[name]
    torch.manual_seed(0)
    module = randomised(build()).double().eval().requires_grad_(False)
    points = np.random.default_rng(0).standard_normal((20, *shape))
    draws = Draws(FiniteData("points", points, np.arange(20) % CLASSES), parse_times("uniform"), 3)
    others = {"ema": module, "teacher": module}
    builder = FieldBuilder(module, module, draws, FieldNeeds(), "self", lambda a: a.double(), others)
    engine = prepare_engine(module, builder.inputs(draws.batch(np.arange(2))), kind, lambda _: None)  # type: ignore[arg-type]
    notes: list[str] = []
    fields = evaluate_batch(builder, engine, forward_mode(module), draws.batch(np.arange(2)))[1]
    losses = LossEngine(module, engine, list(LOSSES.values()), fields, notes.append)  # type: ignore[arg-type]
    return losses, evaluate_batch(builder, engine, forward_mode(module), draws.batch(np.arange(N)))[1], notes


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in MIXING | ALIKE])
def test_all_at_once_is_one_at_a_time(name: str) -> None:
    engine, fields, notes = engine_of(name)
    for k, loss in enumerate(LOSSES):
        actual = engine.factors(k, fields)
        truth = engine._sample_by_sample(engine.losses[k], fields, list(engine.state))
        assert actual.keys() == truth.keys() == engine.state.keys()
        for parameter, factors in actual.items():
            got, want = factors.dense(0, N), truth[parameter].dense(0, N)
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9, msg=f"{loss} {parameter}")
    slow = {loss for loss, left in zip(LOSSES, engine.slow, strict=True) if left}
    tracked = {name for name, e in estimators().items() if e.needs.trained_jvps} | {"lagrangian_distillation"}
    assert slow == (set(LOSSES) if name in SLOW else tracked if name in ONLY_UNTRACKED else set())
    assert bool(notes) == bool(slow)


def test_the_reference_engine_takes_one_at_a_time() -> None:
    engine, fields, notes = engine_of("mlp_labels", "reference")
    assert all(left == list(engine.state) for left in engine.slow) and not notes
    fast = engine_of("mlp_labels")[0]
    for k in range(len(LOSSES)):
        one, other = engine.factors(k, fields), fast.factors(k, fields)
        for name in one:
            torch.testing.assert_close(one[name].dense(0, N), other[name].dense(0, N), rtol=1e-8, atol=1e-10)


class Layers(nn.Module):
    """A layer between two linear ones."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.last = nn.Linear(4, 4), layer, nn.Linear(4, 4)

    def forward(self, x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x + (r * t)[:, None])))


class Attending(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        q = x.unflatten(1, (2, 2))
        return torch.nn.functional.scaled_dot_product_attention(q, 2 * q, q.sin(), **self.options).flatten(1)


LAYERS = {
    "silu": nn.SiLU(),
    "layer_norm": nn.LayerNorm(4),
    "layer_norm_plain": nn.LayerNorm(4, elementwise_affine=False),
    "group_norm": nn.GroupNorm(2, 4),
    "rms_norm": nn.RMSNorm(4),
    "softmax": nn.Softmax(-1),
    "attention": Attending(scale=0.7),
    "attention_spelled_out": Attending(attn_mask=None, dropout_p=0.0, is_causal=False),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("derivative", [jvp_by_dual_numbers, jvp_by_double_backward], ids=["duals", "reverse"])
def test_derivatives_carry_the_right_gradient(layer: str, derivative: object) -> None:
    """Against central differences: the derivative in the inputs, and its gradient in the first layer's weight."""
    torch.manual_seed(0)
    module = Layers(LAYERS[layer]).double()
    at = (torch.randn(3, 4).double(), torch.rand(3).double(), torch.rand(3).double())
    tangents = (torch.randn(3, 4).double(), torch.rand(3).double(), torch.rand(3).double())

    def along() -> Tensor:
        return derivative(module, at, tangents)[1]  # type: ignore[operator,no-any-return]

    h = 1e-5
    ends = [module(*(a + sign * h * da for a, da in zip(at, tangents, strict=True))) for sign in (-1, 1)]
    torch.testing.assert_close(along(), (ends[1] - ends[0]) / (2 * h), rtol=1e-6, atol=1e-8)
    weight = module.first.weight
    (gradient,) = torch.autograd.grad(along().pow(3).sum(), weight)
    direction = torch.randn_like(weight)
    values = []
    for sign in (-1, 1):
        with torch.no_grad():
            weight += sign * h * direction
        values.append(along().pow(3).sum().detach())
        with torch.no_grad():
            weight -= sign * h * direction
    torch.testing.assert_close((gradient * direction).sum(), (values[1] - values[0]) / (2 * h), rtol=1e-6, atol=1e-7)


def some_factors(kind: str, cotangents: int, tokens: int, generator: torch.Generator) -> Factors:
    """Gradients of a 3 x 2 weight for four samples."""
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    if kind == "dense":
        return Dense(normal(cotangents, 4, 6))
    sizes = (2, 3) if kind == "outer" else (3, 2)
    return Outer(normal(4, tokens, sizes[0]), normal(cotangents, 4, tokens, sizes[1]), kind == "turned")


KINDS = st.sampled_from(["dense", "outer", "turned"])
PARTS = st.lists(st.tuples(KINDS, st.integers(1, 3), st.integers(1, 3)), max_size=3)


@settings(max_examples=40, deadline=None)
@given(first=KINDS, kinds=PARTS, seed=st.integers(0, 99))
def test_joined_factors_are_those_of_the_whole(first: str, kinds: list[tuple[str, int, int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [some_factors(kind, c, tokens, generator) for kind, c, tokens in [(first, 2, 2), *kinds]]
    joined, whole = Concatenated(tuple(parts), 4, 6), torch.cat([part.dense(0, 4) for part in parts])
    torch.testing.assert_close(joined.dense(0, 4), whole)
    torch.testing.assert_close(joined.gram(1), gram_of(whole, 1))
    torch.testing.assert_close(joined.total(1, 3), whole[:, 1:3].sum(1))
    bounds = [(0, 2), (2, 3), (3, 4)]
    torch.testing.assert_close(joined.totals(bounds), Dense(whole).totals(bounds))
    same = Fold(1, 1, generator), Fold(6, 6, generator)
    torch.testing.assert_close(joined.folded(*same).dense(0, 4), whole)


def test_joined_factors_fold_as_one() -> None:
    """Parts fold as they would together, whatever their form."""
    generator = torch.Generator().manual_seed(0)
    whole = some_factors("outer", 5, 2, generator)
    assert isinstance(whole, Outer)
    halves = tuple(Outer(whole.inputs, whole.cotangents[part]) for part in (slice(0, 2), slice(2, 5)))
    left, right = Fold(3, 2, generator), Fold(2, 1, generator)
    expected = whole.folded(left, right).total(0, 4)
    joined = Concatenated(halves, 4, 6)
    assert joined.outer is not None
    torch.testing.assert_close(joined.folded(left, right).total(0, 4), expected)
    mixed = Concatenated((halves[0], Dense(halves[1].dense(0, 4))), 4, 6)
    assert mixed.outer is None
    torch.testing.assert_close(mixed.folded(left, right).total(0, 4), expected)
    one, flat = Fold(1, 1, generator), Fold(6, 4, generator)
    for parts in (joined, mixed):
        torch.testing.assert_close(parts.folded(one, flat).total(0, 4), flat(whole.dense(0, 4)).sum(1))


@settings(max_examples=40, deadline=None)
@given(kinds=st.lists(KINDS, min_size=1, max_size=4), seed=st.integers(0, 99))
def test_uses_of_one_parameter_add_up(kinds: list[str], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [some_factors(kind, 2, k + 1, generator) for k, kind in enumerate(kinds)]
    actual = sum_over_uses(parts, 4, 6)
    torch.testing.assert_close(actual.dense(0, 4), torch.stack([part.dense(0, 4) for part in parts]).sum(0))
    torch.testing.assert_close(actual.gram(1), gram_of(actual.dense(0, 4), 1))
