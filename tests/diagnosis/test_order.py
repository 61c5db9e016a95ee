"""The order of the times in a network that a plain loop trained for a short while: the misfit does not show it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import jvp

from mfdiag.diagnosis.conventions import identify
from mfdiag.flow.data.datasets import FiniteData, load_data
from mfdiag.flow.times import parse_times
from mfdiag.measures.conventions.order import Order, swap_of
from mfdiag.measures.conventions.race import misfit_of
from mfdiag.measures.conventions.verdict import LEAST_SKILL
from mfdiag.measures.run.convention_check import check_convention, declared_scores, long_intervals
from mfdiag.measures.run.subject import Subject
from mfdiag.models.call_adapter import adapt_call
from mfdiag.models.cards.readings import Reading, declared_reading

STEPS, BATCH = 1200, 128


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        times = [f(3 * time) for time in (first, second) for f in (torch.sin, torch.cos)]
        return self.layers(torch.cat([x, torch.stack([first, second, *times], 1)], 1))


class Exchanged(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return self.network(x, second, first)


def points() -> np.ndarray:
    return np.asarray(load_data("two_moons").points[:2000])  # type: ignore[attr-defined]


@cache
def trained(share: float) -> nn.Module:
    """MeanFlow in the order (x, t, r), with this share of pairs r < t: at 0 it is flow matching."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, data = Network(), torch.as_tensor(points()).float()
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(STEPS):
            x0 = data[torch.randint(len(data), (BATCH,))]
            x1 = torch.randn_like(x0)
            r, t = torch.sigmoid(torch.randn(2, BATCH) - 0.4).sort(0).values
            r = torch.where(torch.rand(BATCH) < share, r, t)
            v_c = x1 - x0
            x_t = x0 + t[:, None] * v_c
            u, derivative = jvp(network, (x_t, t, r), (v_c, torch.ones_like(t), torch.zeros_like(r)))
            target = (v_c - (t - r)[:, None] * derivative).detach()
            optimizer.zero_grad()
            (u - target).square().sum(1).mean().backward()
            optimizer.step()
    return network.eval()


def subject_of(network: nn.Module) -> Subject:
    """Read in the order (x, r, t)."""
    times = parse_times("logit_normal:-0.4,1,0.5")
    return Subject(adapt_call(network, (2,), 0, "moons"), FiniteData("moons", points()), times)


def identified(subject: Subject) -> str:
    declared = declared_reading(subject.module, subject.path)
    return identify(subject, declared, {"raw": declared.network}, 128).sentences()[0]


def test_an_exchange_of_times_is_refuted_by_the_intervals() -> None:
    subject = subject_of(trained(0.5))
    scores, plausible = declared_scores(subject, 4096)
    own, swap = plausible[0], swap_of(plausible[0])
    assert swap in plausible
    misfits = misfit_of(scores, own), misfit_of(scores, swap)
    assert misfits[0].velocity == pytest.approx(misfits[1].velocity)
    assert misfits[1].total > 0.6 * misfits[0].total  # the velocity part hides the swap
    doubt = check_convention(subject, 4096)
    assert doubt is not None
    assert doubt.record["reading"] == "call passes t and r instead of r and t"
    assert "the defect of its longest intervals" in doubt.text
    assert "is refuted: with call passes t and r instead of r and t, the defect" in identified(subject)


def test_the_order_as_trained_raises_no_doubt() -> None:
    subject = subject_of(Exchanged(trained(0.5)))
    assert check_convention(subject, 4096) is None
    assert "is refuted" not in identified(subject)


@pytest.mark.parametrize("exchanged", [False, True])
def test_flow_matching_has_no_order(exchanged: bool) -> None:
    network = trained(0.0)
    subject = subject_of(Exchanged(network) if exchanged else network)
    scores, plausible = declared_scores(subject, 4096)
    assert misfit_of(scores, plausible[0]).skill > LEAST_SKILL  # it is not silent for want of training
    assert check_convention(subject, 4096) is None


def test_the_longest_intervals_are_drawn_samples() -> None:
    subject = subject_of(trained(0.5))
    draws = subject.draws(0)
    scores, _ = declared_scores(subject, 4096)
    few = long_intervals(scores, subject, 10, 0).observations
    assert few.pairs is not None
    everything = draws.batch(np.arange(800))
    apart = torch.nonzero(everything.r < everything.t)[:, 0][: 4 * 10]
    lengths = (everything.t - everything.r)[apart]
    order = lengths.argsort(descending=True)[:10]
    assert torch.equal(few.pairs[2] - few.pairs[0], lengths[order])
    assert torch.equal(few.z, everything.x0[apart[order]])
    assert torch.equal(few.x1, everything.x1[apart[order]])


def test_bounds_of_an_order_rise_as_the_skill_falls() -> None:
    rng = np.random.default_rng(0)
    swapped = 0.001 * rng.random(256)
    order = Order(6 * swapped, swapped, 20 * swapped)  # ratio 1/6, effect 1/4
    assert (order.ratio, order.effect) == pytest.approx((1 / 6, 1 / 4))
    assert order.refuted(0.7)
    assert not order.refuted(0.3)
    assert not order.refuted(0.05)
    assert replace(order, instantaneous=4 * swapped).refuted(0.3)
    assert not replace(order, declared=3 * swapped).refuted(0.7)
    assert not replace(order, declared=rng.permutation(swapped)).refuted(0.7)


def test_t_minus_r_has_no_swap() -> None:
    assert swap_of(Reading(("h", "t"), "D0", 1, 1.0, "u")) is None
    assert swap_of(Reading(("r", "t"), "D0", 1, 1.0, "u")) == Reading(("t", "r"), "D0", 1, 1.0, "u")
