"""Guided objectives against a plain loss per sample; conditional laws of v_g against sums over the data."""

from __future__ import annotations

import numpy as np
import plain
import pytest
import torch
from estimator_cases import CLASSES, SAMPLES, Headed, draws, gradients, networks
from torch import Tensor, nn
from torch.autograd.functional import jvp

from mfdiag.derivatives.choice import forward_mode
from mfdiag.fields.builder import FieldBuilder, FieldNeeds
from mfdiag.fields.fields import Fields
from mfdiag.flow.draw import Draws
from mfdiag.flow.guidance import GuidanceScale, parse_guidance
from mfdiag.gradients.engine import prepare_engine
from mfdiag.gradients.sample_pass import evaluate_batch

SPECS = [
    "meanflow:2,0.3,0.2,0.8,0.4",
    "re_meanflow:0.5,2,0.4",
    "model_guidance:0.7,0.1,0.9,0.4",
    "improved:3,0.1,0.9,0.4",
    "teacher:1.5,0.2,0.8,0.4",
]
NULL = CLASSES


def guided(spec: str, **changed: object) -> Draws:
    law = draws(**changed)  # type: ignore[arg-type]
    return Draws(law.data, law.times, law.seed, guidance=parse_guidance(spec), null_label=NULL)


def labels_and_guidance(
    labels: Tensor, omega: Tensor | float = 1.0, low: Tensor | float = 0.0, high: Tensor | float = 1.0
) -> Tensor:
    columns = [torch.as_tensor(a, dtype=torch.float64).expand(len(labels)) for a in (omega, low, high)]
    return torch.stack([labels.double(), *columns], 1)


