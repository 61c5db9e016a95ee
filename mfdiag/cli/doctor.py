"""`mfdiag doctor`."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mfdiag.cli.options import OWN, Options, sharing

if TYPE_CHECKING:
    from mfdiag.diagnosis.diagnosis import Diagnosis

__all__ = ["command"]

_SHOWN = 3  # findings, and changes between checkpoints
_WIDTH = 80


def _own(help: str, **more: Any) -> Any:
    return typer.Option(help=help, rich_help_panel=OWN, show_default=False, **more)


Budget = Annotated[
    float | None,
    _own(
        "Seconds to spend on each checkpoint. [default: 60, or up to 180 where 512 samples need that]",
        min=1,
        metavar="SECONDS",
    ),
]
Samples = Annotated[
    int | None,
    _own(
        "Samples whose gradients are measured. [default: as many as the budget allows, up to 4,096]",
        min=32,
        metavar="N",
    ),
]
TrainBatch = Annotated[
    int | None, _own("Samples per training step. [default: what the file says, else 256]", min=1, metavar="N")
]
Log = Annotated[
    Path | None, _own("Training log: CSV, JSON lines, trainer_state.json, TensorBoard's events, an offline run of W&B.")
]


@sharing(
    "checkpoints",
    "model",
    "weights",
    "prediction",
    "data",
    "times",
    "source",
    "coupling",
    "path",
    "guidance",
    "weighting",
    "seed",
    "dtype",
    "out",
    "resume",
    "overwrite",
    "quiet",
)
def command(
    options: Options,
    budget: Budget = None,
    samples: Samples = None,
    train_batch: TrainBatch = None,
    log: Log = None,
) -> None:
    """Say what is wrong with a checkpoint, how sure that is, and what to do first.

    Checks the convention, measures velocity, intervals and gradients in one pass, and judges them by what healthy
    models have. Writes doctor.json with every finding and its remedies, and doctor.parquet with the evidence.

    Example: mfdiag doctor model.pt --data images.npz --log log.csv --out results
    """
    import torch

    from mfdiag.cli.measuring import session
    from mfdiag.diagnosis.doctor import DoctorJob
    from mfdiag.diagnosis.examination import ExaminationOptions
    from mfdiag.diagnosis.training_log import read_log
    from mfdiag.measures.run.runner import run
    from mfdiag.measures.run.subject import SubjectOptions

    with session(options) as work:
        examination = ExaminationOptions(
            budget,
            samples,
            train_batch,
            options.weighting,
            options.seed,
            getattr(torch, options.dtype),
            None if log is None else read_log(log),
        )
        job = DoctorJob(work.checkpoints, SubjectOptions.of(options), examination, progress=work.progress, say=work.say)
        outcome = run(job, options.out, work.mode, say=work.say)
    lines = [line for diagnosis in job.diagnoses.values() for line in _lines(diagnosis, len(job.diagnoses) > 1)]
    lines += [change.sentence() for change in job.course[:_SHOWN]]
    for line in lines:
        print(textwrap.fill(line, _WIDTH, subsequent_indent="   "))
    work.console.print(f"tables: {', '.join(map(str, outcome.tables))}, {options.out / 'doctor.json'}", markup=False)


def _lines(diagnosis: Diagnosis, brief: bool) -> list[str]:
    """The verdict, and up to three findings with where they show and what to do first; one sentence where brief."""
    name = f"{diagnosis.checkpoint}: "
    if brief:
        return [f"{name}{diagnosis.verdict}"]
    lines = [f"{name}{diagnosis.verdict}", *([diagnosis.noise] if diagnosis.noise else [])]
    for number, entry in enumerate(diagnosis.findings[:_SHOWN], 1):
        detection = entry.detection
        where = f" At {detection.where}." if detection.where else ""
        said = "" if number == 1 else f": {entry.title}. {detection.summary}".removesuffix(".")  # the verdict says it
        lines.append(f"{number}. {detection.severity}, {detection.certainty}{said}.{where}")
        if entry.remedies:
            lines.append(f"   Do: {entry.remedies[0].action}.{_effect(entry.remedies[0])}")
    left = len(diagnosis.findings) - _SHOWN
    return [*lines, f"{left} more in doctor.json."] if left > 0 else lines


def _effect(remedy: object) -> str:
    from mfdiag.diagnosis.remedies import Remedy
    from mfdiag.numbers import with_interval

    assert isinstance(remedy, Remedy)
    effect = remedy.effect
    if effect is None or not effect.trusted or effect.low <= 1 <= effect.high:
        return ""
    return f" Measured: {with_interval(effect.value, effect.low, effect.high)}, {remedy.meaning}."
