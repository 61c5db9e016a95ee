"""Readings are found by measurement: the right one in every pair, none where nothing is wrong."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from diagnosis.foreign_conventions import Foreign, Spoken
from torch import nn

import mfdiag
from mfdiag.diagnosis.conventions import Identification, identify
from mfdiag.flow.data.datasets import FiniteData, GaussianData, load_data
from mfdiag.flow.draw import Draws
from mfdiag.flow.paths import LINEAR
from mfdiag.flow.times import parse_times
from mfdiag.measures.conventions.data_scales import data_scales
from mfdiag.measures.conventions.observations import Observations, observe
from mfdiag.measures.conventions.race import exhaustive, misfit_of, race
from mfdiag.measures.conventions.scores import Scores
from mfdiag.measures.conventions.verdict import LEAST_SKILL, judge
from mfdiag.measures.run.convention_check import check_convention
from mfdiag.measures.run.subject import Subject, SubjectOptions, load_subject
from mfdiag.models.call_adapter import adapt_call
from mfdiag.models.cards.adapter import CardAdapter
from mfdiag.models.cards.card import Card
from mfdiag.models.cards.readings import Reading, declared_reading, readings
from mfdiag.models.checkpoint import bundled
from mfdiag.models.networks.gaussian import GaussianAverageVelocity
from mfdiag.models.networks.mlp import MLP
from mfdiag.models.prediction import as_average_velocity

KEEP = 10


@cache
def bundled_subject() -> Subject:
    """The bundled network on a part of its data, so that the posterior costs little."""
    subject = load_subject(bundled(), SubjectOptions(), say=lambda note: None)
    return replace(subject, data=FiniteData("eight", subject.data.points[:5000]), networks={})


def foreign(spoken: Spoken) -> Subject:
    """The bundled network trained in a convention, and read as (x, r, t)."""
    subject = bundled_subject()
    data = subject.data
    network = Foreign(subject.module, spoken)
    # the declared data are the stored ones, and the network was trained on `factor` times these
    return replace(subject, module=adapt_call(network.eval(), (2,), 0, "eight"), data=data)


def observations(subject: Subject, samples: int = 64, cost: float = 1e9) -> Observations:
    return observe(Draws(subject.data, subject.times, 0, source=subject.source, path=subject.path), samples, cost=cost)


def scores_of(subject: Subject, samples: int = 64, cost: float = 1e9) -> Scores:
    declared = declared_reading(subject.module, subject.path)
    return Scores(declared, observations(subject, samples, cost), {"raw": declared.network})


TRAINED = {
    "x,t,r": Spoken(("t", "r")),
    "x,h,t": Spoken(("h", "t")),
    "x,t,h": Spoken(("t", "h")),
    "D1": Spoken(direction="D1"),
    "x,t,r; D1": Spoken(("t", "r"), "D1"),
    "x,r,t; D1; 1000": Spoken(direction="D1", time_scale=1000.0),
    "x,t,r; D1; 1000": Spoken(("t", "r"), "D1", time_scale=1000.0),
    "minus": Spoken(sign=-1),
    "times / 1000": Spoken(time_scale=0.001),
    "x": Spoken(prediction="x"),
    "eps": Spoken(prediction="eps"),
    "v": Spoken(prediction="v"),
    "denoised": Spoken(prediction="denoised"),
    "x,t,r; denoised": Spoken(("t", "r"), prediction="denoised"),
    "x,t,h; x": Spoken(("t", "h"), prediction="x"),
    "0.18215": Spoken(factor=0.18215),
    "x,t,r; 4": Spoken(("t", "r"), factor=4.0),
}


@pytest.mark.parametrize("name", TRAINED)
def test_the_check_names_the_convention_a_network_was_trained_in(name: str) -> None:
    spoken = TRAINED[name]
    doubt = check_convention(foreign(spoken), 4096)
    assert doubt is not None
    words = spoken.slots
    expected = {
        f"call passes {words[0]} and {words[1]}": spoken.slots != ("r", "t"),
        "convention.direction D1": spoken.direction == "D1",
        "output.sign -1": spoken.sign == -1,
        f"call.time_scale {spoken.time_scale:g}": spoken.time_scale != 1,
        f"output.prediction {spoken.prediction}": spoken.prediction != "u",
        f"data times {spoken.factor:.6g}": spoken.factor != 1,
    }
    options = [doubt.record["reading"], *doubt.record["or"]]  # 0.18215 and 0.18125 are the same to any measurement
    stated = [sorted(option.replace(" instead of r and t", "").split(", ")) for option in options]
    assert sorted(text for text, changed in expected.items() if changed) in stated
    assert len(stated) == 1 or spoken.factor == 0.18215


class ExactDenoiser(nn.Module):
    """E[x_0 | x_0 + sigma x_1] of equally likely Gaussians, with EDM's preconditioning (arXiv 2206.00364)."""

    def __init__(self, means: torch.Tensor, std: float) -> None:
        super().__init__()
        self.means, self.std = nn.Parameter(means), std

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        sigma = sigma[:, None].double()
        variance = sigma**2 + self.std**2
        scaled, level = x.double() / variance.sqrt(), sigma.log() / 4  # c_in x, c_noise
        weights = (-(scaled[:, None] - self.means / variance.sqrt()[:, None]).square().sum(2) / 2).softmax(1)
        mean, sigma = weights @ self.means, (4 * level).exp()
        return ((self.std**2 * x.double() + sigma**2 * mean) / variance).to(x)


