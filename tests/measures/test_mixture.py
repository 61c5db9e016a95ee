"""A mixture under a random network: what is conditional on x_t against posterior draws made here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers import Sample, Shifted, jacobian_of, loss_gradient, randomised, residual, row, samples_of, velocity_of
from torch import Tensor, nn

from mfdiag import measure
from mfdiag.coefficients.plane import gradient_quadratic, output_quadratic
from mfdiag.flow.data.datasets import MixtureData
from mfdiag.flow.draw import Batch, Draws
from mfdiag.flow.times import parse_times
from mfdiag.gradients.accumulate import sum_layers
from mfdiag.gradients.intervals import Estimate, jackknife
from mfdiag.gradients.sample_pass import PassSettings, SupportNetworks, run_pass
from mfdiag.measures.parts.plane_plans import PlanePlan
from mfdiag.models.networks.mlp import MLP

DATA = MixtureData(2, 3)
POINTS = [((0.3, -0.8), 0.1, 0.7), ((-1.0, 0.4), 0.0, 1.0), ((0.6, 0.2), 0.3, 0.45)]


def network() -> nn.Module:
    torch.manual_seed(3)
    return randomised(MLP(2, hidden=6, depth=2)).double()


def proxy() -> nn.Module:
    return Shifted(network(), torch.tensor([0.4, -0.3], dtype=torch.float64))


def posterior_draws(x: np.ndarray, t: float, count: int, rng: np.random.Generator) -> Tensor:
    """v_c given x_t = x [count, 2]: a component by its posterior weight, then its Gaussian posterior of x_0."""
    densities, conditionals = [], []  # and draws of x_0 given each component
    for weight, mean, covariance in zip(DATA.weights, DATA.means, DATA.covariances, strict=True):
        spread = (1 - t) ** 2 * covariance + t**2 * np.eye(2)
        off = x - (1 - t) * mean
        gain = (1 - t) * covariance @ np.linalg.inv(spread)
        exponent = -0.5 * off @ np.linalg.solve(spread, off)
        densities.append(weight * np.exp(exponent) / np.sqrt(np.linalg.det(spread)))
        root = np.linalg.cholesky(covariance - (1 - t) * gain @ covariance)
        conditionals.append(mean + gain @ off + rng.normal(size=(count, 2)) @ root.T)
    chosen = rng.choice(len(densities), count, p=np.array(densities) / np.sum(densities))
    x0 = np.stack(conditionals)[chosen, np.arange(count)]
    return torch.as_tensor((x - x0) / t)


@dataclass(frozen=True)
class Pinned(Draws):
    """Samples that all share one x_t, their velocities drawn from its posterior by this file."""

    point: tuple[float, float] = (0.0, 0.0)

    def batch(self, index: np.ndarray) -> Batch:
        r, t = (torch.as_tensor(time) for time in self.times_of(index))
        whole = posterior_draws(np.array(self.point), float(t[0]), 4000, np.random.default_rng(1))
        v_c, x = whole[index], torch.tensor(self.point, dtype=torch.float64)
        return Batch(index, x - t[:, None] * v_c, x + (1 - t[:, None]) * v_c, r, t, None)


def slopes_of(model: nn.Module, u: Tensor) -> Tensor:
    """du/dtheta [d, P]."""
    parameters = list(model.parameters())
    rows = (torch.autograd.grad(one, parameters, retain_graph=True) for one in u)
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])


def products(one: Tensor, other: Tensor) -> Tensor:
    """Per row, the product of deviations from the mean row; their mean is the unbiased covariance trace."""
    n = len(one)
    return ((one - one.mean(0)) * (other - other.mean(0))).sum(1) * n / (n - 1)


def squares(values: Tensor) -> Tensor:
    return products(values, values)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def assert_near(found: Estimate, value: float, error: float) -> None:
    assert abs(float(found.value) - value) <= 4 * np.hypot(float(found.std_error), error), (found, value, error)


@pytest.mark.parametrize(("point", "r", "t"), POINTS)
def test_at_one_x_t(point: tuple[float, float], r: float, t: float) -> None:
    """All variance is conditional there; 4,000 samples of the tool's against as many of ours."""
    model = network()
    draws = Pinned(DATA, parse_times(f"point:{r},{t}"), 0, point=point)
    settings = PassSettings(samples=4000, dtype=torch.float64)
    plan = PlanePlan(posterior_known=True)
    measured = run_pass(plan, model, draws, settings, support=SupportNetworks("teacher", proxy()))
    assert measured.output is not None
    moments = sum_layers(measured.gradient.moments[0]).replicates()
    gradient = gradient_quadratic(moments, plan.layout)
    output = output_quadratic(sum_layers(measured.output.moments[0]).replicates(), plan.layout)
    assert gradient.W is not None and output.W is not None and output.B is not None

    velocities = posterior_draws(np.array(point), t, 4000, np.random.default_rng(2))
    x, start, end = (torch.tensor(value, dtype=torch.float64) for value in (point, r, t))
    s = Sample(x, start, end, None, velocities[0], proxy()(x[None], end[None], end[None])[0].detach())
    dx, dt = jacobian_of(model, s)
    slopes = slopes_of(model, velocity_of(model, s))

    def residuals(beta: float, gamma: float) -> Tensor:
        tangent, target = (velocities + c * (s.vhat - velocities) for c in (beta, gamma))
        return velocity_of(model, s).detach() + (end - start) * (tangent @ dx.T + dt) - target

    shortcut = residuals(0.3, 0.2)[0]
    torch.testing.assert_close(shortcut, residual(model, s, 0.3, 0.2).detach())
    torch.testing.assert_close(2 * shortcut @ slopes, loss_gradient(model, s, 0.3, 0.2))
    for beta, gamma in ((0.0, 0.0), (0.5, 0.0), (0.3, 0.6), (1.5, 0.0)):
        at = (np.array([beta]), np.array([gamma]))
        e = residuals(beta, gamma)
        for form, values in ((gradient, 2 * e @ slopes), (output, e)):
            truth = mean_and_error(squares(values))
            assert form.W is not None
            for which in (form.W, form.S):
                assert_near(jackknife(form.at(which, *at)[:, 0], moments.count), *truth)
    # docs/theory.md#matrix: tr(A Sigma J^T) / (tr(A Sigma A^T) + |A b|^2), by blocks for its error
    e_0, e_b = residuals(0, 0), residuals(1, 0) - residuals(0, 0)

    def optimum(kept: slice | Tensor) -> float:
        noise_0, noise_b = (e[kept] - e[kept].mean(0) for e in (e_0, e_b))
        return float(
            -(noise_0 * noise_b).sum() / (noise_b.square().sum() + len(noise_b) * e_b[kept].mean(0).square().sum())
        )

    parts = torch.arange(4000).view(40, 100)
    left_out = torch.tensor([optimum(torch.cat([parts[:k], parts[k + 1 :]]).flatten()) for k in range(40)])
    error = float(left_out.std() * 39 / 40**0.5)
    found = jackknife(output.optimum(output.W, 1, (1,))[:, 0], moments.count)
    assert_near(found, optimum(slice(None)), error)
    assert np.hypot(error, float(found.std_error)) < 0.25, "too noisy to tell"


