"""Central differences against exact derivatives, their step and reported error, and who falls back on them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from helpers import randomised
from torch import Tensor, nn

from mfdiag.derivatives.choice import choose_derivative, parse_derivative
from mfdiag.derivatives.differentiable_jvp import jvp_by_double_backward
from mfdiag.derivatives.finite_difference import central_difference, jvp_by_difference
from mfdiag.derivatives.forward_mode import forward_mode_derivatives
from mfdiag.errors import InputError
from mfdiag.fields.inputs import Inputs
from mfdiag.gradients.reference_engine import ReferenceEngine, per_sample_gradients
from mfdiag.models.networks.dit import DiT
from mfdiag.models.networks.mlp import MLP

N = 4


class Sine(torch.autograd.Function):
    """A kernel as of xformers or flash-attn: a backward pass of its own, and no other derivative."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return g * torch.from_numpy(np.cos(ctx.saved_tensors[0].detach().numpy()))


class Twice(torch.autograd.Function):
    """One whose backward pass can be differentiated, but that has no forward mode."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        return g * ctx.saved_tensors[0].cos()


class Waves(nn.Module):
    """sin of an affine function of (x, scale r, scale t), by an activation that may be hard to differentiate."""

    def __init__(self, activation: object = torch.sin, scale: float = 1.0, strict: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)
        self.activation, self.scale, self.strict = activation, scale, strict

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        assert not self.strict or ((r >= 0).all() and (t >= r).all() and (t <= 1).all())
        times = self.scale * torch.stack([r, t], 1)
        apply = getattr(self.activation, "apply", self.activation)
        return self.last(apply(self.first(torch.cat([x, times], 1))))  # type: ignore[operator]


def waves(activation: object = torch.sin, scale: float = 1.0, strict: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return Waves(activation, scale, strict).double().requires_grad_(False)


def case(shape: tuple[int, ...] = (2,), dtype: torch.dtype = torch.float64) -> tuple[Inputs, Tensor, Tensor]:
    """Inputs and the tangents (v, 1) and (w, 0)."""
    generator = torch.Generator().manual_seed(0)
    x, v, w = torch.randn(3, N, *shape, generator=generator, dtype=dtype)
    r, t = torch.rand(2, N, generator=generator, dtype=dtype).sort(dim=0).values
    return (x, r, t, torch.arange(N) % 3), torch.stack([v, w]), torch.tensor([[1.0], [0.0]]).to(dtype).expand(2, N)


def relative(actual: Tensor, exact: Tensor, inputs: Inputs) -> float:
    """Of (t-r) times the derivative, over all samples, for the worse of the tangents."""
    gap = (inputs[2] - inputs[1]).view(-1, *[1] * (exact.ndim - 2))
    return float(((gap * (actual - exact)).flatten(1).norm(dim=1) / (gap * exact).flatten(1).norm(dim=1)).max())


NETWORKS = {
    "mlp": (lambda: MLP(2, hidden=8, depth=2, num_classes=3), (2,)),
    "dit": (lambda: DiT(2, size=4, width=8, depth=1, heads=2, num_classes=3), (2, 4, 4)),
    "waves": (Waves, (2,)),
    "fast_waves": (lambda: Waves(scale=1000), (2,)),
}


@pytest.mark.parametrize("step", [None, 0.005])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_difference_is_as_good_as_it_says(name: str, step: float | None) -> None:
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    module = randomised(build()).double().requires_grad_(False)
    inputs, dx, dt = case(shape)
    actual = central_difference(module, inputs, dx, dt, step)
    u, along = actual(*inputs, dx, dt)
    exact_u, exact = forward_mode_derivatives(module, *inputs, dx, dt)
    torch.testing.assert_close(u, exact_u)
    off = relative(along, exact, inputs)
    assert off <= 1.1 * actual.error + 1e-14
    if step is None:
        assert actual.error < 1e-5
    elif name == "fast_waves":
        assert actual.error > 0.5 and off > 0.5  # the embedding completes several periods within the step
    else:
        assert actual.error < 5e-3 and off > actual.error / 10  # and the reported error is not far too large


def test_the_step_follows_the_time_scale_in_the_precision_there_is() -> None:
    inputs, dx, dt = case()
    steps = {}
    for scale in (1.0, 1000.0):

        class Single(Waves):
            def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
                if x.dtype == torch.float64:
                    raise RuntimeError("this kernel knows float32 alone")
                return super().forward(x, r, t, y)

        torch.manual_seed(0)
        module = Single(scale=scale).requires_grad_(False)
        single = tuple(a.float() for a in inputs[:3])
        actual = central_difference(module, (*single, None), dx.float(), dt.float())
        exact = forward_mode_derivatives(waves(scale=scale), *inputs, dx, dt)[1]
        near = actual(*single, None, dx.float(), dt.float())[1]
        assert actual.dtype == torch.float32 and relative(near, exact, inputs) < max(0.05, 2 * actual.error)
        steps[scale] = actual.step
    assert steps[1000.0] < steps[1.0] / 10


def test_times_stay_inside() -> None:
    """Waves asserts it; near r and 1 the quotient is one-sided, and at r = t = 1 it is 0."""
    module, r = waves(strict=True), torch.tensor([0.3, 0.0, 0.999, 1.0], dtype=torch.float64)
    t = torch.tensor([0.3, 1.0, 0.9995, 1.0], dtype=torch.float64)
    (x, _, _, y), dx, dt = case()
    actual = central_difference(module, (x, r, t, y), dx, dt)(x, r, t, y, dx, dt)[1]
    exact = forward_mode_derivatives(module, x, r, t, y, dx, dt)[1]
    torch.testing.assert_close(actual[:, :3], exact[:, :3], rtol=1e-4, atol=1e-4)
    assert (actual[0, 3] == 0).all() and actual.isfinite().all()


def test_a_step_that_is_given_goes_both_ways_as_in_training() -> None:
    module, h = waves(), 0.01
    (x, _, _, y), dx, dt = case()
    r, t = torch.full((2, N), 0.995, dtype=torch.float64).unbind()
    actual = central_difference(module, (x, r, t, y), dx, dt, h)(x, r, t, y, dx, dt)[1]
    literal = [
        (module(x + h * v, r, t + h * s) - module(x - h * v, r, t - h * s)) / (2 * h)
        for v, s in zip(dx, dt, strict=True)
    ]
    torch.testing.assert_close(actual, torch.stack(literal))


@pytest.mark.parametrize("speeds", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)], ids=["t", "r", "x"])
def test_a_difference_carries_its_gradient(speeds: tuple[float, float]) -> None:
    module = waves().requires_grad_()
    (x, r, t, _), dx, _ = case()
    tangents = (dx[0], torch.full_like(r, speeds[0]), torch.full_like(t, speeds[1]))
    pairs = []
    for along in (jvp_by_double_backward, partial(jvp_by_difference, step=1e-5)):
        u, actual = along(module, (x, r, t), tangents)
        weights = list(module.parameters())
        slopes = torch.autograd.grad((actual * dx[1]).sum(), weights, allow_unused=True, materialize_grads=True)
        pairs.append((u, actual, *slopes))
    for exact, near in zip(*pairs, strict=True):
        torch.testing.assert_close(near, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "spec", "name", "count"),
    [
        (torch.sin, "auto", "jvp", 0),
        (torch.sin, "difference:0.01", "difference:0.01", 1),
        (Twice, "auto", "jvp", 0),
        (Twice, "jvp", "jvp", 0),
        (Sine, "auto", "difference", 2),
        (Sine, "difference", "difference", 1),
    ],
)
def test_who_is_differentiated_how(activation: object, spec: str, name: str, count: int) -> None:
    notes: list[str] = []
    inputs, dx, dt = case()
    actual = choose_derivative(spec, waves(activation), inputs, dx, dt, notes.append)
    assert actual.name.startswith(name) and len(notes) == count, notes
    assert (actual.jvp is None) == (name == "jvp")
    exact = forward_mode_derivatives(waves(), *inputs, dx, dt)[1]
    torch.testing.assert_close(actual.differentiate(*inputs, dx, dt)[1], exact, rtol=1e-3, atol=1e-3)
    if spec == "auto" and count:
        assert "relative error" in notes[1] and "double backward" in notes[0]


def test_a_wrong_double_backward_is_not_used() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, g: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
            return torch.where(g.detach().abs() > 0, g, 2 * g) * ctx.saved_tensors[0].detach().cos()

    inputs, dx, dt = case()
    actual = choose_derivative("auto", waves(Wrong), inputs, dx, dt, lambda note: None)
    assert actual.name.startswith("difference")
    exact = forward_mode_derivatives(waves(), *inputs, dx, dt)[1]
    torch.testing.assert_close(actual.differentiate(*inputs, dx, dt)[1], exact, rtol=1e-6, atol=1e-6)


class Viewed(Waves):
    """A network that takes its points through another type, which autograd does not follow."""

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return super().forward(x.view(torch.int64).view(x.dtype), r, t, y)


def test_a_cut_graph_is_refused() -> None:
    torch.manual_seed(0)
    module, (inputs, dx, dt) = Viewed().double().requires_grad_(False), case()
    with pytest.raises(InputError, match=r"from its difference quotient, .* cuts the graph"):
        choose_derivative("auto", module, inputs, dx, dt, lambda note: None)
    notes: list[str] = []
    assert choose_derivative("jvp", module, inputs, dx, dt, notes.append).name == "jvp"
    assert len(notes) == 1 and "cuts the graph" in notes[0]
    actual = choose_derivative("difference", module, inputs, dx, dt, notes.append)
    exact = forward_mode_derivatives(waves(), *inputs, dx, dt)[1]
    torch.testing.assert_close(actual.differentiate(*inputs, dx, dt)[1], exact, rtol=1e-5, atol=1e-5)


def test_asking_for_what_cannot_be_had() -> None:
    inputs, dx, dt = case()
    with pytest.raises(InputError, match=r"no forward-mode derivative.*--derivative difference"):
        choose_derivative("jvp", waves(Sine), inputs, dx, dt, lambda note: None)
    for spec in ("jvp:1", "difference:0", "difference:x", "difference:0.7", "auto:"):
        with pytest.raises(InputError, match="--derivative takes"):
            parse_derivative(spec)
    with pytest.raises(InputError, match="Did you mean 'difference'"):
        parse_derivative("diference")


def test_fused_attention_is_said_where_it_is() -> None:
    for name, count in (("dit", 1), ("mlp", 0)):
        build, shape = NETWORKS[name]
        inputs, dx, dt = case(shape)
        for spec, expected in (("auto", count), ("difference:0.01", 0)):
            notes: list[str] = []
            choose_derivative(spec, build().double(), inputs, dx, dt, notes.append)
            assert sum("attention" in note for note in notes) == expected


def test_the_reference_goes_one_by_one_where_vmap_cannot() -> None:
    inputs, _, _ = case()
    cotangents = torch.randn(3, N, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = per_sample_gradients(waves(), inputs, cotangents)
    actual = dict(ReferenceEngine(waves(Sine)).factors(inputs, cotangents))
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name].dense(0, N), gradient[..., None].flatten(2))
    assert list(per_sample_gradients(waves(Sine), inputs, cotangents, ["last.bias"])) == ["last.bias"]
