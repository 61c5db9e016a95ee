"""u, its derivatives and residuals against the whole Jacobian by reverse mode; conditional means; probed Jacobians."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from helpers import Sample, jacobian_of, randomised, residual, velocity_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mfdiag.derivatives.forward_mode import forward_mode_derivatives
from mfdiag.errors import InputError
from mfdiag.fields.fields import Fields, Velocities, compute_fields
from mfdiag.fields.probes import DIAGONAL_PROBES
from mfdiag.measures.parts.jacobian import jacobian_scalars
from mfdiag.models.networks.dit import DiT
from mfdiag.models.networks.mlp import MLP

N = 4
NETWORKS = {
    "mlp": (lambda: MLP(3, hidden=8, depth=2, num_classes=3), (3,)),
    "dit": (lambda: DiT(2, size=4, width=8, depth=1, heads=2, num_classes=3), (2, 4, 4)),
}


def prepared(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network in float64 and all that fields are computed from, at random."""
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    module = randomised(build()).double().requires_grad_(False)
    r, t = torch.rand(2, N, dtype=torch.float64).sort(dim=0).values
    vectors = {k: torch.randn(N, *shape, dtype=torch.float64) for k in ("x", "v_c", "vhat", "marginal", "other")}
    return module, {**vectors, "r": r, "t": t, "labels": torch.arange(N) % 3}


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, dict[str, Tensor]]:
    return prepared(request.param)


def fields_of(module: nn.Module, at: dict[str, Tensor], jacobian: bool = False, **changed: Tensor) -> Fields:
    at = {**at, **changed}
    velocities = Velocities(at["v_c"], at["vhat"], at["marginal"], torch.ones_like(at["x"]), at["other"])
    inputs = tuple(at[k] for k in ("x", "r", "t", "labels"))
    return forward_fields(module, inputs, velocities, jacobian, at.get("signs"))


def forward_fields(
    module: nn.Module, inputs: Any, velocities: Velocities, jacobian: bool = False, probes: Tensor | None = None
) -> Fields:
    """Fields by forward mode."""
    differentiate = partial(forward_mode_derivatives, module, *inputs)
    return compute_fields(inputs, velocities, differentiate, jacobian=jacobian, probes=probes)


def samples_at(at: dict[str, Tensor]) -> list[Sample]:
    columns = (at[k] for k in ("x", "r", "t", "labels", "v_c", "vhat"))
    return [Sample(*one) for one in zip(*columns, strict=True)]


def test_derivatives_equal_the_whole_jacobian(case: tuple[nn.Module, dict[str, Tensor]]) -> None:
    module, at = case
    fields = fields_of(module, at)
    assert fields.posterior is not None and fields.posterior.jvp_delta is not None
    for i, s in enumerate(samples_at(at)):
        dx, dt = jacobian_of(module, s)

        def along(way: Tensor, dx: Tensor = dx, s: Sample = s) -> Tensor:
            return torch.tensordot(dx, way, s.x.ndim)

        v, other = at["marginal"][i], at["other"][i]
        expected = {
            "u": (fields.u, velocity_of(module, s)),
            "v_c": (fields.jvp_v_c, along(s.v_c) + dt),
            "shift": (fields.jvp_shift, along(s.vhat - s.v_c)),
            "bias": (fields.posterior.jvp_bias, along(s.vhat - v)),
            "delta": (fields.posterior.jvp_delta, along(s.v_c - other)),
        }
        for name, (ours, truth) in expected.items():
            torch.testing.assert_close(ours[i], truth, rtol=1e-10, atol=1e-11, msg=name)


def test_basis_and_direct_tangents_agree(case: tuple[nn.Module, dict[str, Tensor]]) -> None:
    module, at = case
    direct, basis = (fields_of(module, at, jacobian) for jacobian in (False, True))
    assert direct.jacobian is None and basis.jacobian is not None and basis.jacobian.is_full
    for name in ("u", "jvp_v_c", "jvp_shift"):
        torch.testing.assert_close(getattr(direct, name), getattr(basis, name), rtol=1e-10, atol=1e-11)
    for name in ("bias", "jvp_bias", "delta", "jvp_delta"):
        one, other = (getattr(fields.posterior, name) for fields in (direct, basis))
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)
    for i, s in enumerate(samples_at(at)):
        a = (s.t - s.r) * jacobian_of(module, s)[0].reshape(s.x.numel(), -1)
        torch.testing.assert_close(basis.jacobian.products[:, i].T, a, rtol=1e-10, atol=1e-11)


@settings(max_examples=25, deadline=None)
@given(beta=st.floats(-2, 3), gamma=st.floats(-2, 3), r=st.floats(0, 1), gap=st.floats(0, 1), seed=st.integers(0, 99))
def test_plane_is_the_plain_residual(beta: float, gamma: float, r: float, gap: float, seed: int) -> None:
    module, at = prepared("mlp")
    generator = torch.Generator().manual_seed(seed)
    new = {k: torch.randn(N, 3, dtype=torch.float64, generator=generator) for k in ("x", "v_c", "vhat")}
    times = torch.full((N,), r, dtype=torch.float64)
    at |= new | {"r": times, "t": times + gap * (1 - times)}
    e_0, e_b, e_g = fields_of(module, at).plane
    for i, s in enumerate(samples_at(at)):
        expected = residual(module, s, beta, gamma)
        torch.testing.assert_close((e_0 + beta * e_b + gamma * e_g)[i], expected, rtol=1e-9, atol=1e-10)


