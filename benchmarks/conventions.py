"""Does mfdiag name the convention that a network was trained in, and does it keep silent where nothing is wrong?

    nice -n 10 python benchmarks/conventions.py            # everything, an hour on one core; a killed run resumes
    nice -n 10 python benchmarks/conventions.py healthy    # or one part: pairs, healthy

Networks are trained by plain PyTorch loops, in conventions that are written out here by hand. `pairs` reads each of
them in each other convention. `healthy` checks networks as they were trained, at every stage of training. Both write
one JSON line per network to the folder, and print the table of docs/conventions.md.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from mfdiag.diagnosis.conventions import Candidate, identify
from mfdiag.flow.data.datasets import FiniteData, load_data
from mfdiag.flow.data.scaling import ScaledPoints, Scaling
from mfdiag.flow.guidance import parse_guidance
from mfdiag.flow.paths import LINEAR
from mfdiag.flow.times import parse_times
from mfdiag.measures.conventions.race import misfit_of, race
from mfdiag.measures.conventions.verdict import LEAST_SKILL, difference
from mfdiag.measures.run.convention_check import check_convention, declared_scores
from mfdiag.measures.run.subject import Subject
from mfdiag.models.cards.adapter import CardAdapter
from mfdiag.models.cards.card import Card
from mfdiag.models.cards.readings import declared_reading
from mfdiag.models.prediction import as_average_velocity

Row = dict[str, Any]
SETS = ("two_moons", "checkerboard", "eight_gaussians", "digits")
STAGES = (0, 10, 30, 60, 100, 200, 300, 500, 700, 1000)
_POINTS = 20_000  # of a data set
_UNTRAINED = 60
_RATE, _BATCH, _DECAY = 3e-3, 64, 0.99


@dataclass(frozen=True)
class Convention:
    """How a network is called: words of its two time slots, direction, factor on times, prediction, data.

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

    def velocity(self, network: Callable[..., Tensor], x: Tensor, r: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """u(x, r, t) with data at t = 0, from the network called in this convention."""
        h = t - r
        if self.direction == "D1":
            r, t_network = 1 - r, 1 - t
        else:
            t_network = t
        words = {"r": r, "t": t_network, "h": h}
        output = network(x, *(self.time_scale * words[word] for word in self.slots), y)
        if self.prediction == "x":
            return (x - output) / t.clamp_min(0.05).view(-1, *[1] * (x.ndim - 1))
        if self.prediction == "eps":
            return (output - x) / (1 - t).clamp_min(0.05).view(-1, *[1] * (x.ndim - 1))
        return -output if self.direction == "D1" else output

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
    Convention("x,r,t", ("r", "t"), sources="zhuyu-meanflow, mf-rae"),
    Convention("x,t,r", ("t", "r"), sources="haidog-meanflow, dmf, fastgen, re-meanflow"),
    Convention("x,t,h", ("t", "h"), sources="py-meanflow, imeanflow, Gsunshine/meanflow"),
    Convention("x,t,h; x", ("t", "h"), prediction="x", sources="pmf"),
    Convention("x,t,r; D1", ("t", "r"), "D1", sources="splitmeanflow"),
    Convention("x,r,t; D1; 1000", ("r", "t"), "D1", 1000.0, sources="primepake/modular_meanflow"),
    Convention("x,r,t; 0.18215", ("r", "t"), factor=0.18215, sources="zhuyu-meanflow (0.18125), dmf, haidog-meanflow"),
    Convention("x,t,r; 0.3099", ("t", "r"), factor=0.3099, sources="SwayStar123/MeanFlow"),
    Convention("x,t,h; [-1,1]", ("t", "h"), factor=2.0, shift=-1.0, sources="mean 0.5, std 0.5 in six cards"),
    Convention("x,t; D1", ("t",), "D1", sources="torchcfm, flow-matching"),
    Convention("x,t", ("t",), sources="flow matching in MeanFlow's direction"),
)


