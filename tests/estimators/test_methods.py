"""Each method's gradient against its paper's loss, differentiated plainly, on the same samples."""

from __future__ import annotations

from functools import cache

import estimator_cases as cases
import numpy as np
import pytest
import torch
from plain import LOSSES, One, dispersion, features
from torch import Tensor

from mfdiag.errors import InputError
from mfdiag.estimators import Needs, estimators, find_estimator
from mfdiag.estimators.stable_velocity import posterior_average
from mfdiag.measures.run.api import measure

BASE = {spec.partition(":")[0] for spec in LOSSES}


@cache
def measured(kind: str) -> dict[str, Tensor]:
    """Specification -> gradients [samples, P] of all methods in one group."""
    module, ema, teacher = cases.networks()
    others = {"ema": ema, "teacher": teacher}
    plan, columns = cases.gradients(list(LOSSES), module, cases.draws("restricted:0.6"), kind, others)
    return dict(zip(LOSSES, torch.einsum("kc,cnp->knp", torch.as_tensor(plan.maps.value), columns), strict=True))


def plain(spec: str, i: int) -> Tensor:
    module, ema, teacher = cases.networks()
    parameters = list(module.parameters())
    for p in parameters:
        p.requires_grad_()
    loss = LOSSES[spec](One(module, ema, teacher, cases.draws("restricted:0.6"), i))
    parts = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    for p in parameters:
        p.requires_grad_(False)
    return torch.cat([g.flatten() for g in parts])


def test_every_method_is_here() -> None:
    assert set(estimators()) == BASE


@pytest.mark.parametrize("kind", ["fast", "reference"])
@pytest.mark.parametrize("spec", LOSSES)
def test_gradient_is_that_of_the_papers_loss(spec: str, kind: str) -> None:
    law = cases.draws("restricted:0.6").batch(np.arange(cases.SAMPLES))
    gradients = measured(kind)[spec]
    for i in range(cases.SAMPLES):
        r, t = float(law.r[i]), float(law.t[i])
        if spec == "finite_difference:0.01,1" and not r + 0.01 <= t <= 0.99:
            continue  # there the difference is one-sided
        torch.testing.assert_close(gradients[i], plain(spec, i), rtol=1e-10, atol=1e-11)


def residuals(*specs: str, times: str = "restricted:0.6") -> list[Tensor]:
    """Gradients [samples, P] of each of the specifications."""
    module, ema, teacher = cases.networks()
    plan, columns = cases.gradients(specs, module, cases.draws(times), "fast", {"ema": ema, "teacher": teacher})
    names = [e.name for e in plan.estimators]
    return [columns.new_tensor(plan.maps.value[names.index(spec)]) @ columns.transpose(0, 1) for spec in specs]


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_alpha_flow_tends_to_meanflow() -> None:
    truth, *approximations = residuals("meanflow", "alpha_flow:0.04", "alpha_flow:0.02", "alpha_flow:0.01")
    off = [distance(one, truth) for one in approximations]
    assert off[0] < 0.05
    assert off[1] == pytest.approx(off[0] / 2, rel=0.1) and off[2] == pytest.approx(off[1] / 2, rel=0.1)


def test_finite_difference_converges_in_the_square_of_its_step() -> None:
    truth, *approximations = residuals("meanflow", "finite_difference:0.02", "finite_difference:0.01")
    batch = cases.draws("restricted:0.6").batch(np.arange(cases.SAMPLES))
    inner = (batch.t - batch.r > 0.02) & (batch.t < 0.98)  # both ends of the difference inside [r, 1]
    assert inner.sum() >= 3
    off = [distance(one[inner], truth[inner]) for one in approximations]
    assert off[0] < 0.01 and off[1] == pytest.approx(off[0] / 4, rel=0.05)