def test_replaced_velocities_equal_direct_evaluation(case: tuple[nn.Module, dict[str, Tensor]]) -> None:
    module, at = case
    fields = fields_of(module, at)
    for ours, velocity in ((fields.mean_field(), at["marginal"]), (fields.second_draw(), at["other"])):
        direct = fields_of(module, at, v_c=velocity)
        torch.testing.assert_close(ours.v_c, velocity)
        for one, other in zip(ours.plane, direct.plane, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-11)


def test_what_is_not_known_is_refused() -> None:
    module, at = prepared("mlp")
    inputs = tuple(at[k] for k in ("x", "r", "t", "labels"))
    fields = forward_fields(module, inputs, Velocities(at["v_c"], at["vhat"]))
    for missing in (fields.mean_field, fields.second_draw):
        with pytest.raises(InputError, match="marginal velocity is known"):
            missing()


@pytest.mark.parametrize(("dim", "jacobian"), [(3, True), (64, True), (66, False)])
def test_jacobian_numbers_equal_their_definitions(dim: int, jacobian: bool) -> None:
    """Exact up to 64 dimensions; beyond, means over random signs within four standard errors of the definitions."""
    repeats = 1 if jacobian else 4000
    torch.manual_seed(0)
    module = randomised(MLP(dim, hidden=8, depth=2)).double().requires_grad_(False)
    x, v_c, vhat, marginal = torch.randn(4, 1, dim, dtype=torch.float64).repeat(1, repeats, 1)
    r, t = torch.full((repeats,), 0.1, dtype=torch.float64), torch.full((repeats,), 0.9, dtype=torch.float64)
    variance = torch.rand(dim, dtype=torch.float64).expand(repeats, -1)
    signs = torch.randint(0, 2, (DIAGONAL_PROBES, repeats, dim)).double() * 2 - 1
    fields = forward_fields(module, (x, r, t, None), Velocities(v_c, vhat, marginal, variance), True, signs)
    assert fields.jacobian is not None and fields.jacobian.is_full == jacobian
    scalars = jacobian_scalars(fields)
    a = 0.8 * jacobian_of(module, Sample(x[0], r[0], t[0], None, v_c[0], vhat[0]))[0]
    j = a - torch.eye(dim, dtype=torch.float64)
    bias2 = (vhat - marginal)[0].square()
    expected = {
        "kappa": j.trace() / dim,
        "jacobi_fro2": j.square().sum(),
        "sigma2d": variance[0].sum(),
        "bias2": bias2.sum(),
        "diagonal/numerator": (a.diag() * j.diag() * variance[0]).sum(),
        "diagonal/denominator": (a.diag() ** 2 * (variance[0] + bias2)).sum(),
    }
    if jacobian:
        expected["jacobi_spectral"] = torch.linalg.svdvals(j)[0]
    assert scalars.keys() == expected.keys()
    for name, truth in expected.items():
        if jacobian or name in ("sigma2d", "bias2"):
            torch.testing.assert_close(scalars[name], truth.expand(repeats), rtol=1e-9, atol=1e-11)
        else:
            error = scalars[name].std() / repeats**0.5
            assert abs(scalars[name].mean() - truth) <= 4 * error, name
            assert error < 0.1 * abs(truth), f"{name} is too noisy to tell"


def test_many_tangents_share_one_primal_pass() -> None:
    """A basis of 64 is pushed forward in parts; u comes from a handful of passes, not one per tangent."""
    calls = []

    class Counting(nn.Module):
        def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            calls.append(1)
            return torch.sin(x) * t[:, None]

    x, times = torch.randn(2, 64), torch.ones(2)
    forward_fields(Counting(), (x, 0 * times, times, None), Velocities(x, -x), jacobian=True)
    assert len(calls) <= 8


def test_a_wrong_output_shape_is_named() -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return torch.cat([x, x], 1)

    x, times = torch.randn(2, 3), torch.ones(2)
    with pytest.raises(InputError, match=r"must return u of shape \(2, 3\), but it returned shape \(2, 6\)"):
        forward_fields(Wide(), (x, times, times, None), Velocities(x, x))


def test_a_layer_without_forward_mode_is_named() -> None:
    class Backward(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
            pass

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:
            return gradient

    class Opaque(nn.Module):
        def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return Backward.apply(x)  # type: ignore[no-any-return]

    x, times = torch.randn(2, 3), torch.ones(2)
    with pytest.raises(InputError, match="no forward-mode derivative"):
        forward_fields(Opaque(), (x, times, times, None), Velocities(x, x))


def test_attention_modules_have_forward_mode_derivatives() -> None:
    """nn.MultiheadAttention takes a fused path in eval mode without gradients, which forward mode cannot enter."""

    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            h = x * (1 + t)[:, None, None]
            return h + self.attention(h, h, h, need_weights=False)[0]

    torch.manual_seed(0)
    module = Attentive().double().eval().requires_grad_(False)
    x, v_c, vhat = torch.randn(3, N, 5, 4, dtype=torch.float64)
    r, t = torch.rand(2, N, dtype=torch.float64).sort(dim=0).values
    fields = forward_fields(module, (x, r, t, None), Velocities(v_c, vhat))
    s = Sample(x[0], r[0], t[0], None, v_c[0], vhat[0])
    torch.testing.assert_close(fields.plane[0][0], residual(module, s, 0, 0), rtol=1e-9, atol=1e-10)