class Net(nn.Module):
    """A multilayer perceptron on the sample, embedded times and an embedded label."""

    def __init__(self, dim: int, slots: int, width: int, time_scale: float, classes: int) -> None:
        super().__init__()
        self.time_scale, self.num_classes = time_scale, classes
        self.label = nn.Embedding(classes + 1, 16) if classes else None
        sizes = [dim + 3 * slots + (16 if classes else 0), width, width, width]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, dim))

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        *times, y = rest
        inputs = [x.flatten(1)]
        for time in times:
            tau = time / self.time_scale
            inputs.append(torch.stack([tau, (3 * tau).sin(), (3 * tau).cos()], 1))
        if self.label is not None:
            labels = torch.full(x.shape[:1], self.num_classes) if y is None else y
            inputs.append(self.label(labels))
        return self.layers(torch.cat(inputs, 1)).view(x.shape)


@dataclass(frozen=True)
class Training:
    """One network: data set, convention, objective, size, seed."""

    dataset: str
    convention: int
    objective: str = "meanflow"  # meanflow, beta:0.5, beta:1, p1, flow_matching, guided, unlabeled
    width: int = 48
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.convention}-{self.objective.replace(':', '')}-{self.width}-{self.seed}"


def data_of(training: Training, read_as: Convention | None = None) -> FiniteData:
    """The stored data on the scale of a convention; the scale of the training is the natural one of the data set."""
    own = CONVENTIONS[training.convention]
    data = load_data(training.dataset)
    assert isinstance(data, FiniteData)
    rows = slice(None, None, max(1, len(data.points) // _POINTS))
    points = np.asarray(data.points[rows], dtype=np.float64)
    if own.shift:  # an image in [-1, 1], stored in [0, 1]
        points = points / np.abs(points).max()
    stored = (points - own.shift) / own.factor
    scaled = own if read_as is None else read_as
    scaling = Scaling(np.asarray(scaled.factor), np.asarray(scaled.shift))
    labels = None if data.labels is None else data.labels[rows]
    return FiniteData(training.dataset, ScaledPoints(stored, scaling, False), labels)


def train(training: Training, folder: Path) -> dict[int, dict[str, Tensor]]:
    """Weights by stage of training; cached in the folder."""
    file = folder / f"{training.name}.pt"
    if file.exists():
        return torch.load(file, weights_only=True)
    torch.manual_seed(zlib.crc32(training.name.encode()))
    convention, data = CONVENTIONS[training.convention], data_of(training)
    network = network_of(training, data)
    points, labels = torch.as_tensor(data.points[:]).float(), data.labels
    parameters = dict(network.named_parameters())
    average = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE)
    saved = {}
    for step in range(STAGES[-1] + 1):
        if step in STAGES:
            saved[step] = {name: value.detach().clone() for name, value in network.state_dict().items()}
        index = torch.randint(len(points), (_BATCH,))
        y = None if labels is None or not network.num_classes else torch.as_tensor(labels)[index]
        optimizer.zero_grad()
        loss_of(training, convention, network, average, points[index], y).backward()
        optimizer.step()
        with torch.no_grad():
            for name, value in parameters.items():
                average[name].lerp_(value, 1 - _DECAY)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(saved, file)
    return saved


def network_of(training: Training, data: FiniteData) -> Net:
    """The network before training."""
    classes = data.num_classes if training.objective != "unlabeled" else 0
    convention = CONVENTIONS[training.convention]
    dim = int(np.prod(data.shape))
    return Net(dim, len(convention.slots), training.width, convention.time_scale, classes)


def loss_of(
    training: Training, convention: Convention, network: Net, average: dict[str, Tensor], x0: Tensor, y: Tensor | None
) -> Tensor:
    """The loss of one batch, written out."""
    x1 = torch.randn_like(x0)
    t, r = torch.sigmoid(torch.randn(2, len(x0)) - 0.4).sort(0, descending=True).values
    same = torch.rand(len(x0)) < 0.5
    if training.objective == "flow_matching" or len(convention.slots) == 1:
        same = torch.ones_like(same)
    r = torch.where(same, t, r)
    column = (-1, *[1] * (x0.ndim - 1))
    x_t, v_c = (1 - t).view(column) * x0 + t.view(column) * x1, x1 - x0
    null = None if y is None else torch.full_like(y, network.num_classes)
    target = v_c
    if y is not None:
        dropped = torch.rand(len(y)) < 0.1
        if training.objective == "guided":
            with torch.no_grad():
                guide = convention.velocity(network, x_t, t, t, null)
            target = torch.where(dropped.view(column), v_c, 2 * v_c - guide)
        y = torch.where(dropped, null, y)
    tangent, beta = target, float(training.objective.partition(":")[2] or 0)
    if beta:
        with torch.no_grad():
            vhat = convention.velocity(lambda *a: functional_call(network, average, a), x_t, t, t, y)
        tangent = v_c + beta * (vhat - v_c)
    u, derivative = jvp(
        lambda x, end: convention.velocity(network, x, r, end, y), (x_t, t), (tangent, torch.ones_like(t))
    )
    square = (u + (t - r).view(column) * derivative.detach() - target).flatten(1).square().sum(1)
    if training.objective == "p1":
        square = square / (square.detach() + 1e-3)
    return square.mean()


def subject_of(training: Training, network: Net, read_as: Convention, data: FiniteData) -> Subject:
    """The network as mfdiag measures it, read in a convention."""
    one_time = len(read_as.slots) == 1 or training.objective == "flow_matching"
    module = as_average_velocity(CardAdapter(network, read_as.card(network.num_classes)), read_as.prediction, LINEAR)
    return Subject(
        module,
        data,
        parse_times("uniform:0" if one_time else "logit_normal:-0.4,1,0.5"),
        conditional=bool(network.num_classes),
        guidance=parse_guidance("meanflow:2,0,0,1,0.1") if training.objective == "guided" else None,
        checkpoint=training.name,
    )


def loaded(training: Training, folder: Path, stage: int) -> Net:
    """A trained network."""
    network = network_of(training, data_of(training))
    network.load_state_dict(train(training, folder)[stage])
    return network.eval()


def runs() -> Iterator[Training]:
    """The trainings of `healthy`: data sets, objectives, sizes, seeds and conventions in turn."""
    objectives = ("meanflow", "beta:0.5", "beta:1", "p1", "flow_matching", "guided", "meanflow", "unlabeled")
    yield from pair_trainings()
    for number in range(14):
        objective = objectives[number % len(objectives)]
        dataset = "digits" if objective in ("guided", "unlabeled") else SETS[(number + number // 8) % len(SETS)]
        yield Training(dataset, number % len(CONVENTIONS), objective, (32, 48, 64)[number % 3], number)


def healthy(folder: Path, cached: bool) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Networks as they were trained, at every stage: does the check keep silent?"""
    for training in runs():
        if cached and not (folder / f"{training.name}.pt").exists():
            continue
        for stage in STAGES:
            yield f"{training.name} at {stage}", partial(measure_healthy, training, stage, folder)
    for seed in range(_UNTRAINED):
        training = Training(SETS[seed % 4], seed % len(CONVENTIONS), width=(16, 48, 128)[seed % 3], seed=1000 + seed)
        yield training.name, partial(measure_healthy, training, None, folder)


def measure_healthy(training: Training, stage: int | None, folder: Path) -> Row:
    """Misfits of a network as it was trained; stage None is a network that never was."""
    torch.manual_seed(training.seed)
    data = data_of(training)
    network = network_of(training, data).eval() if stage is None else loaded(training, folder, stage)
    convention = CONVENTIONS[training.convention]
    return {"training": asdict(training), "stage": stage or 0} | numbers(
        subject_of(training, network, convention, data)
    )


def pairs(folder: Path, cached: bool) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Trained networks read in every convention of as many times: is the right one named?"""
    for training in pair_trainings():
        convention = CONVENTIONS[training.convention]
        if cached and not (folder / f"{training.name}.pt").exists():
            continue
        for read_as in CONVENTIONS:
            if len(read_as.slots) == len(convention.slots):
                yield f"{training.name} as {read_as.name}", partial(measure_pair, training, read_as, folder)


def measure_pair(training: Training, read_as: Convention, folder: Path) -> Row:
    """What is said of a trained network that is read in a convention."""
    convention, network = CONVENTIONS[training.convention], loaded(training, folder, STAGES[-1])
    subject = subject_of(training, network, read_as, data_of(training, read_as))
    row = {"trained": convention.name, "read": read_as.name, "dataset": training.dataset}
    return row | numbers(subject) | named(subject, convention, read_as)


def pair_trainings() -> Iterator[Training]:
    """The trainings of `pairs`: every convention on two data sets."""
    for dataset in ("two_moons", "digits"):
        for convention in range(len(CONVENTIONS)):
            yield Training(dataset, convention)


def numbers(subject: Subject) -> Row:
    """Misfits of the declared reading and of the best other one, as the check sees them."""
    scores, plausible = declared_scores(subject, 4096)
    own = misfit_of(scores, scores.declared.reading)
    ranking = race(scores, plausible[1:], keep=1, skill=0.0)
    other = ranking[0] if ranking else None
    doubt = check_convention(subject, 4096)
    row: dict[str, Any] = {
        "declared": own.total,
        "skill": own.skill,
        "doubt": doubt.record["reading"] if doubt else None,
    }
    if other is not None:
        gap = difference(own, other)
        row |= {
            "other": other.total,
            "other_skill": other.skill,
            "gap": float(gap.value),
            "error": float(gap.std_error),
        }
        row |= {"changes": sorted(other.reading.changes(own.reading))}
    return row


def named(subject: Subject, trained: Convention, read_as: Convention) -> dict[str, Any]:
    """What `mfdiag identify` says, and whether that is the trained convention or equal to it on these samples."""
    declared = declared_reading(subject.module, subject.path)
    candidate = Candidate(subject, declared, {"raw": declared.network}, None, None)  # type: ignore[arg-type]
    verdict = identify(candidate, 256).verdict
    if verdict.best is None:
        return {"right": False, "right_or_tied": False, "refuted": verdict.refuted, "tied": 0}
    readings = [verdict.best.reading, *(misfit.reading for misfit in verdict.tied)]
    factor = trained.factor / read_as.factor
    shift = trained.shift - factor * read_as.shift
    right = [
        list(replace_words(declared.card, declared.reading.times, reading.times)) == list(trained.slots)
        and (reading.direction, reading.time_scale, reading.prediction, reading.sign)
        == (trained.direction, trained.time_scale, trained.prediction, 1)
        and abs(reading.factor / factor - 1) < 1e-6
        and abs(reading.shift - shift) < 1e-6
        for reading in readings
    ]
    return {"right": right[0], "right_or_tied": any(right), "refuted": verdict.refuted, "tied": len(verdict.tied)}


def replace_words(card: Card, before: tuple[str, str], after: tuple[str, str]) -> list[str]:
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
    """Alarms, and how near the bounds the nearest network came."""
    trained = [row for row in rows if row["skill"] >= LEAST_SKILL]
    near = [row["other"] / row["declared"] for row in rows if row.get("other_skill", 0) >= LEAST_SKILL]
    print(f"networks: {len(rows)}; with skill of at least {LEAST_SKILL}: {len(trained)}")
    print(f"false alarms: {sum(map(warned, rows))}")
    print(f"least misfit of another reading, over the declared one's: {min(near, default=np.nan):.2f}")


def show_pairs(rows: list[Row]) -> None:
    """How often the check and `identify` name the convention, by the conventions of training."""
    print("| trained in | read as others | warned | identified | identified or tied | false alarms as trained |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in dict.fromkeys(row["trained"] for row in rows):
        part = [row for row in rows if row["trained"] == name]
        wrong = [row for row in part if row["read"] != name]
        right, tied = (sum(row[key] for row in wrong) for key in ("right", "right_or_tied"))
        alarms = sum(map(warned, (row for row in part if row["read"] == name)))
        counts = (len(wrong), sum(map(warned, wrong)), right, tied, f"{alarms} of {len(part) - len(wrong)}")
        print(f"| {name} | {' | '.join(map(str, counts))} |")


def warned(row: Row) -> bool:
    """Whether the check raised a doubt."""
    return row["doubt"] is not None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="*", default=["healthy", "pairs"])
    parser.add_argument("--folder", type=Path, default=Path("build/conventions"))
    parser.add_argument("--cached", action="store_true", help="leave out networks that are not trained yet")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    for part in options.part:
        cases = {"healthy": healthy, "pairs": pairs}[part](options.folder, options.cached)
        rows = collect(part, cases, options.folder)
        {"healthy": show_healthy, "pairs": show_pairs}[part](rows)


if __name__ == "__main__":
    main()
