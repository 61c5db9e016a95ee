"""What the doctor measures by forward passes and from one gradient pass, against closed forms and plain loops."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from mfdiag import measure
from mfdiag.diagnosis.alternatives import ALTERNATIVES, TRANSPORT, probe_alternatives
from mfdiag.diagnosis.field_probe import TARGETS, probe_field
from mfdiag.diagnosis.gradient_probe import probe_gradient
from mfdiag.diagnosis.measured import Measured
from mfdiag.estimators import find_estimator
from mfdiag.flow.data.datasets import load_data
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.gradients.pass_types import PassSettings
from mfdiag.measures.conventions.observations import observe
from mfdiag.measures.run.measurement import Measurement
from mfdiag.measures.run.request import Request
from mfdiag.measures.run.subject import Subject
from mfdiag.models.networks.gaussian import GaussianAverageVelocity
from mfdiag.models.networks.mlp import MLP

DIM, STD = 3, 0.5
TIMES = "uniform:r_ne_t=0.5"
DRAWS = Draws(load_data(f"gaussian:{DIM},0.5,{STD}"), parse_times("uniform"), seed=3)


class Instantaneous(nn.Module):
    """u(x, r, t) = v(x, t): the identity of a target without derivative."""

    def __init__(self, exact: nn.Module) -> None:
        super().__init__()
        self.exact = exact

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        value: Tensor = self.exact(x, t, t)
        return value


class AtRest(Instantaneous):
    """u = 1/(t-r) int_r^t v(x, s) ds at fixed x, which solves u = v - (t-r) du/dt: v is left out of the tangent."""

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        nodes, weights = np.polynomial.legendre.leggauss(24)
        total = torch.zeros_like(x)
        for node, weight in zip(nodes, weights, strict=True):
            s = r + (t - r) * (node + 1) / 2
            total = total + weight / 2 * self.exact(x, s, s)
        return total


def exact() -> GaussianAverageVelocity:
    """The average velocity itself, which satisfies MeanFlow's own identity."""
    return GaussianAverageVelocity(0.5, STD, (DIM,))


def values(measured: list[Measured], quantity: str) -> dict[str, float]:
    return {
        str(entry.keys.get("target", "")): float(entry.estimate.value)
        for entry in measured
        if entry.quantity == quantity and entry.box.t_low is None
    }


@pytest.mark.parametrize(
    ("network", "target"),
    [
        (exact(), "meanflow"),
        (Instantaneous(exact()), "derivative_left_out"),
        (AtRest(exact()), "velocity_left_out"),
    ],
)
def test_a_network_satisfies_the_identity_of_its_own_target_alone(network: nn.Module, target: str) -> None:
    measured = list(probe_field(DRAWS, {"raw": network}, 256, 1e9, torch.float64))
    defects = values(measured, "target_defect")
    assert set(defects) == set(TARGETS)
    assert defects[target] < 1e-6
    assert min(value for name, value in defects.items() if name != target) > 1e-3
    assert values(measured, "velocity_error")[""] < 1e-12


def test_a_network_whose_times_are_exchanged_satisfies_the_identity_in_the_other_order() -> None:
    class Exchanged(Instantaneous):
        def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            value: Tensor = self.exact(x, t, r)
            return value

    def defect(network: nn.Module) -> float:
        return values(list(probe_field(DRAWS, {"raw": network}, 256, 1e9, torch.float64)), "swapped_defect")[""]

    assert defect(Exchanged(exact())) < 1e-6
    assert defect(exact()) > 1e-3


