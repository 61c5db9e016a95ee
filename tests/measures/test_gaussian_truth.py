"""Gaussian data under their own exact average velocity, in closed form: docs/theory.md#gaussian-truth."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import Shifted, row, rows
from torch import nn

from mfdiag import measure
from mfdiag.models.networks.gaussian import GaussianAverageVelocity

DIM, MEAN = 3, 0.7
SHIFT = torch.tensor([0.3, -0.2, 0.6], dtype=torch.float64)  # the biased proxy's b
BETAS, GAMMAS, BATCHES = (0.0, 0.4, 1.0, 1.7), (0.0, 1.0, -0.5), (1, 100)
POINTS = [(0.5, 0.0, 0.5), (0.5, 0.2, 0.9), (0.5, 0.0, 1.0), (2.0, 0.1, 0.6), (2.0, 0.0, 1.0), (1.3, 0.3, 0.8)]


def model_of(std: float) -> nn.Module:
    model = GaussianAverageVelocity(0.0, 1.0, (DIM,)).double()
    nn.init.constant_(model.mean, MEAN)
    nn.init.constant_(model.std, std)
    return model


def tables_of(std: float, biased: bool, times: str, samples: int, bins: tuple[int, int] | None = None):
    model = model_of(std)
    return measure(
        model,
        f"gaussian:{DIM},{MEAN},{std}",
        tables=("sweep", "coefficient"),
        times=times,
        proxy="teacher" if biased else "exact",
        proxy_model=Shifted(model, SHIFT) if biased else None,
        beta=BETAS,
        gamma=GAMMAS,
        batch_sizes=BATCHES,
        samples=samples,
        bins=bins,
        by_layer=False,
        dtype=torch.float64,
    )


class Truth:
    """Closed forms at one (r, t), or arrays of them; b2 = |b|^2."""

    def __init__(self, std: float, r: np.ndarray | float, t: np.ndarray | float, b2: float) -> None:
        r, t = np.asarray(r), np.asarray(t)
        s_r2, s_t2 = ((1 - x) ** 2 * std**2 + x**2 for x in (r, t))
        self.rho, self.sigma2d, self.b2 = np.sqrt(s_r2 / s_t2), DIM * std**2 / s_t2, b2

    def noise(self, beta: float, gamma: float) -> np.ndarray:
        return ((1 - beta) * (1 - self.rho) - (1 - gamma)) ** 2 * self.sigma2d

    def bias2(self, beta: float, gamma: float) -> np.ndarray:
        return (beta * (1 - self.rho) - gamma) ** 2 * self.b2

    def optimum(self, mean: Callable[[np.ndarray], np.ndarray] = np.asarray) -> float:
        """-rho/(1-rho) sigma^2/(sigma^2 + b^2), with means of numerator and denominator over a cell."""
        a = 1 - self.rho
        return float(mean(-self.rho * a * self.sigma2d) / mean(a**2 * (self.sigma2d + self.b2)))


def assert_within(found: pd.Series, truth: float, errors: float = 4.0) -> None:
    assert abs(found["value"] - truth) <= errors * found["std_error"] + 1e-12, (found.to_dict(), truth)


@pytest.mark.parametrize("biased", [False, True], ids=["exact", "biased"])
@pytest.mark.parametrize(("std", "r", "t"), POINTS)
def test_sweep_in_output_space(std: float, r: float, t: float, biased: bool) -> None:
    sweep = tables_of(std, biased, f"point:{r},{t}", 512)["sweep"]
    truth = Truth(std, r, t, float(SHIFT @ SHIFT) if biased else 0.0)
    for beta, gamma in product(BETAS, GAMMAS):
        at = {"space": "output", "beta": beta, "gamma": gamma}
        noise, bias2 = float(truth.noise(beta, gamma)), float(truth.bias2(beta, gamma))
        for quantity in ("variance", "conditional_variance"):
            found = row(sweep, quantity=quantity, **at)
            assert_within(found, noise)
            assert found["std_error"] <= 0.05 * noise + 1e-12, "too noisy to tell"
        found = row(sweep, quantity="bias2", **at)
        assert found["value"] == pytest.approx(bias2, rel=1e-6, abs=1e-20)
        assert found["std_error"] <= 1e-9
        for n in BATCHES:
            assert_within(row(sweep, quantity="mse", batch_size=n, **at), noise / n + bias2)


@pytest.mark.parametrize("biased", [False, True], ids=["exact", "biased"])
@pytest.mark.parametrize(("std", "r", "t"), POINTS)
def test_coefficients(std: float, r: float, t: float, biased: bool) -> None:
    found = tables_of(std, biased, f"point:{r},{t}", 512)["coefficient"]
    truth = Truth(std, r, t, float(SHIFT @ SHIFT) if biased else 0.0)
    best, rho = truth.optimum(), float(truth.rho)
    shrink = float(truth.sigma2d) / (float(truth.sigma2d) + truth.b2)
    isotropic = {"form": "isotropic", "role": "tangent"}
    deterministic = [
        (isotropic | {"quantity": "sigma2d"}, float(truth.sigma2d)),
        (isotropic | {"quantity": "bias2"}, truth.b2),
        (isotropic | {"quantity": "kappa", "kappa_kind": "signed"}, -rho),
        (isotropic | {"quantity": "kappa", "kappa_kind": "magnitude"}, rho),
        (isotropic | {"quantity": "optimum", "kappa_kind": "signed"}, best),
        (isotropic | {"quantity": "optimum", "kappa_kind": "magnitude"}, rho / (1 + rho) * shrink),
        ({"form": "diagonal", "role": "tangent", "quantity": "optimum"}, best),
    ]
    matrix = {"form": "matrix", "role": "tangent", "quantity": "optimum"}
    target = {"form": "matrix", "role": "target", "quantity": "optimum"}
    if biased:
        assert_within(row(found, **matrix), best)
        assert_within(row(found, **target), rho * shrink)  # least of (gamma - rho)^2 sigma^2 + gamma^2 b^2
    else:
        deterministic += [(matrix, best), (target, rho)]
        gradient = {"form": "gradient", "role": "tangent", "batch_size": None}
        deterministic += [(gradient | {"quantity": which}, best) for which in ("optimum", "conditional_optimum")]
    for keys, expected in deterministic:
        assert row(found, **keys)["value"] == pytest.approx(expected, rel=1e-6, abs=1e-20), keys
    optima = rows(found, quantity="optimum", role="tangent")
    for _, one in optima[optima["form"].isin(["isotropic", "diagonal", "matrix"])].iterrows():
        inside = 0 <= one["value"] <= 1
        assert one["status"] == ("ok" if inside else "outside_unit_interval"), one.to_dict()
    assert not 0 <= best <= 1, "the signed forms leave the unit interval on Gaussian data"
    # beta (1 - rho) - gamma is all that counts, so the two together have no unique optimum
    assert set(rows(found, form="plane")["status"]) == {"degenerate_control"}


def test_no_tangent_coefficient_where_the_flow_keeps_its_slope() -> None:
    """std 1 from t = 1 to r = 0: rho = 1 and A = 0."""
    found = tables_of(1.0, True, "point:0,1", 256)["coefficient"]
    for form in ("matrix", "diagonal"):
        assert row(found, form=form, role="tangent", quantity="optimum")["status"] == "degenerate_control"
    gradient = rows(found, form="gradient", role="tangent")
    assert set(gradient["status"]) == {"degenerate_control"} and len(gradient) > 3
    assert row(found, form="isotropic", quantity="optimum", kappa_kind="signed")["status"] != "ok"


def averaging(low_r: float, high_r: float, low_t: float, high_t: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes r, t and weights of the mean over the part r <= t of a box, by Gauss-Legendre in t, then in r."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    nodes, weights = (nodes + 1) / 2, weights / 2
    t = low_t + (high_t - low_t) * nodes
    room = np.minimum(t, high_r) - low_r
    r = low_r + room[:, None] * nodes
    weight = weights[:, None] * weights * room[:, None]
    return r.ravel(), np.repeat(t, len(nodes)), (weight / weight.sum()).ravel()


@pytest.mark.parametrize("biased", [False, True], ids=["exact", "biased"])
@pytest.mark.parametrize("std", [0.5, 2.0])
def test_bins_equal_quadrature(std: float, biased: bool) -> None:
    tables = tables_of(std, biased, "uniform", 4096, bins=(2, 2))
    boxes = tables["sweep"][["r_low", "r_high", "t_low", "t_high"]].drop_duplicates()
    assert len(boxes) == 6  # three cells, two columns, everything
    for _, box in boxes.iterrows():
        bounds = {name: None if np.isnan(edge) else edge for name, edge in box.items()}
        r_low, r_high, t_low, t_high = (
            default if edge is None else edge for edge, default in zip(bounds.values(), (0, 1, 0, 1), strict=True)
        )
        r, t, weight = averaging(r_low, r_high, t_low, t_high)
        truth = Truth(std, r, t, float(SHIFT @ SHIFT) if biased else 0.0)

        def mean(values: np.ndarray, weight: np.ndarray = weight) -> np.ndarray:
            return weight @ np.broadcast_to(values, weight.shape)

        for beta, gamma in product(BETAS, GAMMAS):
            at = {"space": "output", "beta": beta, "gamma": gamma, **bounds}
            for quantity, values in (
                ("conditional_variance", truth.noise(beta, gamma)),
                ("bias2", truth.bias2(beta, gamma)),
            ):
                assert_within(row(tables["sweep"], quantity=quantity, **at), float(mean(values)))
        coefficient = rows(tables["coefficient"], **bounds)
        for form in ("matrix", "diagonal"):
            assert_within(row(coefficient, form=form, role="tangent", quantity="optimum"), truth.optimum(mean))
        for quantity, kind, values in (
            ("kappa", "signed", -truth.rho),
            ("sigma2d", None, truth.sigma2d),
            ("bias2", None, np.asarray(truth.b2)),
        ):
            found = row(coefficient, form="isotropic", quantity=quantity, kappa_kind=kind)
            assert_within(found, float(mean(values)))
        magnitude = row(coefficient, form="isotropic", quantity="kappa", kappa_kind="magnitude")
        assert_within(magnitude, float(np.sqrt(mean(truth.rho**2))))


def plane_optimum(std: float, b2: float, n: int) -> np.ndarray:
    """c*_n of the gradient with respect to mean and std over uniform (r, t), by quadrature.

    u = slope (x - (1-t) m) - m, so du/dm = k I with k = -(1-t) slope - 1, and du/dstd = slope' (x - (1-t) m), whose
    factor is N(0, s_t^2 I) and independent of v'. Then e = [(1-beta) a - (1-gamma)] v' + (beta a - gamma) b with
    a = 1 - rho gives E|G|^2 / 4 = E[(k^2 + slope'^2 s_t^2) |e|^2], and E G / 2 = E[k (beta a - gamma)] b.
    """
    r, t, weight = averaging(0, 1, 0, 1)

    def slope(s: float) -> np.ndarray:
        s_r, s_t = (np.sqrt((1 - x) ** 2 * s**2 + x**2) for x in (r, t))
        return (t + r - s**2 * (2 - t - r)) / (s_t * (s_t + s_r))

    truth = Truth(std, r, t, b2)
    a, k = 1 - truth.rho, -(1 - t) * slope(std) - 1
    gain = k**2 + ((slope(std + 1e-5) - slope(std - 1e-5)) / 2e-5) ** 2 * ((1 - t) ** 2 * std**2 + t**2)
    noise, bias = np.array([a - 1, -a, a**0]), np.array([0 * a, a, -(a**0)])  # by 1, beta, gamma
    mean = bias @ (weight * k)
    m = b2 * np.outer(mean, mean)
    s = (noise * weight * gain * truth.sigma2d) @ noise.T + b2 * (bias * weight * gain) @ bias.T - m
    return -np.linalg.solve((s + n * m)[1:, 1:], s[1:, 0])


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_the_optimum_of_the_plane(std: float) -> None:
    """M has rank one here, so that a large n shows what its estimate leaves in the other direction."""
    sweep = tables_of(std, True, "uniform", 8192)["sweep"]
    for n in (1, 10, 100):
        best = plane_optimum(std, float(SHIFT @ SHIFT), n)
        for quantity, truth in zip(("optimum_beta", "optimum_gamma"), best, strict=True):
            found = row(sweep, quantity=quantity, batch_size=n)
            assert found["status"] in ("ok", "outside_unit_interval")
            assert_within(found, truth)
            assert found["std_error"] <= 0.03 * np.abs(best).max(), "too noisy to tell"
    lost = rows(sweep, quantity="optimum_beta").set_index("batch_size")["status"]
    assert lost[10**6] == "negative_estimate"


def test_without_bias_the_proxy_is_best_in_both_roles() -> None:
    """With the exact proxy e vanishes at (1, 1), whatever n; at a single (r, t) only beta (1 - rho) - gamma counts."""
    sweep = tables_of(0.5, False, "uniform", 512)["sweep"]
    optima = sweep[sweep["quantity"].isin(["optimum_beta", "optimum_gamma"])]
    assert len(optima) > 20 and optima["beta"].isna().all()
    np.testing.assert_allclose(optima["value"], 1, rtol=1e-6)
    one = tables_of(0.5, True, "point:0.1,0.6", 512)["sweep"]
    assert set(one[one["quantity"] == "optimum_beta"]["status"]) == {"degenerate_control"}