def test_the_ends_of_the_arguments() -> None:
    """No restriction and no modulation are MeanFlow; so is a difference of two networks that are one."""
    truth, whole, stopped = residuals("meanflow", "restricted_meanflow:1,1", "modular_meanflow:0")
    torch.testing.assert_close(whole, truth, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(stopped, truth, rtol=1e-9, atol=1e-10)
    (plain_dispersive,) = residuals("dispersive:0")
    torch.testing.assert_close(plain_dispersive, truth, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "spec", ["split_meanflow", "shortcut", "shortcut:0,0", "alpha_flow", "meanflow", "finite_difference"]
)
def test_at_r_equal_to_t_all_are_flow_matching(spec: str) -> None:
    truth, actual = residuals("flow_matching", spec, times="uniform:0")
    torch.testing.assert_close(actual, truth, rtol=1e-9, atol=1e-10)


def test_cmt_at_r_equal_to_t_is_the_teacher() -> None:
    truth, actual = residuals("teacher_target", "cmt:4,0", times="uniform:0")
    torch.testing.assert_close(actual, truth, rtol=1e-9, atol=1e-10)


def test_many_references_are_the_marginal_velocity() -> None:
    """The average over points of a Gaussian tends to its marginal velocity, as one over root references."""
    from mfdiag.fields.context import EvaluationContext
    from mfdiag.fields.fields import Fields
    from mfdiag.flow.data.datasets import GaussianData
    from mfdiag.flow.draw import Draws
    from mfdiag.flow.times import parse_times

    law, index = Draws(GaussianData(2, 0.5, 0.8), parse_times("point:0,0.9"), 0), np.arange(300)
    batch = law.batch(index)
    known = law.velocity_posterior(batch)
    assert known is not None
    nothing: dict = {}
    unused = lambda *_: None  # noqa: E731
    around = EvaluationContext(
        batch.x_t, batch.r, batch.t, None, unused, nothing, "self", lambda dx: dx, unused, law, index
    )  # type: ignore[arg-type]
    gap = (batch.t - batch.r)[:, None]
    fields = Fields(batch.x_t, batch.velocity, batch.x_t, gap, batch.x_t, batch.x_t, context=around)
    off = [float((posterior_average(fields, count) - known.mean).square().mean()) for count in (2, 8, 200)]
    alone = float((batch.velocity - known.mean).square().mean())
    assert alone > off[0] > off[1] > off[2] and off[2] < 0.05 * alone


@pytest.mark.parametrize("kind", ["fast", "reference"])
def test_the_mean_over_a_batch_is_the_gradient_of_its_dispersive_loss(kind: str) -> None:
    module, ema, teacher = cases.networks()
    law = cases.draws("restricted:0.6")
    batch = [One(module, ema, teacher, law, i) for i in range(4)]
    module.requires_grad_()
    loss = sum(LOSSES["meanflow"](s) for s in batch) / 4 + 2 * dispersion(
        torch.stack([features(s) for s in batch]), 0.3
    )
    truth = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, materialize_grads=True)
    module.requires_grad_(False)
    plan, columns = cases.gradients(["dispersive:2,0.3,0,4"], module, law, kind, samples=4)
    ours = columns.new_tensor(plan.maps.value[1]) @ columns.mean(1)
    torch.testing.assert_close(ours, torch.cat([g.flatten() for g in truth]), rtol=1e-10, atol=1e-11)


