"""The table `coefficient`: batch-aware optima, held-out variance, degenerate controls."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import Unknown, loss_gradient, randomised, row, rows, samples_of
from torch import nn

from mfdiag import load_data, measure
from mfdiag.flow.data.datasets import Data
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times
from mfdiag.models.networks.mlp import MLP

KNOWN = load_data("mixture:2,3")
BATCHES = (1, 64, 10**6)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomised(MLP(2, hidden=6, depth=2)).double()


def table_of(data: Data, samples: int, times: str = "uniform", **options: object) -> pd.DataFrame:
    defaults = {"proxy_model": network(1), "by_layer": False, "batch_sizes": BATCHES, "dtype": torch.float64}
    return measure(
        network(),
        data,
        tables=("coefficient",),
        times=times,
        proxy="teacher",
        samples=samples,
        **(defaults | options),  # type: ignore[arg-type]
    )["coefficient"]


@pytest.mark.parametrize("role", ["tangent", "target"])
@pytest.mark.parametrize("data", [KNOWN, Unknown(KNOWN)], ids=["known", "unknown"])
def test_optima_halve_at_the_critical_batch(data: Data, role: str) -> None:
    found = rows(table_of(data, 512), form="gradient", role=role)
    critical = row(found, quantity="critical_batch")["value"]
    best = row(found, quantity="optimum", batch_size=None)["value"]
    for n in BATCHES:
        one = row(found, quantity="optimum", batch_size=n)["value"]
        assert one == pytest.approx(best / (1 + n / critical), rel=1e-8)


@pytest.mark.parametrize(("role", "at"), [("tangent", (1.0, 0.0)), ("target", (0.0, 1.0))])
def test_gradient_form_and_held_out_variance_equal_the_loop(role: str, at: tuple[float, float]) -> None:
    """Unknown posterior: two samples to each of 64 blocks, fitted on every second block, tried on the others."""
    n = 128
    found = rows(table_of(Unknown(KNOWN), n), form="gradient", role=role)
    samples = samples_of(Draws(KNOWN, parse_times("uniform"), 0), n, network(1))
    model = network()
    g_0, g_1 = (torch.stack([loss_gradient(model, s, *c) for s in samples]).numpy() for c in ((0.0, 0.0), at))
    control = g_1 - g_0

    def fitted(chosen: np.ndarray) -> float:
        one, other = (x[chosen] - x[chosen].mean(0) for x in (g_0, control))
        return float(-(one * other).sum() / (other**2).sum())

    everything = np.arange(n)
    best = row(found, quantity="optimum", batch_size=None)
    assert best["value"] == pytest.approx(fitted(everything), rel=1e-9)
    without = [fitted(np.delete(everything, [2 * b, 2 * b + 1])) for b in range(64)]
    error = np.sqrt(63 / 64 * ((without - np.mean(without)) ** 2).sum())
    assert best["std_error"] == pytest.approx(error, rel=1e-6)
    even, odd = everything[everything // 2 % 2 == 0], everything[everything // 2 % 2 == 1]
    c = fitted(even)
    gain = g_0[odd].var(0).sum() / (g_0 + c * control)[odd].var(0).sum()
    reduction = row(found, quantity="variance_reduction")
    assert reduction["value"] == pytest.approx(gain, rel=1e-9) and reduction["n_samples"] == 64
    second = (control.sum(0) @ control.sum(0) - (control**2).sum()) / (n * (n - 1))
    covariance = control.var(0, ddof=1).sum()
    assert row(found, quantity="critical_batch")["value"] == pytest.approx(covariance / second, rel=1e-8)


def test_every_optimum_is_at_its_minimum_in_the_sweep() -> None:
    """The same samples through `sweep` at each reported optimum and beside it."""
    found = table_of(KNOWN, 512)
    for form, space, quantity, n in (
        ("gradient", "gradient", "variance", None),
        ("gradient", "gradient", "mse", 64),
        ("matrix", "output", "mse", 1),
    ):
        keys = {"batch_size": n if form == "gradient" else None, "quantity": "optimum"}
        best = row(found, form=form, role="tangent", **keys)["value"]
        betas = (best - 0.01, best, best + 0.01)
        sweep = measure(
            network(),
            KNOWN,
            tables=("sweep",),
            times="uniform",
            proxy="teacher",
            proxy_model=network(1),
            beta=betas,
            samples=512,
            batch_sizes=(n or 1,),
            by_layer=False,
            dtype=torch.float64,
        )["sweep"]
        low, middle, high = (row(sweep, space=space, quantity=quantity, beta=beta)["value"] for beta in betas)
        assert middle < min(low, high)


def test_the_optimum_of_the_plane_is_at_its_minimum_in_the_sweep() -> None:
    found = table_of(KNOWN, 512)
    beta, gamma = (row(found, form="plane", role=role)["value"] for role in ("tangent", "target"))
    betas, gammas = ((best - 0.01, best, best + 0.01) for best in (beta, gamma))
    sweep = measure(
        network(),
        KNOWN,
        tables=("sweep",),
        times="uniform",
        proxy="teacher",
        proxy_model=network(1),
        beta=betas,
        gamma=gammas,
        samples=512,
        batch_sizes=(1,),
        by_layer=False,
        dtype=torch.float64,
    )["sweep"]
    mse = rows(sweep, space="output", quantity="mse")
    least = mse.loc[mse["value"].idxmin()]
    assert (least["beta"], least["gamma"]) == (beta, gamma)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_at_equal_times_the_tangent_cannot_be_controlled(dtype: torch.dtype) -> None:
    found = table_of(KNOWN, 256, times="uniform:r_ne_t=0", dtype=dtype)
    tangent = rows(found, role="tangent")
    controlled = tangent[tangent["form"].isin(["gradient", "matrix", "plane", "diagonal"])]
    assert len(controlled) >= 9 and set(controlled["status"]) == {"degenerate_control"}
    signed = row(found, form="isotropic", quantity="optimum", kappa_kind="signed")
    assert signed["status"] in ("degenerate_control", "nonfinite")
    target = rows(found, role="target", form="gradient", quantity="optimum")
    assert not (target["status"] == "degenerate_control").any()


def test_without_a_posterior_only_the_gradient_form_remains() -> None:
    found = table_of(Unknown(KNOWN), 128)
    assert set(found["form"]) == {"gradient"}
    assert set(found["quantity"]) == {"optimum", "critical_batch", "variance_reduction"}


def test_few_samples_are_said() -> None:
    found = table_of(KNOWN, 640, bins=(5, 5))
    few = found["n_samples"] < 64
    assert few.any() and (found[few & (found["role"] == "target")]["status"] == "too_few_samples").all()
    assert not (found[~few]["status"] == "too_few_samples").any()
    unseen = rows(table_of(KNOWN, 256), form="gradient", role="tangent")  # 12 samples do not show the tail
    assert set(unseen["status"]) == {"too_few_samples"}
