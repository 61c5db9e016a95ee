"""Each method's gradient against its paper's loss, differentiated plainly, on the same samples."""

from __future__ import annotations

from functools import cache

import estimator_cases as cases
import numpy as np
import pytest
import torch
from plain import LOSSES, One
from torch import Tensor

from mfdiag.errors import InputError
from mfdiag.estimators import Needs, estimators, find_estimator
from mfdiag.estimators.stable_velocity import posterior_average

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
        if spec.startswith("finite_difference") and not r + 0.01 <= t <= 0.99:
            continue
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
    truth, whole, stopped = residuals("meanflow", "restricted_meanflow:1", "modular_meanflow:0")
    torch.testing.assert_close(whole, truth, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(stopped, truth, rtol=1e-9, atol=1e-10)
    (plain_dispersive,) = residuals("dispersive:0")
    torch.testing.assert_close(plain_dispersive, truth, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("spec", ["split_meanflow", "shortcut", "alpha_flow", "meanflow", "finite_difference"])
def test_at_r_equal_to_t_all_are_flow_matching(spec: str) -> None:
    truth, actual = residuals("flow_matching", spec, times="uniform:1")
    torch.testing.assert_close(actual, truth, rtol=1e-9, atol=1e-10)


def test_cmt_at_r_equal_to_t_is_the_teacher() -> None:
    truth, actual = residuals("teacher_target", "cmt", times="uniform:1")
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
    assert (cost["flow_matching"], cost["meanflow"], cost["ema_tangent"], cost["cmt"]) == (3, 4, 5, 11)
    assert find_estimator("cmt:1").needs.cost == 5