def test_averaged_over_x_t() -> None:
    """measure() itself: the samples' own x_t, 60 posterior draws at each."""
    count, model = 1500, network()
    tables = measure(
        model,
        DATA,
        tables=("sweep", "coefficient"),
        times="uniform",
        proxy="teacher",
        proxy_model=proxy(),
        beta=(0.0, 0.5),
        batch_sizes=(1,),
        samples=count,
        by_layer=False,
        dtype=torch.float64,
    )
    rng, draws_each = np.random.default_rng(0), 60
    noise: dict[float, list[Tensor]] = {0.0: [], 0.5: []}
    controlled, control, bias = [], [], 0.0  # |A v'|^2 with and without J, |A b|^2
    for s in samples_of(Draws(DATA, parse_times("uniform"), 0), count, proxy()):
        velocities = posterior_draws(s.x.numpy(), float(s.t), draws_each, rng)
        dx, dt = jacobian_of(model, s)
        u = velocity_of(model, s)
        slopes = slopes_of(model, u)
        e_0 = u.detach() + (s.t - s.r) * (velocities @ dx.T + dt) - velocities
        e_b = (s.t - s.r) * (s.vhat - velocities) @ dx.T
        for beta in noise:
            noise[beta].append(squares(2 * (e_0 + beta * e_b) @ slopes))
        controlled.append(products(-e_0, e_b))
        control.append(squares(e_b))
        bias += float(e_b.mean(0).square().sum() - control[-1].mean() / draws_each)
    # the run has the same x_t and one draw at each, so that it differs from this by the draws' scatter alone
    for beta, values in noise.items():
        each = torch.stack(values)
        found = row(tables["sweep"], space="gradient", quantity="conditional_variance", beta=beta)
        error = float(each.var(1).sum().sqrt()) / count
        assert abs(found["value"] - float(each.mean())) <= 4 * error
        assert error < 0.1 * float(each.mean()) and error < found["std_error"]
    above, below = torch.stack(controlled), torch.stack(control)
    total = float(below.mean(1).sum()) + bias
    optimum = float(above.mean(1).sum()) / total
    found = row(tables["coefficient"], form="matrix", role="tangent", quantity="optimum")
    error = float((above - optimum * below).var(1).sum().sqrt()) / total
    assert abs(found["value"] - optimum) <= 4 * error and error < 0.1 * abs(optimum)
