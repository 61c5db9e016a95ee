"""`mfdiag doctor`."""

from __future__ import annotations

import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mfdiag.cli.options import Options, grouped_option, sharing

if TYPE_CHECKING:
    from mfdiag.diagnosis.diagnosis import Diagnosed, Diagnosis

__all__ = ["command"]

_SHOWN = 3  # findings, and changes between checkpoints
_WIDTH, _LINES, _LONGEST = 80, 10, 4  # columns, lines of a verdict, lines of one sentence


_own = partial(grouped_option, show_default=False)  # the help says it in words

Budget = Annotated[
    float | None,
    _own(
        "Seconds to spend on each checkpoint. [default: 60, or up to 165 where 512 samples need that]",
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
    if len(job.diagnoses) == 1:
        print("\n".join(_verdict(*job.diagnoses.values())))
    else:
        lines = [f"{diagnosis.checkpoint}: {diagnosis.verdict}" for diagnosis in job.diagnoses.values()]
        lines += [change.sentence() for change in job.course[:_SHOWN]]
        print("\n".join(line for sentence in lines for line in _wrapped(sentence)))
    work.console.print(f"tables: {', '.join(map(str, outcome.tables))}, {options.out / 'doctor.json'}", markup=False)


def _verdict(diagnosis: Diagnosis) -> list[str]:
    """At most ten lines: the verdict, then as many findings as fit, each with where it shows and what to do first."""
    lines = _wrapped(f"{diagnosis.checkpoint}: {diagnosis.verdict}")
    blocks = [_finding(number, entry) for number, entry in enumerate(diagnosis.findings[:_SHOWN], 1)]
    noise = _wrapped(diagnosis.noise)
    if len(lines) + len(noise) + sum(map(len, blocks[:1])) < _LINES:
        lines += noise
    shown = 0
    for number, block in enumerate(blocks, 1):
        last = number == len(diagnosis.findings)  # else a line says how many more there are
        if len(lines) + len(block) > _LINES - (not last):
            break
        lines, shown = lines + block, number
    left = len(diagnosis.findings) - shown
    return [*lines, f"{left} more in doctor.json."] if left else lines


def _finding(number: int, entry: Diagnosed) -> list[str]:
    """A finding in lines; the first one's title and summary are in the verdict."""
    detection = entry.detection
    where = f" At {detection.where}." if detection.where else ""
    summary = "" if number == 1 else f": {entry.title}. {detection.summary}".removesuffix(".")
    lines = _wrapped(f"{number}. {detection.severity}, {detection.certainty}{summary}.{where}")
    if entry.remedies:
        lines += _wrapped(f"   Do: {entry.remedies[0].action}.{_effect(entry.remedies[0])}")
    return lines


def _wrapped(text: str) -> list[str]:
    """Lines of 80 columns, at most four."""
    return textwrap.wrap(text, _WIDTH, subsequent_indent="   ", max_lines=_LONGEST, placeholder=" ...")


def _effect(remedy: object) -> str:
    from mfdiag.diagnosis.remedies import Remedy
    from mfdiag.numbers import with_interval

    assert isinstance(remedy, Remedy)
    effect = remedy.effect
    if effect is None or not effect.trusted or effect.low <= 1 <= effect.high:
        return ""
    return f" Measured: {with_interval(effect.value, effect.low, effect.high)}, {remedy.meaning}."
