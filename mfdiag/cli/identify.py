"""`mfdiag identify`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mfdiag.cli.options import Options, grouped_option, sharing

if TYPE_CHECKING:
    import pandas as pd

    from mfdiag.measures.parts.summary import Summary

__all__ = ["command"]

_SHOWN = 8  # readings


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
    "seed",
    "dtype",
    "out",
    "format",
    "resume",
    "overwrite",
    "quiet",
)
def command(
    options: Options,
    samples: Annotated[int, grouped_option("Number of samples (x_0, x_1, r, t).", min=32)] = 512,
) -> None:
    """Find the convention that a checkpoint was trained in, by measurement, and write a model card for it.

    Tries the order of the times, t - r for r, direction, sign, scale of the times, prediction, scale of the data,
    weights and labels on the same samples. Exits with code 1 if the declared convention is refuted.

    Example: mfdiag identify model.pt --model net.py:build --data images.npz --out results
    """
    import torch

    from mfdiag.cli.measuring import session
    from mfdiag.diagnosis.conventions import IdentifyJob
    from mfdiag.measures.run.runner import run
    from mfdiag.measures.run.subject import SubjectOptions

    with session(options) as work:
        job = IdentifyJob(
            work.checkpoints,
            SubjectOptions.of(options),
            samples,
            seed=options.seed,
            dtype=getattr(torch, options.dtype),
            say=work.say,
        )
        outcome = run(job, options.out, work.mode, say=work.say)
    work.show("identify", outcome, _summary)
    refuted = False
    for candidate, result in job.results:
        for sentence in result.sentences():
            work.console.print(f"{candidate.subject.checkpoint}: {sentence}", markup=False)
        refuted = refuted or result.verdict.refuted
    if refuted:
        sys.stdout.flush()
        raise typer.Exit(1)


def _summary(title: str, rows: pd.DataFrame) -> list[Summary]:
    """One line per reading, the best first."""
    import pandas as pd

    from mfdiag.measures.parts.summary import Summary
    from mfdiag.numbers import plain

    quantities = ("misfit", "skill", "velocity_error", "median_velocity_error", "interval_defect")
    lines: list[tuple[str, ...]] = []
    for (_, reading, verdict), part in rows.groupby(["rank", "reading", "verdict"], sort=False):
        values = part.set_index("quantity")["value"]
        numbers = ["" if pd.isna(values.get(name)) else plain(values[name]) for name in quantities]
        lines.append((str(verdict), *numbers, str(reading)))
    columns = ("verdict", "misfit", "skill", "D_v", "median D_v", "D_s", "reading")
    return [Summary(title, columns, lines[:_SHOWN], numeric=columns[1:-1])]
