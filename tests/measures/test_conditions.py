"""Networks conditioned on arrays beside the samples: every number is that of plain per-sample gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conditioned import CASES, arrays_of
from helpers import covariance_trace, randomised, row
from torch import Tensor, nn

from mfdiag import InputError, measure
from mfdiag.flow.data.datasets import FiniteData
from mfdiag.flow.draw import Draws
from mfdiag.flow.times import parse_times

N, ROWS = 24, 40


def network(case: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomised(CASES[case].network())


def plain_gradients(model: nn.Module, arrays: dict[str, np.ndarray], beta: float = 0.0) -> dict[str, Tensor]:
    """Gradients [N, P] of MeanFlow's loss by parameter, with the condition of the stored row that x_0 came from."""
    drawn = Draws(FiniteData("plain", arrays["x"]), parse_times("uniform"), 0).batch(np.arange(N))
    model = model.double()
    gradients: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for i in range(N):
        x0, x1, r, t = drawn.x0[i], drawn.x1[i], drawn.r[i : i + 1], drawn.t[i : i + 1]
        (stored,) = np.flatnonzero((arrays["x"] == x0.numpy()).reshape(ROWS, -1).all(1))
        own = {name: torch.as_tensor(a[stored : stored + 1]) for name, a in arrays.items() if name != "x"}

        def u(x: Tensor, t: Tensor, r: Tensor = r, own: dict[str, Tensor] = own) -> Tensor:
            times = (t, r) if type(model).__name__ == "Policy" else (r, t)
            return model(x, *times, **own)

        x_t, v_c = ((1 - t) * x0 + t * x1)[None], (x1 - x0)[None]
        vhat = u(x_t, t, t).detach()
        tangent = v_c + beta * (vhat - v_c)
        value, derivative = torch.autograd.functional.jvp(u, (x_t, t), (tangent, torch.ones_like(t)))
        e = (value + (t - r) * derivative - v_c).detach()
        loss = (u(x_t, t) * 2 * e).sum()
        for name, gradient in zip(gradients, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            gradients[name].append(gradient.flatten())
    return {name: torch.stack(rows) for name, rows in gradients.items()}


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_variance_is_that_of_plain_gradients(case: str, engine: Any) -> None:
    model, arrays = network(case), arrays_of(case, ROWS)
    conditions = {name: values for name, values in arrays.items() if name != "x"}
    table = measure(
        model, arrays["x"], conditions=conditions, tables=["variance"], times="uniform", samples=N, engine=engine,
        dtype=torch.float64, estimators=["meanflow", "self_tangent"], bins=None,
    )["variance"]  # fmt: skip
    for estimator, beta in (("meanflow", 0.0), ("self_tangent", 1.0)):
        expected = plain_gradients(model, arrays, beta)
        whole = row(table, layer="all", quantity="variance", estimator=estimator)["value"]
        assert whole == pytest.approx(covariance_trace(torch.cat(list(expected.values()), 1)), rel=1e-9)
        for layer in {name.rpartition(".")[0] for name in expected}:
            parts = torch.cat([g for name, g in expected.items() if name.rpartition(".")[0] == layer], 1)
            value = row(table, layer=layer, quantity="variance", estimator=estimator)["value"]
            assert value == pytest.approx(covariance_trace(parts), rel=1e-8)


def test_an_array_that_the_network_does_not_take_is_refused() -> None:
    arrays = arrays_of("policy", ROWS)
    with pytest.raises(InputError, match=r"array heights .* Policy does not receive.*conditions=none"):
        measure(network("policy"), arrays["x"], conditions={"obs": arrays["obs"], "heights": np.ones(ROWS)}, samples=8)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.zeros((ROWS - 1, 2, 3)), f"one row of 'obs' for each of {ROWS}"),
        (np.zeros((2, 3)), f"one row of 'obs' for each of {ROWS}"),
        (np.float64(1.0), "single number"),
        (np.array([[1.0], [1.0, 2.0]], dtype=object), "rows of different lengths"),
        (np.array(["left"] * ROWS), "holds text"),
        (np.full((ROWS, 2, 3), np.nan), "NaN"),
    ],
)
def test_conditions_that_cannot_be_passed_are_refused(values: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        measure(network("policy"), arrays_of("policy", ROWS)["x"], conditions={"obs": values}, samples=8)


def test_a_missing_condition_is_refused() -> None:
    with pytest.raises(InputError, match=r"also needs obs.*add arrays of this name"):
        measure(network("policy"), arrays_of("policy", ROWS)["x"], samples=8)
