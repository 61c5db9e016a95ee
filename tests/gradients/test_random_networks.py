"""Both engines on networks made of random blocks, against a loop over samples by plain reverse mode."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from helpers import randomised
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import BLOCKS, CHANNELS, CLASSES, TOKENS, RandomNetwork
from torch import Tensor, nn

from mfdiag.fields.builder import FieldNeeds
from mfdiag.fields.fields import Fields
from mfdiag.flow.data.datasets import FiniteData
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.gradients import accumulate
from mfdiag.gradients.accumulate import layer_of
from mfdiag.gradients.sample_pass import PassSettings, run_pass
from mfdiag.models.precision import in_precision

SAMPLES, POINTS = 12, 9
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
LABELS = np.array([0, 1, 0, 1, 0, 1, 0, 2, 1])  # the last class is rare, and not among the first samples


class Residuals:
    """Two cotangents: MeanFlow's residual at beta = 0, and u - v_c."""

    groups, size, needs, losses = 1, 2, FieldNeeds(posterior=False), ()

    def cotangents(self, fields: Fields) -> Tensor:
        return torch.stack([fields.plane[0], fields.u - fields.v_c])

    def outputs(self, fields: Fields) -> None:
        return None

    def scalars(self, fields: Fields) -> dict[str, Tensor]:
        return {}


def plain(module: RandomNetwork, draws: Draws, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """By parameter, squared norms of the gradients of <u, u - v_c> [N] with u - v_c held fixed, and their sum."""
    batch = draws.batch(np.arange(SAMPLES))
    assert batch.labels is not None
    names = [name for name, _ in module.named_parameters()]
    squares: dict[str, list[Tensor]] = {name: [] for name in names}
    sums: dict[str, Tensor] = {}
    for i in range(SAMPLES):
        one = slice(i, i + 1)
        x, r, t, v = (a[one].to(dtype) for a in (batch.x_t, batch.r, batch.t, batch.velocity))
        u = module(x, r, t, batch.labels[one])
        gradients = torch.autograd.grad(
            u, list(module.parameters()), (u - v).detach(), allow_unused=True, materialize_grads=True
        )
        for name, gradient in zip(names, gradients, strict=True):
            squares[name].append(gradient.abs().double().square().sum())
            sums[name] = sums.get(name, 0) + gradient
    return {name: torch.stack(values) for name, values in squares.items()}, sums


def assert_plain(names: list[str], seed: int, chunk: int, dtype: torch.dtype, kind: str) -> None:
    torch.manual_seed(seed)
    module = randomised(RandomNetwork(names), 0.4, seed).eval()
    for part in module.modules():
        if getattr(part, "starts_at_zero", False):
            nn.init.zeros_(part.b.weight), nn.init.zeros_(part.b.bias), nn.init.zeros_(part.gate)  # type: ignore[arg-type]
    in_precision(module, dtype)
    points = np.random.default_rng(seed).standard_normal((POINTS, TOKENS, CHANNELS))
    draws = Draws(FiniteData("points", points, LABELS), parse_times("uniform"), seed, conditional=True)
    chosen = PassSettings(samples=SAMPLES, chunk=chunk, dtype=dtype, engine=kind)  # type: ignore[arg-type]
    ours = run_pass(Residuals(), module, draws, chosen).gradient
    squares, sums = plain(module, draws, dtype)
    total = torch.stack(list(squares.values())).sum(0)
    error = (ours.diagonal[:, 0, 1] - total).abs()
    assert float(error.max()) <= TOLERANCE[dtype] * float(total.max()), (names, "squared norm of a sample")
    scale = SAMPLES**2 * float(total.mean())
    for layer, moments in ours.moments[0].items():
        own = [name for name in squares if layer_of(name) == layer]
        each = sum(float(squares[name].sum()) for name in own)
        summed = sum(float(sums[name].abs().double().square().sum()) for name in own)
        assert abs(moments.gram[:, 0, 1, 1].sum() - each) <= TOLERANCE[dtype] * scale, (names, layer, "each")
        assert abs(moments.norm[0, 1, 1] - summed) <= TOLERANCE[dtype] * scale, (names, layer, "sum")
    assert {layer_of(name) for name in squares} == set(ours.moments[0])


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block(name: str) -> None:
    for kind in ("fast", "reference"):
        assert_plain([name], 1, 5, torch.float64, kind)


def test_parameters_that_no_sample_uses_have_no_gradient() -> None:
    assert_plain(["never_used", "mixture_by_mask"], 14, 2, torch.float32, "fast")


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.sampled_from(sorted(BLOCKS)), min_size=2, max_size=4),
    st.integers(0, 10**6),
    st.sampled_from([2, 5, 12]),
    st.sampled_from(list(TOLERANCE)),
    st.booleans(),
)
def test_random_networks(names: list[str], seed: int, chunk: int, dtype: torch.dtype, folded: bool) -> None:
    """Also where a network is said to be too large for its block sums."""
    limit = 0 if folded else accumulate._EXACT_BYTES
    with mock.patch.object(accumulate, "_EXACT_BYTES", limit):
        for kind in ("fast", "reference"):
            assert_plain(names, seed, chunk, dtype, kind)


def test_there_are_enough_blocks() -> None:
    assert len(BLOCKS) >= 40 and CLASSES == 3