def test_a_denoiser_of_noise_levels_is_told_from_a_velocity() -> None:
    """A model of EDM, declared as a flow of one time; its card then fits."""
    angles = torch.arange(8) * torch.pi / 4
    means, std = 2 * torch.stack([angles.cos(), angles.sin()], 1).double(), 0.2
    points = means.repeat(256, 1) + std * torch.randn(2048, 2, generator=torch.Generator().manual_seed(0)).double()
    data = FiniteData("mixture", points.numpy(), None)
    network = ExactDenoiser(means, std)
    flow = {"call": {"arguments": ["x", "t"]}, "output": {"average": False}}
    card = Card.model_validate({"network": {"factory": "unknown.module:network"}, **flow})
    subject = Subject(CardAdapter(network, card), data, parse_times("uniform:0"))
    doubt = check_convention(subject, 4096)
    assert doubt is not None
    assert doubt.record["reading"] == "output.prediction denoised"
    declared = declared_reading(subject.module, subject.path)
    best = identify(subject, declared, {"raw": network}, 256).verdict.best
    assert best is not None
    written = Card.model_validate(declared.card_of(best.reading).model_dump())
    corrected = as_average_velocity(CardAdapter(network, written), written.prediction, LINEAR)
    subject = Subject(corrected, data, parse_times("uniform:0"))
    assert check_convention(subject, 4096) is None


def test_the_bundled_network_raises_no_doubt() -> None:
    assert check_convention(bundled_subject(), 4096) is None


