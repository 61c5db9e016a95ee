"""The check of the convention keeps its budget on every network, and still names what was trained."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from time import thread_time

import numpy as np
import pytest
import torch
from diagnosis.foreign_conventions import Foreign, Spoken
from diagnosis.test_conventions import TRAINED, bundled_subject, foreign
from torch import nn

from mfdiag.flow.draw import Draws
from mfdiag.measures.conventions.budget import Budget
from mfdiag.measures.conventions.cost import FEW, affordable_draws
from mfdiag.measures.conventions.race import exhaustive, race
from mfdiag.measures.run import convention_check
from mfdiag.measures.run.convention_check import check_convention, declared_scores
from mfdiag.measures.run.subject import Subject
from mfdiag.models.call_adapter import adapt_call
from mfdiag.models.cards.readings import FORMS, TIME_SCALES, declared_reading, readings
from mfdiag.models.networks.registry import PREDICTIONS


def dear(monkeypatch: pytest.MonkeyPatch, evaluations: float) -> Budget:
    """Let the check take so many evaluations of a network, whatever it is."""
    budget = Budget(evaluations, 0.0, 1.0)
    monkeypatch.setattr(convention_check, "budget_of", lambda few, samples, *, stop: budget)
    return budget


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [*product(["D1", "minus", "x", "eps"], [80, 300]), ("x,t,h", 300), ("x,t,r; D1", 300), ("x,t,h; x", 300)],
)
def test_a_dear_network_is_named_with_few_evaluations(
    name: str, evaluations: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = dear(monkeypatch, evaluations)
    doubt = check_convention(foreign(TRAINED[name]), 256)
    assert budget.evaluated <= evaluations
    assert doubt is not None


def test_a_dear_network_as_trained_raises_no_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    for evaluations in (60, 120, 500):
        budget = dear(monkeypatch, evaluations)
        assert check_convention(bundled_subject(), 256) is None
        assert budget.evaluated <= evaluations


class Slow(nn.Module):
    """A network that takes the processor's time outside its layers, for each call or for each sample."""

    def __init__(self, network: nn.Module, call: float, sample: float) -> None:
        super().__init__()
        self.network, self.seconds = network, (call, sample)

    def forward(self, x: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        end = thread_time() + self.seconds[0] + len(x) * self.seconds[1]
        while thread_time() < end:
            pass
        return self.network(x, r, t)


@pytest.mark.parametrize(("call", "sample"), [(0.03, 0.0), (0.0, 0.008)])
def test_a_slow_network_keeps_the_budget(call: float, sample: float) -> None:
    network = Slow(Foreign(bundled_subject().module, Spoken(direction="D1")).eval(), call, sample)
    subject = replace(foreign(Spoken()), module=adapt_call(network, (2,), 0, "eight"))
    check_convention(foreign(Spoken()), 256)  # loads libraries
    start = thread_time()
    doubt = check_convention(subject, 256)
    assert thread_time() - start < 1.2
    assert doubt is not None
    assert "convention.direction D1" in doubt.record["reading"]


def test_readings_are_the_full_product_with_fewest_changes_first() -> None:
    declared = declared_reading(bundled_subject().module)
    scales = ((1.0, 0.0), (2.0, -1.0), (0.5, 0.0), (3.0, 0.0), (4.0, 0.0), (5.0, 0.0))
    made = readings(declared, scales)
    plain = [reading for reading in made if not reading.denoised]
    own = declared.reading
    expected = {
        replace(own, times=t, direction=d, sign=s, time_scale=k, prediction=p, factor=a, shift=b)
        for t, d, s, k, p, (a, b) in product(FORMS, ("D0", "D1"), (1, -1), TIME_SCALES, PREDICTIONS, scales)
    }
    assert len(plain) == len(expected)
    assert set(plain) == expected
    assert made[0] == own
    changes = [len(reading.changes(own)) + (reading.factor >= 4) for reading in made]  # rare scales count twice
    assert changes == sorted(changes)
    assert readings(declared, scales, most=20) == made[:20]


def test_a_race_within_a_budget_evaluates_no_more_and_finds_the_best() -> None:
    subject = foreign(TRAINED["x,t,r; D1"])
    scores, plausible = declared_scores(subject, 4096)
    best = exhaustive(scores, plausible[:200], keep=1, skill=0.5)[0]
    for evaluations in (400, 700):
        fresh = replace(scores, scales=(), budget=Budget(evaluations, 0.0, 1.0), observations=scores.observations)
        ranking = race(fresh, plausible[:200], keep=1, skill=0.5)
        assert fresh.budget.evaluated <= evaluations
        assert not ranking or ranking[0].reading == best.reading
    assert ranking


@pytest.mark.parametrize("slow", [False, True])
def test_slow_data_are_drawn_less(slow: bool) -> None:
    subject = bundled_subject()

    class Drawn(Draws):
        def batch(self, index: np.ndarray) -> object:  # type: ignore[override]
            end = thread_time() + (0.02 * len(index) if slow else 0)
            while thread_time() < end:
                pass
            return index

    most = affordable_draws(Drawn(subject.data, subject.times, 0), 1000)
    assert most == (pytest.approx(30) if slow else np.inf)  # 3 % of the samples, since 0.15 s last for 7
    assert FEW < 30


def test_a_subject_of_few_samples_is_checked() -> None:
    subject: Subject = foreign(Spoken(direction="D1"))
    assert check_convention(subject, 8) is not None