class TakesGuidance(nn.Module):
    """A network that takes its guidance: label, omega and interval shift its input; the head depends on r too."""

    takes_guidance = True
    num_classes = CLASSES

    def __init__(self, network: Headed) -> None:
        super().__init__()
        self.network = network

    def shifted(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        assert y.ndim == 2
        return x + 0.1 * y[:, 1:2] - 0.2 * y[:, 2:3] + 0.3 * y[:, 3:4], y[:, 0].long()

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x, labels = self.shifted(x, y)
        return self.network(x, r, t, labels)

    def velocity(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x, labels = self.shifted(x, y)
        return self.network.velocity(x, r, t, labels) + r[:, None] + labels[:, None]


def plain_guided(spec: str, s: plain.One, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """v_g of one sample at (x, t), as the papers write it; v its conditional velocity there."""
    kind, _, text = spec.partition(":")
    a = [float(part) for part in text.split(",")]
    y, null = s.labels, torch.tensor([NULL])
    dropped = bool(y == null)
    low, high = (0.0, 1.0) if kind == "re_meanflow" else (a[-3], a[-2])
    inside = low <= float(t) <= high
    if kind == "teacher":
        own, empty = (s.teacher(x, t, t, label) for label in (y, null))
        return empty + a[0] * (own - empty) if inside and not dropped else own
    if not inside or (dropped and kind != "re_meanflow"):
        return v
    if kind == "improved":
        own, empty = (s.module.velocity(x, s.r, t, label) for label in (y, null))
        return v + (1 - 1 / a[0]) * (own - empty)
    own, empty = (s.module(x, t, t, label) for label in (y, null))
    if kind == "model_guidance":
        return v + a[0] * (own - empty)
    kappa = a[1] if kind == "meanflow" else 1 - a[0] / a[1]
    return a[0] * v + kappa * own + (1 - a[0] - kappa) * empty


def flat(module: nn.Module, loss: Tensor) -> Tensor:
    parts = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in parts])


@pytest.mark.parametrize("kind", ["fast", "reference"])
@pytest.mark.parametrize("spec", SPECS)
def test_gradients_are_those_of_the_plain_loss(spec: str, kind: str) -> None:
    module, ema, teacher = networks()
    law = guided(spec)
    names = ["ema_tangent", "alpha_flow", "restricted_meanflow:0.3"]
    names += [] if spec.startswith("teacher") else ["terminal_velocity", "stable_velocity:5"]
    plan, columns = gradients(names, module, law, kind, {"ema": ema, "teacher": teacher})
    seen = {"dropped": 0, "outside": 0}
    module.requires_grad_()
    for i in range(SAMPLES):
        s = plain.One(module, ema, teacher, law, i)
        x = s.at(s.t)
        v_g = plain_guided(spec, s, x, s.t, s.v_c).detach()
        seen["dropped"] += int(s.labels == NULL)  # type: ignore[arg-type]
        seen["outside"] += int(torch.equal(v_g, s.v_c))
        x_s = x - 0.5 * (s.t - s.r) * v_g  # alpha-Flow's point along the velocity that is trained on
        target = 0.5 * v_g + 0.5 * s.u(x_s, s.r, (s.r + s.t) / 2).detach()
        short = plain.One(module, ema, teacher, law, i)
        object.__setattr__(short, "r", s.t - (s.t - s.r).clamp_max(0.3))
        losses = {
            "meanflow": plain.meanflow(s, v_g, v_g),
            "ema_tangent": plain.meanflow(s, plain.instantaneous(s, ema), v_g),
            "alpha_flow:0.5": plain.square(s.u(x, s.r, s.t) - target) / 0.5,
            "restricted_meanflow:0.3": plain.meanflow(short, v_g, v_g),
        }
        if "terminal_velocity" in names:
            average = plain_average(s, 5)
            mixed = plain_guided(spec, s, x, s.t, average).detach()
            losses["stable_velocity:5"] = plain.meanflow(s, mixed, mixed)
            losses["terminal_velocity"] = terminal_velocity(spec, s)
        value = torch.as_tensor(plan.maps.value)
        for k, estimator in enumerate(plan.estimators):
            ours = torch.einsum("c,cp->p", value[k], columns[:, i])
            name = estimator.name if estimator.name in losses else f"{estimator.name}:0.5"
            torch.testing.assert_close(ours, flat(module, losses[name]), rtol=1e-8, atol=1e-9, msg=f"{name} {i}")
    module.requires_grad_(False)
    assert seen["dropped"] > 0


def plain_average(s: plain.One, references: int) -> Tensor:
    """What plain.stable_velocity regresses on, before guidance."""
    averages: list[Tensor] = []
    original = plain.meanflow
    plain.meanflow = lambda s, tangent, target: averages.append(tangent)  # type: ignore[assignment,return-value]
    try:
        matching = object.__new__(plain.One)
        matching.__dict__.update(s.__dict__)
        if s.labels == NULL:  # the null label leaves every point possible
            object.__setattr__(matching, "labels", None)
        plain.stable_velocity(matching, references)
    finally:
        plain.meanflow = original
    return averages[0]


def terminal_velocity(spec: str, s: plain.One) -> Tensor:
    x_t = s.at(s.t)
    f, speed = jvp(lambda r: (r - s.t) * s.u(x_t, r, s.t), (s.r,), (torch.ones_like(s.r),), create_graph=True)
    end = (x_t + f).detach()
    x_r = s.at(s.r)
    target = plain_guided(spec, s, x_r, s.r, s.v_c).detach()
    return plain.square(speed - s.u(end, s.r, s.r, s.ema).detach()) + plain.square(s.u(x_r, s.r, s.r) - target)


@pytest.mark.parametrize("spec", ["improved_power:7,0.4", "improved_uniform:2,4,0.6,0.4"])
def test_a_network_that_takes_its_guidance(spec: str) -> None:
    module = TakesGuidance(networks()[0]).double()
    law = guided(spec, times="uniform:0.3")
    _, columns = gradients(["head_tangent"], module, law, "fast")
    module.requires_grad_()
    for i in range(SAMPLES):
        s = plain.One(module, module, module, law, i)  # type: ignore[arg-type]
        batch = law.batch(np.array([i]))
        assert isinstance(batch.scale, GuidanceScale) and batch.labels is not None
        omega, low, high = batch.scale
        dropped, inside = bool(batch.labels == NULL), bool(low <= s.t <= high)
        whole = labels_and_guidance(batch.labels, omega, low, high)
        x = s.at(s.t)
        own = module.velocity(x, s.r, s.t, labels_and_guidance(batch.labels, omega if inside else 1.0))
        empty = module.velocity(x, s.r, s.t, labels_and_guidance(torch.tensor([NULL])))
        v_g = s.v_c + (1 - 1 / omega) * (own - empty) if inside and not dropped else s.v_c
        object.__setattr__(s, "labels", whole)
        for column, tangent in ((0, v_g), (1, own)):
            expected = flat(module, plain.meanflow(s, tangent.detach(), v_g.detach()))
            torch.testing.assert_close(columns[column, i], expected, rtol=1e-8, atol=1e-9)
    module.requires_grad_(False)


def fields_of(spec: str, samples: int) -> tuple[Draws, Fields]:
    module, _, teacher = networks()
    law = guided(spec)
    needs = FieldNeeds(posterior=True, second_draw=True)
    builder = FieldBuilder(module, module, law, needs, "self", lambda a: a.double(), {"teacher": teacher})
    engine = prepare_engine(module, builder.inputs(law.batch(np.arange(2))), "fast", lambda _: None)
    return law, evaluate_batch(builder, engine, forward_mode(module), law.batch(np.arange(samples)))[1]


@pytest.mark.parametrize("spec", SPECS)
def test_conditional_laws_are_sums_over_the_data(spec: str) -> None:
    """Mean, variance and residual of v_g given (x_t, label), from every point that could have led to x_t."""
    law, fields = fields_of(spec, 12)
    module, ema, teacher = networks()
    assert fields.posterior is not None
    mean_field, other = fields.mean_field(), fields.second_draw()
    points, labels = torch.as_tensor(law.data.points), torch.as_tensor(law.data.labels)  # type: ignore[attr-defined]
    for i in range(12):
        s = plain.One(module, ema, teacher, law, i)
        near = points if s.labels == NULL else points[labels == s.labels]
        x, t = s.at(s.t), s.t
        weights = torch.softmax(-((x - (1 - t) * near) ** 2).sum(1) / (2 * t**2), 0)
        guided_velocities = [plain_guided(spec, s, x, t, v[None])[0] for v in (x - (1 - t) * near) / t - near]
        velocities = torch.stack(guided_velocities).detach()
        mean = weights @ velocities
        torch.testing.assert_close(mean_field.v_c[i], mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(
            fields.posterior.variance[i], weights @ (velocities - mean) ** 2, rtol=1e-5, atol=1e-6
        )
        assert (velocities - other.v_c[i]).abs().sum(1).min() < 1e-6
        jacobian, slope = torch.autograd.functional.jacobian(lambda a, b, s=s: s.u(a, s.r, b)[0], (x, t))
        residuals = s.u(x, s.r, t) + (t - s.r) * (velocities @ jacobian[:, 0].T + slope[:, 0]) - velocities
        torch.testing.assert_close(mean_field.plane[0][i], weights @ residuals.detach(), rtol=1e-6, atol=1e-6)


def test_without_guidance_the_plain_velocity_is_back() -> None:
    law, fields = fields_of(SPECS[0], 8)
    plain_law = Draws(law.data, law.times, law.seed)
    unguided = fields.without_guidance()
    torch.testing.assert_close(unguided.v_c, plain_law.batch(np.arange(8)).velocity)
    assert not torch.allclose(unguided.v_c, fields.v_c)
    context = fields.context
    assert context is not None
    exact = context.derivatives(context.r, unguided.v_c[None], torch.ones_like(context.t)[None])[1][0]
    torch.testing.assert_close(unguided.jvp_v_c, exact)