def test_coefficients_of_the_output_agree_with_least_squares() -> None:
    torch.manual_seed(4)
    network = MLP(DIM, 8, 2).double()
    measured = list(probe_field(DRAWS, {"raw": network}, 256, 1e9, torch.float64))
    observations = observe(DRAWS, 256, cost=1e9)
    x, t, v, _ = observations.points(1.0, 0.0)
    with torch.no_grad():
        u = network(x, t, t)
    du = torch.func.jvp(lambda x, t_end: network(x, t, t_end), (x, t), (v, torch.ones_like(t)))[1].detach()
    mean = observations.mean
    noise = (x - (1 - t)[:, None] * mean) / t[:, None]
    parts = np.stack([-mean.flatten().numpy(), noise.flatten().numpy()], 1)
    fitted, squares, *_ = np.linalg.lstsq(parts, u.flatten().numpy(), rcond=None)
    for name, value in zip(("data_coefficient", "noise_coefficient"), fitted, strict=True):
        assert values(measured, name)[""] == pytest.approx(value, rel=1e-4)
    assert values(measured, "unexplained_output")[""] == pytest.approx(
        float(squares[0]) / float(u.square().sum()), rel=1e-6
    )
    error, derivative = (value.flatten().numpy() for value in (u - v, du))
    coefficient = error @ derivative / (derivative @ derivative)
    assert values(measured, "derivative_coefficient")[""] == pytest.approx(coefficient, rel=1e-4)
    share = 1 - np.square(error - coefficient * derivative).sum() / np.square(error).sum()
    assert values(measured, "derivative_share")[""] == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize(
    ("network", "coefficients"),
    [(exact(), (1, 1)), (AtRest(exact()), (0, 1)), (Instantaneous(exact()), (0, 0))],
    ids=["MeanFlow", "v left out", "derivative left out"],
)
def test_the_parts_of_the_target_are_those_that_it_has(network: nn.Module, coefficients: tuple[int, int]) -> None:
    measured = list(probe_field(DRAWS, {"raw": network}, 256, 1e9, torch.float64))
    fitted = values(measured, "target_coefficient")
    assert (fitted["position"], fitted["time"]) == pytest.approx(coefficients, abs=1e-4)


def test_averages_that_compose_have_no_interval_defect_and_instantaneous_ones_no_effect_of_r() -> None:
    measured = list(probe_field(DRAWS, {"raw": exact()}, 256, 1e9, torch.float64))
    assert values(measured, "interval_defect")[""] < 1e-12
    wrong = list(probe_field(DRAWS, {"raw": Instantaneous(exact())}, 256, 1e9, torch.float64))
    assert values(wrong, "interval_defect")[""] > 1e-3
    assert values(wrong, "interval_effect")[""] == 0 < values(measured, "interval_effect")[""]


def test_skill_is_zero_for_gaussian_data_and_below_for_a_network_that_is_zero() -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return torch.zeros_like(x)

    measured = list(probe_field(DRAWS, {"raw": exact(), "ema": Zero()}, 1024, 1e9, torch.float64))
    over_everything = [entry for entry in measured if entry.box.t_low is None]
    skill = {entry.keys["weights"]: entry.estimate for entry in over_everything if entry.quantity == "skill"}
    assert skill["raw"].low < 0.02 and skill["raw"].high > -0.02  # the best linear denoiser is the best one
    assert skill["ema"].high < -0.1
    share = {entry.keys["weights"]: entry.estimate for entry in over_everything if entry.quantity == "learned_share"}
    assert share["raw"].low < 1.02 and share["raw"].high > 0.98
    assert float(share["ema"].value) == 0
    errors = {
        entry.keys["weights"]: float(entry.estimate.value)
        for entry in measured
        if entry.quantity == "velocity_error" and entry.box.t_low is None
    }
    assert errors["ema"] == pytest.approx(1)


def test_derivatives_agree_with_forward_mode() -> None:
    """`derivative_size` by difference quotients against torch.func.jvp on the same points."""
    network = exact().double()
    measured = list(probe_field(DRAWS, {"raw": network}, 128, 1e9, torch.float64))
    x, r, _, t, _ = observe(DRAWS, 128, cost=1e9).intervals(1.0, 0.0)
    w = network(x, t, t)
    derivative = torch.func.jvp(lambda x, t: network(x, r, t), (x, t), (w, torch.ones_like(t)))[1]
    expected = ((t - r)[:, None] * derivative).square().sum() / w.square().sum()
    assert values(measured, "derivative_size")[""] == pytest.approx(float(expected.detach()), rel=1e-5)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return MLP(2, hidden=16, depth=2)


