"""Beta that varies over (r, t) and training, and other proxies: against plain loops, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from specs import spec_of
from torch.func import functional_call

from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import load_data
from mfdiag.flow.weighting import Weighting
from mfdiag.training.beta_rule import stack_rules
from mfdiag.training.draws import BatchFeed, SamplingKey
from mfdiag.training.ensemble import Ensemble, initial_state
from mfdiag.training.grid import GridCell
from mfdiag.training.loss import LossCoefficients, TrainBatch, training_loss
from mfdiag.training.saved import changed_fields
from mfdiag.training.spec import BetaSpec, TrainSpec
from mfdiag.training.trainer import TrainOptions, initial_module, prepare_folder

RULES: list[dict[str, Any]] = [
    {},
    {"end": 0},
    {"gap": [0, 0.3]},
    {"t": [0.7, 1]},
    {"gap": [0.1, 0.9], "t": [0, 0.8], "end": 0.5},
]
CELLS = [[0, 0.5, 1], [1, 0, 2]]


def plain_factor(rule: BetaSpec, r: float, t: float, progress: float) -> float:
    inside = rule.gap[0] <= t - r <= rule.gap[1] and rule.t[0] <= t <= rule.t[1]
    rows = rule.cells or ((1.0,),)
    row = rows[min(int(r * len(rows)), len(rows) - 1)]
    cell = row[min(int(t * len(row)), len(row) - 1)]
    return inside * cell * (1 - progress + progress * rule.end)


@pytest.mark.parametrize("rule", [*RULES, {"cells": CELLS}, {"cells": CELLS, "t": [0.2, 1], "end": 0.25}], ids=str)
def test_factor_is_that_of_a_plain_loop(rule: dict[str, Any]) -> None:
    spec = BetaSpec.model_validate(rule)
    stacked = stack_rules([spec, BetaSpec(cells=spec.cells)], "cpu")
    assert stacked is not None
    r, t = torch.tensor([[0.0, 0.0, 0.2, 0.49, 0.5, 1.0], [0.0, 1.0, 0.45, 0.72, 0.75, 1.0]])
    for progress in (0.0, 0.3, 1.0):
        factors = type(stacked)(*(values[0] for values in stacked)).factor(r, t, torch.tensor(progress))
        plain = [plain_factor(spec, a, b, progress) for a, b in zip(r.tolist(), t.tolist(), strict=True)]
        torch.testing.assert_close(factors, torch.tensor(plain))


def test_constant_beta_has_no_rule() -> None:
    assert stack_rules([None, None], "cpu") is None


def trained(specs: list[TrainSpec], steps: int) -> list[dict[str, torch.Tensor]]:
    feed = BatchFeed(specs, [load_data(spec.data) for spec in specs], "cpu")
    modules = [initial_module(spec) for spec in specs]
    states = [initial_state(module) for module in modules]
    models = Ensemble(modules[0], specs, states, feed, device="cpu", compiled=False, say=pytest.fail)
    models.advance(steps)
    feed.close()
    return [state.params for state in models.states()]


def test_rules_train_together_as_alone() -> None:
    specs = [spec_of(loss={"beta": 0.8, "beta_by": rule}) for rule in RULES] + [spec_of(loss={"beta": 0.8})]
    for params, spec in zip(trained(specs, 5), specs, strict=True):
        alone = trained([spec], 5)[0]
        assert all(torch.allclose(values, alone[name], rtol=1e-4, atol=1e-6) for name, values in params.items())
    together, constant = trained([specs[0], specs[-1]], 5)
    assert all(torch.equal(values, constant[name]) for name, values in together.items())


def test_beta_of_each_sample_and_given_proxy() -> None:
    """A loss with a coefficient for each sample is the mean of losses with one sample each."""
    module = initial_module(spec_of())
    params = initial_state(module).params
    x, v_c, vhat = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(0))
    r, t = torch.rand(6, 2).sort(dim=1).values.T
    beta = torch.linspace(0, 1, 6)
    batch = TrainBatch(x, v_c, r, t, vhat=vhat)
    weighting = Weighting()
    whole = training_loss(module, params, params, batch, LossCoefficients(beta=beta), weighting)
    parts = []
    for i in range(6):
        one = TrainBatch(*(None if v is None else v[i : i + 1] for v in batch))
        parts.append(training_loss(module, params, params, one, LossCoefficients(beta=float(beta[i])), weighting))
    torch.testing.assert_close(whole, torch.stack(parts).mean())
    own = batch._replace(vhat=functional_call(module, params, (x, t, t)).detach())
    by_network = training_loss(module, params, params, own._replace(vhat=None), LossCoefficients(beta=1.0), weighting)
    torch.testing.assert_close(
        by_network, training_loss(module, {**params}, {}, own, LossCoefficients(beta=1.0), weighting)
    )


@pytest.mark.parametrize("proxy", ["ema", "self", "exact"])
def test_proxies_in_training(proxy: str) -> None:
    """With decay 0 the averaged weights are the network's own; the exact velocity is that of the data."""
    spec = spec_of(loss={"beta": 1, "proxy": proxy}, ema_decay=0)
    feed = BatchFeed([spec], [load_data(spec.data)], "cpu")
    vhat, x, t = (getattr(feed.batch(0), name) for name in ("vhat", "x_t", "t"))
    feed.close()
    if proxy != "exact":
        assert vhat is None
        other = trained([spec_of(loss={"beta": 1, "proxy": "ema"}, ema_decay=0)], 4)[0]
        assert all(torch.equal(values, other[name]) for name, values in trained([spec], 4)[0].items())
        return
    s2 = ((1 - t) ** 2 * 0.09 + t**2)[..., None]  # N(0.5, 0.3^2), docs/theory.md#gaussian-truth
    y = x - (1 - t)[..., None] * 0.5
    torch.testing.assert_close(vhat, (t[..., None] - (1 - t)[..., None] * 0.09) / s2 * y - 0.5, rtol=1e-4, atol=1e-5)


def test_what_is_refused(tmp_path: Path) -> None:
    for loss in ({"beta_by": {"gap": [0.5, 0.2]}}, {"beta_by": {"cells": [[1], [1, 2]]}}, {"beta_by": {"t": [0, 2]}}):
        with pytest.raises(ValidationError):
            spec_of(loss=loss)
    for loss in ({"estimator": "soflow", "proxy": "self"}, {"estimator": "soflow", "beta_by": {}}):
        with pytest.raises(ValidationError, match="they belong to the plane"):
            spec_of(loss=loss)
    reflow = spec_of(loss={"proxy": "exact"}, coupling="minibatch_ot:4")
    with pytest.raises(InputError, match="exact posterior"):
        prepare_folder([GridCell("", reflow)], tmp_path, TrainOptions(), say=pytest.fail)
    assert SamplingKey.of(spec_of(loss={"proxy": "exact"})) != SamplingKey.of(spec_of())


def test_a_scheduled_beta_does_not_continue_with_more_steps() -> None:
    def changes(loss: dict[str, Any]) -> list[str]:
        before = spec_of(loss=loss).model_dump(mode="json", by_alias=True)
        return changed_fields(before, spec_of(loss=loss, steps=24), can_resume=True)

    assert changes({"beta": 1, "beta_by": {"gap": [0, 0.5]}}) == []
    assert changes({"beta": 1, "beta_by": {"end": 0}}) == ["steps: 12 -> 24"]