def test_batches_do_not_depend_on_chunks() -> None:
    frames = [
        measure(
            cases.networks()[0],
            cases.draws().data,
            tables=["compare"],
            times="uniform",
            estimators=["dispersive:2,0.3,0,6"],
            samples=32,
            chunk=chunk,
            by_layer=False,
            dtype=torch.float64,
        )["compare"]
        for chunk in (5, 32)
    ]
    assert set(frames[0]["status"]) == set(frames[1]["status"])
    np.testing.assert_allclose(frames[0]["value"], frames[1]["value"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spec", ["facm", "facm:2", "scm", "eulerian_distillation"])
def test_images_have_channels_and_one_norm(spec: str) -> None:
    """Cosines over channels at every pixel, and norms over a whole image, against loops."""
    torch.manual_seed(0)
    shape = (2, 3, 2, 2)
    u0, anchor, v, du = torch.randn(4, *shape, dtype=torch.float64)
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    fields = _Stub(u0, v, du, t)
    estimator = find_estimator(spec)
    tangent = u0 - v + t.view(2, 1, 1, 1) * du
    if spec == "eulerian_distillation":
        assert estimator.residual is not None
        actual = estimator.residual(fields)  # type: ignore[arg-type]
        for i in range(2):
            g = u0[i] - v[i] + 0.99 * t[i] * du[i]
            torch.testing.assert_close(actual[i], g / (g.flatten().norm() + 0.1))
        return
    assert estimator.loss is not None
    values = estimator.loss(fields, lambda x, r, t: anchor if r is t else u0)  # type: ignore[arg-type]
    for i in range(2):
        if spec == "scm":
            expected = (tangent[i] / (tangent[i].flatten().norm() + 0.1)).square().sum()
        else:
            power = 2 if spec == "facm:2" else 0.5
            pixels = [(anchor[i, :, a, b], v[i, :, a, b]) for a in range(2) for b in range(2)]
            cosines = [1 - float(p @ q / (p.norm() * q.norm())) for p, q in pixels]
            error = ((1 - (1 - t[i]) ** power) * tangent[i].clamp(-1, 1)).square().mean()
            consistency = error / (error + 1e-3) ** 0.5 * np.cos(np.pi / 2 * float(1 - t[i]))
            expected = (anchor[i] - v[i]).square().sum() + 12 * (np.mean(cosines) + consistency)
        torch.testing.assert_close(values[i], expected)


class _Stub:
    """Fields of given tensors, at r = 0."""

    def __init__(self, u: Tensor, v_c: Tensor, derivative: Tensor, t: Tensor) -> None:
        self.u, self.v_c, self.derivative, self.x = u, v_c, derivative, u
        self.t = self.gap = t.view(-1, 1, 1, 1)
        self.r = 0 * self.t

    def derivative_at(self, r: Tensor, dx: Tensor, dt: float = 1.0) -> Tensor:
        assert torch.equal(dx, self.v_c) and dt == 1 and not r.any()
        return self.derivative

    def jvp_v_c_at(self, r: Tensor) -> Tensor:
        return self.derivative_at(r, self.v_c)

    def instantaneous_velocity(self, network: str, x: Tensor, t: Tensor) -> Tensor:
        assert network == "teacher"
        return self.v_c


def test_second_draws_are_new_draws() -> None:
    """What a method draws itself is drawn anew for the second draw of v_c, and the same again when asked again."""
    plan, columns = cases.gradients(
        ["split_meanflow", "stable_velocity", "dispersive"], cases.networks()[0], cases.draws()
    )
    assert plan.maps.within is not None
    again = cases.gradients(["split_meanflow", "stable_velocity", "dispersive"], cases.networks()[0], cases.draws())[1]
    assert torch.equal(columns, again)
    within = torch.einsum("kc,cnp->knp", torch.as_tensor(plan.maps.within), columns)
    assert (within.flatten(1).norm(dim=1) > 1e-3).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("alpha_flow:0", "alpha must be above 0"),
        ("alpha_flow:1.5", "at most 1"),
        ("alpha_flow:x", "finite number"),
        ("alpha_flow:beta=1", "unknown argument 'beta'"),
        ("finite_difference:0", "step must be above 0"),
        ("restricted_meanflow:2", "bound must be above 0 and at most 1"),
        ("modular_meanflow:-1", "between 0 and 1"),
        ("stable_velocity:1", "at least 2"),
        ("cmt:1.5", "whole number"),
        ("dispersive:-1", "coefficient must be at least 0"),
        ("dispersive:1,0", "temperature must be above 0"),
        ("dispersive:1,1,0.5", "partners must be a whole number"),
        ("dispersive:1,1,0,1", "batch must be at least 2"),
        ("shortcut:3", "0 or a power of two"),
        ("shortcut:1", "0 or a power of two"),
        ("shortcut:ema=2", "ema must be 0 or 1"),
        ("terminal_velocity:0.5", "ema must be 0 or 1"),
        ("cmt:noise=2", "noise must be 0 or 1"),
        ("finite_difference:clip=2", "clip must be 0 or 1"),
        ("restricted_meanflow:shrink=2", "shrink must be 0 or 1"),
        ("soflow:0", "ratio must be above 0"),
        ("soflow:flow_matching=2", "between 0 and 1"),
        ("euler_mean_flow:1", "at most 0.5"),
        ("euler_mean_flow:endpoint=0.5", "endpoint must be 0 or 1"),
        ("scm:0", "constant must be above 0"),
        ("scm:warmup=2", "between 0 and 1"),
        ("facm:0", "power must be above 0"),
        ("facm:teacher=2", "teacher must be 0 or 1"),
        ("eulerian_distillation:0", "constant must be above 0"),
        ("eulerian_self_distillation:0.5", "jacobian must be 0 or 1"),
        ("progressive_self_distillation:2", "midpoint must be 0 or 1"),
        ("split_meanflow:1", "takes no arguments"),
    ],
)
def test_bad_arguments(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_estimator(spec)


def test_names_leave_out_defaults() -> None:
    names = {"alpha_flow:0.5": "alpha_flow", "alpha_flow:alpha=0.25": "alpha_flow:0.25", "dispersive:0.5,1": None}
    for spec, name in names.items():
        assert find_estimator(spec).name == (name or spec)
        assert find_estimator(find_estimator(spec).name).name == (name or spec)


def test_cost_follows_from_needs() -> None:
    """A forward and a backward pass cost 3; MeanFlow adds a derivative, the others what they evaluate."""
    assert Needs().cost == 3
    assert Needs(trained=2, trained_jvps=1, forwards=4, jvps=1).cost == 14
    cost = {name: e.needs.cost for name, e in estimators().items()}
    assert (cost["flow_matching"], cost["meanflow"], cost["ema_tangent"], cost["cmt"]) == (3, 4, 5, 19)
    assert (find_estimator("cmt:1").needs.cost, find_estimator("cmt:1,0").needs.cost) == (7, 5)