class GaussianFlow(nn.Module):
    """Average velocity of independent Gaussian pixels with the mean and variance of images. It memorizes nothing."""

    def __init__(self, images: np.ndarray) -> None:
        super().__init__()
        flat = torch.as_tensor(images).flatten(1)
        self.mean, self.variance = flat.mean(0), flat.var(0)
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Each pixel moves by the ratio of standard deviations; at r = t, by its derivative."""
        start, end = (time[:, None].double() for time in (torch.minimum(r, t - 1e-5), t))
        std = [((1 - time) ** 2 * self.variance + time**2).sqrt() for time in (start, end)]
        moved = (1 - start) * self.mean + (x.double() - (1 - end) * self.mean) * std[0] / std[1]
        return (self.weight * (x.double() - moved) / (end - start)).to(x)


@cache
def flat_digits() -> FiniteData:
    data = load_data("digits")
    assert isinstance(data, FiniteData)
    return FiniteData("digits", data.points.reshape(len(data.points), -1), None)


def of_digits(module: nn.Module) -> Subject:
    return Subject(adapt_call(module.eval(), (64,)), flat_digits(), parse_times("uniform"))


def identified(module: nn.Module) -> Identification:
    subject = of_digits(module)
    declared = declared_reading(subject.module, subject.path)
    return identify(subject, declared, {"raw": declared.network}, 128)


@pytest.mark.parametrize("name", ["", "x,t,r; D1", "x,t,h; x", "0.18215"])
def test_images_that_the_posterior_memorizes_are_identified_by_their_denoising(name: str) -> None:
    spoken = TRAINED.get(name, Spoken())
    result = identified(Foreign(GaussianFlow(flat_digits().points), spoken))
    verdict = result.verdict
    assert verdict.best is not None and verdict.refuted == bool(name)
    assert result.paired and "compared by how well they denoise" in " ".join(result.sentences())
    said = [verdict.best.reading, *(misfit.reading for misfit in verdict.tied)]
    wanted = {"r": "r", "t": "t", "h": "h"}
    assert any(
        tuple(wanted[word] for word in reading.times) == spoken.slots
        and (reading.direction, reading.prediction, reading.sign) == (spoken.direction, spoken.prediction, 1)
        and abs(reading.factor / spoken.factor - 1) < 0.01
        for reading in said
    )


@pytest.mark.parametrize("name", ["x,t,r; D1", "x,t,h; x", "minus", "denoised"])
def test_the_check_compares_such_images_by_their_denoising_too(name: str) -> None:
    doubt = check_convention(of_digits(Foreign(GaussianFlow(flat_digits().points), TRAINED[name])), 4096)
    assert doubt is not None
    words = {"D1": "direction D1", "x,t,h; x": "prediction x", "minus": "sign -1", "denoised": "prediction denoised"}
    assert words[name if name in words else "D1"] in doubt.record["reading"]


def test_the_check_is_silent_about_such_images_read_as_trained() -> None:
    assert check_convention(of_digits(Foreign(GaussianFlow(flat_digits().points), Spoken())), 4096) is None


def test_an_untrained_network_of_images_fits_no_convention() -> None:
    torch.manual_seed(0)
    result = identified(MLP(64, 32, 2))
    assert not result.paired and result.verdict.best is None and not result.verdict.refuted


@pytest.mark.parametrize("seed", range(3))
def test_untrained_networks_raise_no_doubt_and_fit_no_convention(seed: int) -> None:
    torch.manual_seed(seed)
    subject = replace(bundled_subject(), module=MLP(2, 32, 2).eval())
    assert check_convention(subject, 4096) is None
    scores = scores_of(subject)
    own = misfit_of(scores, scores.declared.reading)
    candidates = readings(scores.declared, data_scales(subject.data, scores.observations.z.numpy())[:6])
    assert judge(own, race(scores, candidates, keep=KEEP, skill=LEAST_SKILL)).best is None


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_network_has_no_defect_but_no_skill(value: float) -> None:
    class Constant(nn.Module):
        num_classes = 0

        def forward(self, x: torch.Tensor, r: torch.Tensor, t: torch.Tensor, y: None = None) -> torch.Tensor:
            return torch.full_like(x, value)

    scores = scores_of(replace(bundled_subject(), module=Constant()))
    misfit = misfit_of(scores, scores.declared.reading)
    assert misfit.interval == pytest.approx(0)
    assert misfit.skill <= 1e-6
    assert check_convention(replace(bundled_subject(), module=Constant()), 4096) is None


@pytest.mark.parametrize("name", ["x,t,r; D1", "x", "0.18215"])
def test_the_race_ranks_as_the_full_product_does(name: str) -> None:
    scores = scores_of(foreign(TRAINED[name]), 48)
    everything = readings(scores.declared, ((1.0, 0.0), (0.18215, 0.0), (5.0, 0.1)))
    assert len(everything) == (4 * 2 * 2 * 3 * 4 + 2 * 2) * 3  # a denoiser has order and sign alone
    slow = exhaustive(scores, everything, keep=KEEP, skill=LEAST_SKILL)
    evaluated = scores.budget.evaluated
    fresh = scores_of(foreign(TRAINED[name]), 48)
    fast = race(fresh, everything, keep=KEEP, skill=LEAST_SKILL)
    assert [m.total for m in fast] == pytest.approx([m.total for m in slow], rel=1e-4)
    assert fast[0].reading == slow[0].reading
    clear = slow[-1].total - 1e-4  # equals to rounding may leave either one out
    assert {m.reading for m in fast if m.total < clear} == {m.reading for m in slow if m.total < clear}
    assert fresh.budget.evaluated < evaluated / 4


def test_the_race_is_exact_for_random_misfits() -> None:
    rng = np.random.default_rng(0)
    subject = bundled_subject()
    everything = readings(declared_reading(subject.module), ((1.0, 0.0), (2.0, 0.0)))
    for _ in range(20):
        scores = _RandomScores(subject, rng, len(everything))
        fast = race(scores, everything, keep=KEEP, skill=0.2)
        slow = exhaustive(scores, everything, keep=KEEP, skill=0.2)
        assert [m.reading for m in fast] == [m.reading for m in slow]


class _RandomScores(Scores):
    """Scores without a network: random numbers that differ between readings."""

    def __init__(self, subject: Subject, rng: np.random.Generator, count: int) -> None:
        super().__init__(declared_reading(subject.module), observations(subject, 30), {})
        self.table = rng.random((count, 2, 30)) * rng.random((count, 2, 1)) ** 2
        self.numbers: dict[Reading, int] = {}

    def row(self, reading: Reading) -> np.ndarray:
        return self.table[self.numbers.setdefault(reading, len(self.numbers))]

    def losses(self, reading: Reading, rows: slice = slice(None)) -> np.ndarray:
        places = np.ones((2 * len(self._predictions), len(range(*rows.indices(30)))))
        times = reading.times if "h" in reading.times else ("r", "t")  # their order does not show at r = t
        predictions = (reading.prediction,) if reading.denoised else self._predictions
        for one in (replace(reading, times=times, prediction=p, sign=s) for p in predictions for s in (1, -1)):
            places[self.place(one)] = self.row(one)[0, rows]
        return places

    def interval(self, reading: Reading, rows: slice = slice(None)) -> np.ndarray:
        return self.row(reading)[1, rows]

    def silents(self, reading: Reading) -> np.ndarray:
        return np.full(2 * len(self._predictions), 0.3)


def test_scores_evaluate_as_the_card_of_the_reading_does() -> None:
    scores = scores_of(foreign(TRAINED["x,t,r; D1; 1000"]), 40)
    declared, path = scores.declared, scores.observations.path
    for reading in readings(declared, ((1.0, 0.0), (0.5, 0.2))):
        points = scores.observations.points(reading.factor, reading.shift)
        card = declared.card_of(reading)
        network = as_average_velocity(CardAdapter(declared.network, card), card.prediction, path)
        u = network(points.x.float(), points.t.float(), points.t.float(), None).double()
        if not u.isfinite().all():
            continue
        q = points.weight * (u - points.v).flatten(1).square().sum(1)
        assert scores.velocity(reading) == pytest.approx((q / (1 + q)).numpy(), rel=1e-3, abs=1e-5)


def test_scales_are_comparable_without_a_posterior() -> None:
    # exact networks of Gaussian data, whose E tr Sigma differs between scales
    true = 2.0
    subject = replace(
        bundled_subject(), module=GaussianAverageVelocity(0.0, true, (8,)), data=GaussianData(8, 0.0, 1.0), source=None
    )
    scores = scores_of(subject, 512, cost=0)
    assert not scores.observations.exact
    own = scores.declared.reading
    scales = (0.05, 0.25, 0.5, 1.0, 1.8, 2.0, 2.2, 4.0, 20.0)
    misfits = {k: misfit_of(scores, replace(own, factor=k)).total for k in scales}
    assert min(misfits, key=misfits.__getitem__) == true

    def plain(k: float) -> float:  # the loss itself, at the same times for all scales
        x0, x1 = k * scores.observations.z, scores.observations.x1
        t = torch.linspace(0.02, 0.98, len(x0), dtype=torch.float64)
        x_t = (1 - t)[:, None] * x0 + t[:, None] * x1
        return float((subject.module(x_t, t, t) - (x1 - x0)).square().mean())

    assert min(scales, key=plain) != true  # the trap


def test_velocity_error_and_defect_are_those_of_the_theory() -> None:
    network = GaussianAverageVelocity(0.0, 1.0, (3,))
    subject = replace(bundled_subject(), module=network, data=GaussianData(3, 0.0, 1.0), source=None)
    scores = scores_of(subject, 64)
    errors = scores.errors(scores.declared.reading)
    assert errors is not None
    assert errors.velocity.sum() / errors.speed.sum() < 1e-9
    assert errors.defect.sum() / errors.step.sum() < 1e-9
    swapped = scores.errors(replace(scores.declared.reading, times=("t", "r")))
    assert swapped is not None
    assert swapped.defect.sum() / swapped.step.sum() > 0.01


def test_equal_pairs_leave_the_order_of_times_open() -> None:
    subject = replace(foreign(Spoken(("t", "r"))), times=parse_times("uniform:0"))
    assert observations(subject).pairs is None
    assert check_convention(subject, 4096) is None


class UndefinedAtEqualTimes(nn.Module):
    """The exact average velocity of N(0, 4 I) as a quotient, which is 0 / 0 at r = t."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        spread = [((1 - time) ** 2 * self.scale**2 + time**2).sqrt()[:, None] for time in (r, t)]
        return x * (1 - spread[0] / spread[1]) / (t - r)[:, None]


def test_a_network_without_a_value_at_equal_times_raises_no_doubt() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        options = {"times": "point:0.2,0.9", "samples": 256, "by_layer": False, "dtype": torch.float64}
        mfdiag.measure(UndefinedAtEqualTimes(), "gaussian:2,0,2", tables=["sweep"], proxy="exact", **options)