def test_gradient_quantities_agree_with_the_tables_of_their_commands() -> None:
    """tangent_optimum and critical_batch are those of table `coefficient`, and mse_ratio that of `compare`."""
    n, samples = 64, 1024
    subject = Subject(small_model(), load_data("eight_gaussians"), parse_times(TIMES))
    request = Request(
        batch_sizes=(n,), by_layer=False, settings=PassSettings(samples=samples, bins=(1, 10), dtype=torch.float64)
    )
    estimators = [find_estimator(name) for name in ("meanflow", "self_tangent")]
    measurement = Measurement("variance", subject, request, subject.draws(0), estimators)
    with np.errstate(invalid="ignore", divide="ignore"):
        measured, frames = probe_gradient(measurement, n)
    tables = measure(
        subject.module,
        "eight_gaussians",
        times=TIMES,
        samples=samples,
        batch_sizes=[n],
        tables=["coefficient", "compare"],
        estimators=["meanflow", "self_tangent"],
        bins=None,
        by_layer=False,
        dtype=torch.float64,
    )
    coefficient = tables["coefficient"].query("form == 'gradient' and role == 'tangent' and t_low.isna()")

    def number(quantity: str, **keys: object) -> float:
        return next(
            float(e.estimate.value) for e in measured if e.quantity == quantity and keys.items() <= e.keys.items()
        )

    best = coefficient.query("quantity == 'optimum' and batch_size == @n")["value"].item()
    assert number("tangent_optimum") == pytest.approx(best, rel=1e-6)
    critical = coefficient.query("quantity == 'critical_batch'")["value"].item()
    assert number("critical_batch") == pytest.approx(critical, rel=1e-6)
    compared = tables["compare"].query("quantity == 'mse_ratio' and batch_size == @n and estimator == 'self_tangent'")
    assert number("mse_ratio", estimator="self_tangent") == pytest.approx(compared["value"].item(), rel=1e-6)
    check_shares(measured, frames["samples"])


def check_shares(measured: list[Measured], samples: pd.DataFrame) -> None:
    """Shares and moments against plain sums over table `samples`."""
    norms = samples.query("quantity == 'grad_norm2' and estimator == 'meanflow'").sort_values("index")
    g, r, t = (norms[name].to_numpy() for name in ("value", "r", "t"))
    shares = [e for e in measured if e.quantity == "moment_share"]
    assert sum(float(e.estimate.value) for e in shares) == pytest.approx(1)
    for entry in shares:
        inside = (t >= entry.box.t_low) & (t < entry.box.t_high)
        assert float(entry.estimate.value) == pytest.approx(g[inside].sum() / g.sum())
    by_name = {e.quantity: float(e.estimate.value) for e in measured}
    cells = [(t >= k / 10) & (t < (k + 1) / 10) for k in range(10)]
    best = sum(cell.mean() * np.sqrt(g[cell].mean()) for cell in cells if cell.any()) ** 2 / g.mean()
    assert by_name["times_moment"] == pytest.approx(best)
    assert by_name["clipped_moment"] == pytest.approx(np.minimum(g, np.quantile(g, 0.99)).mean() / g.mean())
    apart, share = r < t, (r < t).mean()
    fewer = (share / 2 * g[apart].mean() + (1 - share / 2) * g[~apart].mean()) / g.mean()
    assert by_name["equal_times_moment"] == pytest.approx(fewer)
    assert by_name["interval_moment"] == pytest.approx(g[r < t].mean() / g[r == t].mean())
    layers = [float(e.estimate.value) for e in measured if e.quantity == "variance_share"]
    assert sum(layers) == pytest.approx(1)


def test_alternatives_agree_with_their_commands() -> None:
    subject = Subject(small_model(), load_data("eight_gaussians"), parse_times(TIMES))
    settings = PassSettings(samples=512, dtype=torch.float64)
    request = Request(batch_sizes=(64,), by_layer=False, settings=settings)
    measurement = Measurement("variance", subject, request, subject.draws(0), [find_estimator("meanflow")])
    common: dict[str, object] = {"samples": 512, "times": TIMES, "dtype": torch.float64, "bins": None}
    before = measure(subject.module, subject.data, tables=["variance"], estimators=["meanflow"], **common)["variance"]
    measured = probe_alternatives(measurement, before, lambda note: None)
    compared = measure(
        subject.module, subject.data, tables=["compare"], estimators=ALTERNATIVES, batch_sizes=[64], **common
    )["compare"]
    rows = compared.query("quantity == 'mse_ratio' and layer == 'all'").set_index("estimator")["value"]
    own = {e.keys["estimator"]: float(e.estimate.value) for e in measured if e.quantity == "mse_ratio"}
    assert own == pytest.approx(rows.to_dict())
    after = measure(
        subject.module, subject.data, tables=["variance"], estimators=["meanflow"], coupling=TRANSPORT, **common
    )["variance"]
    expected = variance_of(after) / variance_of(before)
    transport = next(e for e in measured if e.keys.get("target") == TRANSPORT)
    assert float(transport.estimate.value) == pytest.approx(expected)
    assert transport.estimate.low < expected < transport.estimate.high


def variance_of(frame: pd.DataFrame) -> float:
    return float(frame.query("quantity == 'variance' and layer == 'all'")["value"].iloc[0])
