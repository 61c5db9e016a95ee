"""Does mfdiag name the convention that a network was trained in, and does it keep silent where nothing is wrong?

    nice -n 10 python benchmarks/conventions.py            # everything, on one core; a killed run resumes
    nice -n 10 python benchmarks/conventions.py healthy    # or one part: healthy, pairs, identify
    python benchmarks/conventions.py cost                  # CPU time of the check

Networks are trained by a plain PyTorch loop, all networks of one shape at once, in conventions that are written out
here by hand. `healthy` checks networks as they were trained, at every stage of training. `pairs` reads trained ones in
each other convention, and checks them; `identify` runs the command of that name on the same pairs. Each writes one JSON
line per network to the folder, and prints what docs/conventions.md says.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from mfdiag.diagnosis.conventions import identify
from mfdiag.flow.data.datasets import FiniteData, load_data
from mfdiag.flow.data.scaling import ScaledPoints, Scaling
from mfdiag.flow.guidance import parse_guidance
from mfdiag.flow.paths import LINEAR
from mfdiag.flow.times import parse_times
from mfdiag.measures.conventions.budget import Budget
from mfdiag.measures.conventions.order import LEARNED, order_of
from mfdiag.measures.conventions.order import RATIO as ORDER_RATIO
from mfdiag.measures.conventions.race import misfit_of, race
from mfdiag.measures.conventions.verdict import LEAST_SKILL
from mfdiag.measures.run import convention_check
from mfdiag.measures.run.convention_check import check_convention, declared_scores, long_intervals
from mfdiag.measures.run.subject import Subject, SubjectOptions, load_subject
from mfdiag.models.cards.adapter import CardAdapter
from mfdiag.models.cards.card import Card
from mfdiag.models.cards.readings import declared_reading
from mfdiag.models.checkpoint import bundled
from mfdiag.models.networks.dit import DiT
from mfdiag.models.prediction import as_average_velocity

Row = dict[str, Any]
SETS = ("two_moons", "checkerboard", "eight_gaussians")
STAGES = (0, 20, 50, 100, 200, 400, 800, 1600)
OBJECTIVES = ("meanflow", "beta:0.5", "beta:1", "p1", "flow_matching", "no_intervals")
_POINTS = 4000  # of a data set
_SAMPLES = 4096  # of the measurement that is checked
_IDENTIFIED = 512  # samples of `identify`
_WIDTH, _RATE, _BATCH, _DECAY = 64, 3e-3, 64, 0.99


@dataclass(frozen=True)
class Convention:
    """How a network is called: words of its time slots, direction, factor on times, prediction, scale of the data.

    `sources` are the projects whose cards have it.
    """

    name: str
    slots: tuple[str, ...]
    direction: str = "D0"
    time_scale: float = 1.0
    prediction: str = "u"
    factor: float = 1.0
    shift: float = 0.0
    sources: str = ""

    def card(self, classes: int = 0) -> Card:
        """The same as a model card."""
        return Card.model_validate(
            {
                "network": {"factory": "unknown.module:network"},
                "call": {"arguments": ["x", *self.slots, "y" if classes else "none"], "time_scale": self.time_scale},
                "convention": {"direction": self.direction},
                "output": {"prediction": self.prediction, "average": len(self.slots) == 2},
                "conditioning": {"kind": "index", "classes": classes} if classes else {},
            }
        )


CONVENTIONS = (
    Convention("x,r,t", ("r", "t"), sources="zhuyu-meanflow-cifar10, mf-rae, meanaudio"),
    Convention("x,t,r", ("t", "r"), sources="haidog-meanflow, fastgen, re-meanflow, dm1, mp1"),
    Convention("x,t,h", ("t", "h"), sources="py-meanflow, imeanflow, rectified-flow"),
    Convention("x,t,h; x", ("t", "h"), prediction="x", sources="pmf"),
    Convention("x,t,r; D1", ("t", "r"), "D1", sources="splitmeanflow, modular-meanflow, facm"),
    Convention("x,r,t; D1; 1000", ("r", "t"), "D1", 1000.0, sources="none; times of diffusion models"),
    Convention("x,r,t; 0.18215", ("r", "t"), factor=0.18215, sources="meanflow-jax, zhuyu-meanflow (0.18125)"),
    Convention("x,t,r; 0.18215", ("t", "r"), factor=0.18215, sources="dmf, soflow"),
    Convention("x,r,t; 0.3099", ("r", "t"), factor=0.3099, sources="swaystar-meanflow"),
    Convention("x,t,h; [-1,1]", ("t", "h"), factor=2.0, shift=-1.0, sources="mean 0.5, std 0.5 in ten cards"),
    Convention("x,t; D1", ("t",), "D1", sources="torchcfm, flow-matching, sit, lightningdit"),
    Convention("x,t", ("t",), sources="flow matching in MeanFlow's direction"),
    Convention("x,t; 1000; eps", ("t",), time_scale=1000.0, prediction="eps", sources="dit, on the linear path"),
)


class Net(nn.Module):
    """A multilayer perceptron on the sample, two embedded times (one of them twice) and an embedded label."""

    time_scale: Tensor

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("time_scale", torch.ones(()))
        self.num_classes = classes
        self.label = nn.Embedding(11, 16)  # class 10 is no label
        sizes = [dim + 6 + 16, _WIDTH, _WIDTH, _WIDTH]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(_WIDTH, dim))

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        *times, y = rest
        inputs = [x.flatten(1)]
        for time in (times * 2)[:2]:
            tau = time / self.time_scale
            inputs.append(torch.stack([tau, (3 * tau).sin(), (3 * tau).cos()], 1))
        inputs.append(self.label(torch.full(x.shape[:1], 10, device=x.device) if y is None else y))
        return self.layers(torch.cat(inputs, 1)).view(x.shape)


@dataclass(frozen=True)
class Training:
    """One network: data set, convention, objective, seed."""

    dataset: str
    convention: int
    objective: str = "meanflow"
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.convention}-{self.objective.replace(':', '')}-{self.seed}"

    @property
    def classes(self) -> int:
        return 10 if self.dataset == "digits" and self.objective != "unlabeled" else 0


@cache
def natural_points(dataset: str, symmetric: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Data of a training, and labels: on the data set's own scale, or within [-1, 1]."""
    data = load_data(dataset)
    assert isinstance(data, FiniteData)
    rows = slice(None, None, max(1, len(data.points) // _POINTS))
    points = np.asarray(data.points[rows], dtype=np.float64)
    labels = None if data.labels is None else np.asarray(data.labels[rows])
    return points / (np.abs(points).max() if symmetric else 1), labels


def data_of(training: Training, read_as: Convention | None = None) -> FiniteData:
    """The stored data on the scale of a convention; the training's own scale is the natural one."""
    own = CONVENTIONS[training.convention]
    points, labels = natural_points(training.dataset, bool(own.shift))
    scaled = own if read_as is None else read_as
    scaling = Scaling(np.asarray(scaled.factor), np.asarray(scaled.shift))
    return FiniteData(training.dataset, ScaledPoints((points - own.shift) / own.factor, scaling, False), labels)


class Numbers(NamedTuple):
    """A convention and an objective as numbers, so that one program trains networks of all of them.

    Attributes:
        slots: Factors of r, t and 1 in each of the two time arguments [2, 3].
        prediction: Which of u, x and eps the network predicts [3].
        reverse: Whether the network predicts -u.
        beta: Coefficient of the tangent.
        power: Whether the squared error is divided by itself.
        guided: Whether the target is guided.
    """

    slots: Tensor
    prediction: Tensor
    reverse: Tensor
    beta: Tensor
    power: Tensor
    guided: Tensor


def numbers_of(training: Training) -> Numbers:
    """The numbers of a training."""
    own, objective = CONVENTIONS[training.convention], training.objective
    words = {"r": [1.0, 0.0, 0.0], "t": [0.0, 1.0, 0.0], "h": [-1.0, 1.0, 0.0]}
    if own.direction == "D1":
        words |= {"r": [-1.0, 0.0, 1.0], "t": [0.0, -1.0, 1.0]}
    slots = own.time_scale * torch.tensor([words[word] for word in (own.slots * 2)[:2]])
    prediction = torch.tensor([float(own.prediction == name) for name in ("u", "x", "eps")])
    beta = float(objective.partition(":")[2] or 0)
    flags = (own.direction == "D1", beta, objective == "p1", objective == "guided")
    return Numbers(slots, prediction, *(torch.tensor(float(flag)) for flag in flags))


def average_velocity(
    network: Callable[..., Tensor], numbers: Numbers, x: Tensor, r: Tensor, t: Tensor, y: Tensor
) -> Tensor:
    """u(x, r, t) with data at t = 0, from the network called in its convention."""
    first, second = (slot[0] * r + slot[1] * t + slot[2] for slot in numbers.slots)
    output = network(x, first, second, y)
    u = (1 - 2 * numbers.reverse) * output
    from_x = (x - output) / t.clamp_min(0.05)[:, None]
    from_eps = (output - x) / (1 - t).clamp_min(0.05)[:, None]
    return numbers.prediction[0] * u + numbers.prediction[1] * from_x + numbers.prediction[2] * from_eps


class Samples(NamedTuple):
    """One batch: data, noise, times, labels (10 for dropped ones)."""

    x0: Tensor
    x1: Tensor
    r: Tensor
    t: Tensor
    y: Tensor


def loss_of(
    network: Callable[..., Tensor], average: Callable[..., Tensor], numbers: Numbers, samples: Samples
) -> Tensor:
    """The loss of one batch of one network, written out."""
    x0, x1, r, t, y = samples
    u_of = partial(average_velocity, network, numbers)
    x_t, v_c = (1 - t)[:, None] * x0 + t[:, None] * x1, x1 - x0
    guide = u_of(x_t, t, t, torch.full_like(y, 10)).detach()
    guided = numbers.guided * (y < 10)
    target = v_c + guided[:, None] * (v_c - guide)
    vhat = average_velocity(average, numbers, x_t, t, t, y).detach()
    tangent = target + numbers.beta * (vhat - v_c)
    u, derivative = jvp(lambda x, end: u_of(x, r, end, y), (x_t, t), (tangent, torch.ones_like(t)))
    square = (u + (t - r)[:, None] * derivative.detach() - target).square().sum(1)
    weight = 1 / (square.detach() + 1e-3)
    return (square * (numbers.power * weight + 1 - numbers.power)).mean()


def train(trainings: Sequence[Training], folder: Path) -> None:
    """Train networks on data of one dimension at once; writes the weights of each at every stage."""
    if all((folder / f"{training.name}.pt").exists() for training in trainings):
        return
    torch.manual_seed(0)
    networks = [network_of(training) for training in trainings]
    parameters, buffers = stack_module_state(networks)
    stacked = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    average = {name: value.detach().clone() for name, value in parameters.items()}
    numbers = Numbers(*map(torch.stack, zip(*map(numbers_of, trainings), strict=True)))
    optimizer = torch.optim.Adam(stacked.values(), lr=_RATE)
    template = networks[0]

    def loss(weights: Row, averaged: Row, fixed: Row, own: Numbers, samples: Samples) -> Tensor:
        def call(values: Row) -> Callable[..., Tensor]:
            return lambda *arguments: functional_call(template, (values, fixed), arguments)

        return loss_of(call(weights), call(averaged), own, samples)

    gradient = vmap(grad(loss))
    saved: dict[int, Row] = {}
    for step in range(STAGES[-1] + 1):
        if step in STAGES:
            saved[step] = {name: value.detach().clone() for name, value in {**stacked, **buffers}.items()}
        gradients = gradient(stacked, average, buffers, numbers, batch(trainings))
        for name, value in stacked.items():
            value.grad = gradients[name]
        optimizer.step()
        with torch.no_grad():
            for name, value in stacked.items():
                average[name].lerp_(value, 1 - _DECAY)
    for i, training in enumerate(trainings):
        stages = {step: {name: value[i].clone() for name, value in state.items()} for step, state in saved.items()}
        torch.save(stages, folder / f"{training.name}.pt")


def batch(trainings: Sequence[Training]) -> Samples:
    """One batch for each network [networks, samples, ...]."""
    size = (len(trainings), _BATCH)
    index = torch.randint(_POINTS, size)
    data = [points_of(training) for training in trainings]
    x0 = torch.stack([points[i % len(points)] for (points, _), i in zip(data, index, strict=True)])
    y = torch.stack([labels[i % len(labels)] for (_, labels), i in zip(data, index, strict=True)])
    y = torch.where(torch.rand(size) < 0.1, 10, y)
    t, r = torch.sigmoid(torch.randn(2, *size) - 0.4).sort(0, descending=True).values
    no_interval = [t.objective in ("flow_matching", "no_intervals") for t in trainings]
    one_slot = [len(CONVENTIONS[t.convention].slots) == 1 for t in trainings]
    same = (torch.rand(size) < 0.5) | torch.tensor(no_interval)[:, None] | torch.tensor(one_slot)[:, None]
    return Samples(x0, torch.randn_like(x0), torch.where(same, t, r), t, y)


@cache
def points_of(training: Training) -> tuple[Tensor, Tensor]:
    """Flat data and labels of a training."""
    points, labels = natural_points(training.dataset, bool(CONVENTIONS[training.convention].shift))
    flat = torch.as_tensor(points).float().flatten(1)
    unlabeled = torch.full((len(flat),), 10)
    return flat, torch.as_tensor(labels).long() if training.classes and labels is not None else unlabeled


def network_of(training: Training) -> Net:
    """The network before training."""
    network = Net(64 if training.dataset == "digits" else 2, training.classes)
    network.time_scale.fill_(CONVENTIONS[training.convention].time_scale)
    return network


def subject_of(training: Training, network: Net, read_as: Convention, data: FiniteData) -> Subject:
    """The network as mfdiag measures it, read in a convention."""
    no_intervals = len(read_as.slots) == 1 or training.objective == "no_intervals"
    module = as_average_velocity(CardAdapter(network, read_as.card(network.num_classes)), read_as.prediction, LINEAR)
    return Subject(
        module,
        data,
        parse_times("uniform:0" if no_intervals else "logit_normal:-0.4,1,0.5"),
        conditional=bool(network.num_classes),
        guidance=parse_guidance("meanflow:2,0,0,1,0.1") if training.objective == "guided" else None,
        checkpoint=training.name,
    )


def loaded(training: Training, folder: Path, stage: int) -> Net:
    """A trained network."""
    network = network_of(training)
    network.load_state_dict(torch.load(folder / f"{training.name}.pt", weights_only=True)[stage])
    return network.eval()


def pair_trainings() -> list[Training]:
    """The trainings of `pairs`: every convention on two data sets."""
    return [Training(data, number) for data in ("two_moons", "digits") for number in range(len(CONVENTIONS))]


def trainings() -> list[Training]:
    """The trainings of `healthy`: those of `pairs`, and objectives, data sets, seeds and conventions in turn."""
    made = pair_trainings()
    for number, objective in enumerate((*OBJECTIVES, *OBJECTIVES, "meanflow", "meanflow")):
        made.append(Training(SETS[number % 3], number % 10, objective, 1 + number))
    for number, objective in enumerate((*OBJECTIVES, "guided", "guided", "guided", "unlabeled", "unlabeled", "p1")):
        made.append(Training("digits", number % 10, objective, 1 + number))
    return made


def healthy(folder: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Networks as they were trained, at every stage: does the check keep silent?"""
    for training in trainings():
        for stage in STAGES:
            yield f"{training.name} at {stage}", partial(measure_healthy, training, stage, folder)


def measure_healthy(training: Training, stage: int, folder: Path) -> Row:
    """What the check says of a network as it was trained, and how near to the bounds it comes."""
    convention = CONVENTIONS[training.convention]
    subject = subject_of(training, loaded(training, folder, stage), convention, data_of(training))
    return {"training": asdict(training), "stage": stage} | numbers(subject)


def pairs(folder: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Trained networks read in every convention of as many times: does the check warn?"""
    for training, read_as in all_pairs():
        yield f"{training.name} as {read_as.name}", partial(measure_pair, training, read_as, folder)


def identified(folder: Path) -> Iterator[tuple[str, Callable[[], Row]]]:
    """The same pairs: does `identify` name the right convention?"""
    for training, read_as in all_pairs():
        yield f"{training.name} as {read_as.name}", partial(identify_pair, training, read_as, folder)


def all_pairs() -> Iterator[tuple[Training, Convention]]:
    """Every (trained in, read as) of as many times."""
    for training in pair_trainings():
        for read_as in CONVENTIONS:
            if len(read_as.slots) == len(CONVENTIONS[training.convention].slots):
                yield training, read_as


def pair_of(training: Training, read_as: Convention, folder: Path) -> tuple[Subject, Row]:
    """A trained network read in a convention, and the columns that say so."""
    network = loaded(training, folder, STAGES[-1])
    subject = subject_of(training, network, read_as, data_of(training, read_as))
    names = {"trained": CONVENTIONS[training.convention].name, "read": read_as.name, "dataset": training.dataset}
    return subject, names


def measure_pair(training: Training, read_as: Convention, folder: Path) -> Row:
    """What the check says of a trained network that is read in a convention, and the CPU time that it takes."""
    subject, row = pair_of(training, read_as, folder)
    start = process_time()
    notes: list[str] = []
    doubt = check_convention(subject, _SAMPLES, say=notes.append)
    seconds = process_time() - start
    return row | {"doubt": doubt and doubt.record["reading"], "noted": bool(notes), "seconds": seconds}


def identify_pair(training: Training, read_as: Convention, folder: Path) -> Row:
    """What `identify` says of the same."""
    subject, row = pair_of(training, read_as, folder)
    return row | named(subject, CONVENTIONS[training.convention], read_as)


def numbers(subject: Subject) -> Row:
    """Misfits of the declared reading and of the best other one, and the order of its times, as the check sees them."""
    scores, plausible = declared_scores(subject, _SAMPLES)
    own = misfit_of(scores, scores.declared.reading)
    ranking = race(scores, plausible[1:], keep=1, skill=LEAST_SKILL, ceiling=own.total)
    doubt = check_convention(subject, _SAMPLES)
    row: Row = {"declared": own.total, "skill": own.skill, "doubt": doubt and doubt.record["reading"]}
    if ranking:
        changes = sorted(ranking[0].reading.changes(own.reading))
        row |= {"other": ranking[0].total, "other_skill": ranking[0].skill, "changes": changes}
    if len(scores.declared.card.words & {"r", "h", "t"}) == 2:
        order = order_of(long_intervals(scores, subject, 256, 0), own.reading)
        row |= {} if order is None else {"order_ratio": order.ratio, "order_effect": order.effect}
    return row


def named(subject: Subject, trained: Convention, read_as: Convention) -> Row:
    """What `mfdiag identify` says, and whether that is the trained convention or equal to it on these samples."""
    declared = declared_reading(subject.module, subject.path)
    verdict = identify(subject, declared, {"raw": declared.network}, _IDENTIFIED).verdict
    if verdict.best is None:
        return {"right": False, "right_or_tied": False, "refuted": verdict.refuted, "tied": 0}
    readings = [verdict.best.reading, *(misfit.reading for misfit in verdict.tied)]
    factor = trained.factor / read_as.factor
    shift = trained.shift - factor * read_as.shift
    right = [
        words_of(declared.card, declared.reading.times, reading.times) == list(trained.slots)
        and (reading.direction, reading.time_scale, reading.prediction, reading.sign)
        == (trained.direction, trained.time_scale, trained.prediction, 1)
        and abs(reading.factor / factor - 1) < 1e-6
        and abs(reading.shift - shift) < 1e-6
        for reading in readings
    ]
    return {"right": right[0], "right_or_tied": any(right), "refuted": verdict.refuted, "tied": len(verdict.tied)}


def words_of(card: Card, before: tuple[str, str], after: tuple[str, str]) -> list[str]:
    """The words of the time slots in a reading."""
    words = dict(zip(before, after, strict=True))
    return [words.get(word, word) for word in card.call.arguments[1:-1]]


def collect(part: str, cases: Iterator[tuple[str, Callable[[], Row]]], folder: Path) -> list[Row]:
    """A row for each case; those in the part's file are not computed again."""
    file = folder / f"{part}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {row["case"] for row in rows}
    with file.open("a") as output:
        for case, measure in cases:
            if case in done:
                continue
            row = {"case": case, **measure()}
            output.write(json.dumps(row) + "\n")
            output.flush()
            rows.append(row)
    return rows


def show_healthy(rows: list[Row]) -> None:
    """Alarms, and how near to the bounds the networks came."""
    near = [row["other"] / row["declared"] for row in rows if "other" in row]
    print(
        f"networks: {len(rows)}; with skill of at least {LEAST_SKILL}: {sum(r['skill'] >= LEAST_SKILL for r in rows)}"
    )
    print(f"false alarms: {share([row['doubt'] is not None for row in rows])}")
    print(f"least misfit of another reading, over the declared one's: {min(near, default=np.nan):.2f}")
    for low, high in ((LEARNED, LEAST_SKILL), (LEAST_SKILL, 1.0)):
        effects = [r["order_effect"] for r in rows if "order_ratio" in r and low <= r["skill"] < high]
        small = [r["order_effect"] for r in rows if r.get("order_ratio", 1) <= ORDER_RATIO and low <= r["skill"] < high]
        greatest = (
            f"{max(effects, default=np.nan):.2f}, with a ratio below {ORDER_RATIO} {max(small, default=np.nan):.2f}"
        )
        print(f"greatest effect of a swap at a skill of {low} to {high}: {greatest}")


def show_pairs(rows: list[Row]) -> None:
    """How often the check warns, by the conventions of training."""
    print("| data | trained in | read as others | warned |")
    print("| --- | --- | --- | --- |")
    for (data, name), wrong in wrong_readings(rows):
        print(f"| {data} | {name} | {len(wrong)} | {sum(row['doubt'] is not None for row in wrong)} |")
    for data in dict.fromkeys(row["dataset"] for row in rows):
        wrong = [row for row in rows if row["dataset"] == data and row["trained"] != row["read"]]
        right = [row for row in rows if row["dataset"] == data and row["trained"] == row["read"]]
        print(f"{data}: warned {share([row['doubt'] is not None for row in wrong])}")
        print(f"{data}: neither warned nor noted {share([not row['doubt'] and not row['noted'] for row in wrong])}")
        print(f"{data}, as trained: warned {share([row['doubt'] is not None for row in right])}")
        seconds = sorted(row["seconds"] for row in rows if row["dataset"] == data)
        print(f"{data}: {np.median(seconds):.2f} s of CPU, at most {seconds[-1]:.2f}")


def show_identified(rows: list[Row]) -> None:
    """How often `identify` names the convention, by the conventions of training."""
    print("| data | trained in | read as others | refuted | identified | identified or tied |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (data, name), wrong in wrong_readings(rows):
        counts = [sum(row[key] for row in wrong) for key in ("refuted", "right", "right_or_tied")]
        print(f"| {data} | {name} | {len(wrong)} | {' | '.join(map(str, counts))} |")
    for data in dict.fromkeys(row["dataset"] for row in rows):
        wrong = [row for row in rows if row["dataset"] == data and row["trained"] != row["read"]]
        right = [row for row in rows if row["dataset"] == data and row["trained"] == row["read"]]
        for key, words in (("refuted", "refuted"), ("right", "named"), ("right_or_tied", "named or not distinguished")):
            print(f"{data}: {words} {share([row[key] for row in wrong])}")
        print(f"{data}, as trained: refuted {share([row['refuted'] for row in right])}")


def wrong_readings(rows: list[Row]) -> Iterator[tuple[tuple[str, str], list[Row]]]:
    """The rows of each data set and convention of training that are read in another one."""
    for data, name in dict.fromkeys((row["dataset"], row["trained"]) for row in rows):
        yield (data, name), [r for r in rows if (r["dataset"], r["trained"]) == (data, name) and r["read"] != name]


def share(answers: list[bool]) -> str:
    """How many of the answers are yes, with the exact binomial interval of 95 %."""
    if not answers:
        return "0 of 0"
    interval = binomtest(sum(answers), len(answers)).proportion_ci()
    return f"{sum(answers)} of {len(answers)} [{100 * interval.low:.1f}, {100 * interval.high:.1f}] %"


def show_cost() -> None:
    """CPU time of the check on the bundled network, and on a DiT of default size."""
    latents = FiniteData("latents", np.random.default_rng(0).standard_normal((512, 4, 8, 8)))
    torch.manual_seed(0)
    dit = Subject(DiT().eval(), latents, parse_times("logit_normal"), checkpoint="DiT")
    for subject in (load_subject(bundled(), SubjectOptions(), say=lambda note: None), dit):
        check_convention(subject, _SAMPLES)  # the first call loads libraries
        start = process_time()
        check_convention(subject, _SAMPLES)
        print(f"{subject.checkpoint}: {process_time() - start:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="*", default=["healthy", "pairs", "identify"])
    parser.add_argument("--folder", type=Path, default=Path("build/conventions"))
    parser.add_argument(
        "--evaluations", type=float, help="check as if no more evaluations were affordable; choose another folder"
    )
    parser.add_argument("--only", default="", help="cases whose name begins with this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == ["cost"]:
        show_cost()
        return
    if options.evaluations:
        convention_check.budget_of = lambda few, samples, *, stop: Budget(options.evaluations, 0.0, 1.0)
    options.folder.mkdir(parents=True, exist_ok=True)
    everything = trainings()
    for digits in (False, True):
        train([training for training in everything if (training.dataset == "digits") == digits], options.folder)
    for part in options.part:
        cases = {"healthy": healthy, "pairs": pairs, "identify": identified}[part](options.folder)
        rows = collect(part, (case for case in cases if case[0].startswith(options.only)), options.folder)
        rows = [row for row in rows if row["case"].startswith(options.only)]
        {"healthy": show_healthy, "pairs": show_pairs, "identify": show_identified}[part](rows)


if __name__ == "__main__":
    main()
