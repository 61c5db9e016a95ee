"""Prove model cards against the real repositories.

    python tests/peers/prove.py --repositories DIR [NAME...]

DIR holds checkouts named OWNER+NAME, or OWNER+NAME@REVISION. For each repository its own network is built small with
random weights that are nowhere zero and saved by its own code; its own loss code is run on samples that mfdiag drew,
and what it regresses is compared with what mfdiag measures through the card; then the commands run on the saved file,
after `mfdiag inspect` has recognized it.
Packages the repositories import must be on PYTHONPATH. Prints a row for each repository, and exits with 1 where one
disagrees.

A repository is one file here, NAME.py, with

    REPOSITORY, CODE, CARD    folder in DIR; folder in it that goes on PYTHONPATH; name of the shipped card
    SHAPE, CLASSES            of a sample; number of labels, 0 for none
    SMALL                     what an own card says beside `extends: CARD`, to make the network small
    network()                 the module that the repository trains and saves, EMA copies included
    save(module, folder)      a checkpoint by the repository's own code, or in its exact layout; returns its path
    theirs(module, batch, weighted)  the loss [] or [n] by the repository's code with or without its weight, None where
                              it is no power of |e|, and w e (`interception.pulled`)
    DIVIDED = 1               what the unweighted loss divides |e|^2 by: the number of coordinates where it is a mean
    POWER = 1                 the power of |e|^2 in the loss
    DTYPES                    where its code cannot do both: (torch.float32,)
    PATHS = ()                further folders for PYTHONPATH
    TEACHER = False           for flow matching: the saved file is also a teacher of a network of this project
    conditions(rng, n)        arrays [n, ...] by name that the network takes beside the samples
    beside(x)                 more of them, made of the samples x [n, *shape] themselves
    ABSENT = ()               modules it imports and does not use here: for GPUs alone, or of its data and evaluation;
                              ones whose attributes are empty classes stand in

and, where the repository has no loss,

    step(module, batch)       instead of `theirs`: x_r from x_t by the repository's sampler
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import yaml
from interception import Batch, shaken
from torch import Tensor, nn

from mfdiag.estimators import Estimator, find_estimator
from mfdiag.fields.builder import FieldNeeds
from mfdiag.fields.fields import Fields
from mfdiag.flow.draw import Draws
from mfdiag.flow.weighting import Weighting, parse_weighting
from mfdiag.gradients.sample_pass import PassSettings, SupportNetworks, run_pass
from mfdiag.measures.run.subject import SubjectOptions, load_subject
from mfdiag.models.cards.card_files import load_card
from mfdiag.models.networks.unet import UNet
from mfdiag.models.precision import in_precision

SAMPLES = 16
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
COMMANDS = ("variance", "coefficient", "sweep", "compare")

STAND_IN = """def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
"""


def prove(peer: ModuleType, repositories: Path, work: Path, commands: list[str]) -> dict[str, Any]:
    """Everything the module says about one repository; raises AssertionError where it does not hold."""
    checkout = repositories / peer.REPOSITORY
    paths = [str(checkout / folder) for folder in (peer.CODE, *getattr(peer, "PATHS", ()))]
    for module in getattr(peer, "ABSENT", ()):
        empty = (work / "absent" / module.replace(".", "/")).with_suffix(".py")
        empty.parent.mkdir(parents=True, exist_ok=True)
        empty.write_text(STAND_IN)
        paths.append(str(work / "absent"))
    sys.path[:0] = paths
    torch.manual_seed(0)
    model = shaken(peer.network())
    checkpoint = peer.save(model, work)
    card, data = work / "card.yaml", work / "data.npz"
    card.write_text(yaml.safe_dump({"extends": f"{peer.CARD}.yaml", **peer.SMALL}))
    write_data(data, peer)
    row: dict[str, Any] = {"repository": peer.REPOSITORY, "commit": commit(checkout)}
    for dtype in getattr(peer, "DTYPES", TOLERANCE):
        found = differences(peer, in_precision(model, dtype).eval(), checkpoint, card, data, dtype)
        row |= {f"{what}, {str(dtype).removeprefix('torch.')}": value for what, value in found.items()}
        assert max(found.values()) <= TOLERANCE[dtype], f"{peer.REPOSITORY} disagrees in {dtype}: {found}"
    recognized(checkpoint, peer.CARD, work, paths)
    start = time.perf_counter()
    for command in commands:
        run(command, checkpoint, card, data, work, paths)
    if getattr(peer, "TEACHER", False):
        teach(f"{checkpoint}@{card}", peer, data, work, paths)
    return row | {"commands": ", ".join(commands), "seconds": round(time.perf_counter() - start)}


def teach(teacher: str, peer: ModuleType, data: Path, work: Path, paths: list[str]) -> None:
    """A network of this project measured with `teacher`, FILE@CARD, for its proxy."""
    student, arguments = work / "student.py", f"{peer.SHAPE[0]}, 8, num_classes={peer.CLASSES}"
    student.write_text(
        f"from mfdiag.models.networks.unet import UNet\n\n\ndef build():\n    return UNet({arguments})\n"
    )
    torch.save(UNet(peer.SHAPE[0], 8, num_classes=peer.CLASSES).state_dict(), work / "student.pt")
    options = ["--proxy", f"teacher={teacher}", "--estimator", "teacher", "--estimator", "teacher_tangent"]
    run("variance", work / "student.pt", f"{student}:build", data, work / "taught", paths, *options)


def write_data(path: Path, peer: ModuleType) -> None:
    """A few points of unit scale with labels and conditions."""
    rng = np.random.default_rng(0)
    arrays = {"x": np.tanh(rng.standard_normal((48, *peer.SHAPE))).astype(np.float32)}
    if peer.CLASSES:
        arrays["y"] = np.arange(48) % peer.CLASSES
    if hasattr(peer, "conditions"):
        arrays |= peer.conditions(rng, 48)
    if hasattr(peer, "beside"):
        arrays |= peer.beside(arrays["x"])
    np.savez(path, **arrays)


class Recorder:
    """A plan that keeps x_t, u, an estimator's residual without and with the weight, and the samples' numbers."""

    groups = size = 1
    needs = FieldNeeds(posterior=False)
    losses = ()

    def __init__(self, estimator: Estimator, weighting: Weighting) -> None:
        self.estimator, self.weighting = estimator, weighting
        self.found: list[tuple[Tensor, Tensor, Tensor, Tensor, np.ndarray]] = []

    def cotangents(self, fields: Fields) -> Tensor:
        e = self._residual(fields)
        self.found.append((fields.x, fields.u, e, self.weighting(e), fields.context.index))
        return e[None]

    def _residual(self, fields: Fields) -> Tensor:
        if self.estimator.residual is not None:
            return self.estimator.residual(fields)
        there = fields.context  # of a loss: half its derivative with respect to the network's output
        zero = torch.zeros_like(fields.x, requires_grad=True)

        def network(x: Tensor, r: Tensor, t: Tensor) -> Tensor:
            return there.model(x, r.flatten(), t.flatten(), there.condition) + zero

        return torch.autograd.grad(self.estimator.loss(fields, network).sum(), zero)[0] / 2

    def outputs(self, fields: Fields) -> None:
        return None

    def scalars(self, fields: Fields) -> dict[str, Tensor]:
        return {}


def differences(
    peer: ModuleType, model: nn.Module, checkpoint: Path, card_file: Path, data: Path, dtype: torch.dtype
) -> dict[str, float]:
    """Largest relative difference over samples of residual and weighted residual, and that of the mean loss."""
    card = load_card(str(card_file))
    subject = load_subject(
        checkpoint,
        SubjectOptions(
            model=str(card_file),
            data=str(data),
            proxy=card.objective.proxy,
            times=card.objective.times,
            guidance=card.guidance,
        ),
        say=lambda note: None,
    )
    draws = Draws(
        subject.data,
        subject.times,
        0,
        subject.conditional,
        False,
        subject.source,
        subject.coupling,
        subject.path,
        guidance=subject.guidance,
        null_label=peer.CLASSES,
        conditions=subject.conditions,
    )
    plan = Recorder(find_estimator(card.objective.estimator), parse_weighting(card.objective.weighting))
    run_pass(
        plan,
        subject.module,
        draws,
        PassSettings(SAMPLES, dtype=dtype, derivative=card.objective.derivative or "auto"),
        support=SupportNetworks(subject.proxy, subject.proxy_module, subject.networks),
    )
    index = np.concatenate([part for *_, part in plan.found])
    x, u, ours, ours_weighted = (torch.cat(parts) for parts in list(zip(*plan.found, strict=True))[:4])
    drawn = draws.batch(index)
    labels = draws.labels_of(index)
    batch = Batch(
        *(value.to(dtype) for value in (drawn.x0, drawn.x1, drawn.r, drawn.t)),
        None if labels is None else torch.as_tensor(labels),
        drawn.dropped,
        None if drawn.scale is None else drawn.scale.omega.to(dtype),
        index,
        dict(drawn.conditions),
    )
    if hasattr(peer, "step"):
        gap = (batch.t - batch.r).view(-1, *[1] * (x.ndim - 1))
        return {"step": relative(x - gap * u, peer.step(model, batch))}
    _, residual = peer.theirs(model, batch, weighted=False)
    loss, weighted = peer.theirs(model, batch, weighted=True)
    found = {
        "residual": relative(ours, residual * getattr(peer, "DIVIDED", 1)),
        "weighted residual": relative(ours_weighted, weighted),
    }
    if loss is None:
        return found
    by_hand = (ours * ours_weighted).flatten(1).sum(1) / getattr(peer, "POWER", 1)
    return found | {"loss": abs(float(loss.mean() / by_hand.mean()) - 1)}


def relative(ours: Tensor, reference: Tensor) -> float:
    """The largest |difference| / |reference| of a sample, Euclidean norms."""
    return float(((ours - reference).flatten(1).norm(dim=1) / reference.flatten(1).norm(dim=1)).max())


def run(command: str, checkpoint: Path, model: Path | str, data: Path, out: Path, paths: list[str], *more: str) -> None:
    """One command of the installed program on the saved file; AssertionError where it fails or measures nothing."""
    program = [str(Path(sys.executable).with_name("mfdiag")), command, str(checkpoint)]
    options = ["--model", str(model), "--data", str(data), "--samples", str(SAMPLES), "--out", str(out), "--quiet"]
    done = subprocess.run(
        [*program, *options, *more, "--format", "csv"], env=environment_with(paths), capture_output=True, text=True
    )
    assert done.returncode == 0, f"{' '.join(program)} exits with {done.returncode}: {done.stderr}"
    assert len(done.stdout.splitlines()) > 1, f"{' '.join(program)} has no rows"


def recognized(checkpoint: Path, card: str, work: Path, paths: list[str]) -> None:
    """`mfdiag inspect` takes the saved file for one of the repository, and the card that it proposes can be read."""
    program = [str(Path(sys.executable).with_name("mfdiag")), "inspect", str(checkpoint), "--format", "json"]
    done = subprocess.run(program, env=environment_with(paths), capture_output=True, text=True)
    assert done.returncode == 0, f"mfdiag inspect exits with {done.returncode}: {done.stderr}"
    proposal = json.loads(done.stdout)["proposal"]
    assert proposal["recognised"] == f"{card}.yaml", f"the file is taken for {proposal['recognised']}"
    (work / "proposed.yaml").write_text(proposal["text"])
    load_card(str(work / "proposed.yaml"))


def environment_with(paths: list[str]) -> dict[str, str]:
    """The environment of a program that imports from these folders."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}


def commit(checkout: Path) -> str:
    """The commit checked out."""
    asked = ["git", "-C", str(checkout), "rev-parse", "--short=10", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repositories", type=Path, required=True, help="folder of the checkouts")
    parser.add_argument("names", nargs="*", metavar="NAME", help="files here without .py; all of them if none is given")
    parser.add_argument("--commands", nargs="*", choices=COMMANDS, default=COMMANDS, help="those that are run after")
    given = parser.parse_args()
    own = {"prove", "interception"}
    names = given.names or sorted({file.stem for file in Path(__file__).parent.glob("*.py")} - own)
    if len(names) > 1:  # a process each: the repositories' modules have the same names
        options = ["--repositories", str(given.repositories), "--commands", *given.commands]
        return max(subprocess.run([sys.executable, __file__, name, *options]).returncode for name in names)
    with tempfile.TemporaryDirectory() as work:
        row = prove(importlib.import_module(names[0]), given.repositories.resolve(), Path(work), given.commands)
    cells = (f"{value:.1e}" if isinstance(value, float) else str(value) for value in row.values())
    print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
