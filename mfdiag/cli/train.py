"""`mfdiag train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mfdiag.cli.options import OUTPUT, Options, grouped_option, sharing
from mfdiag.errors import InputError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mfdiag.training.grid import GridCell

__all__ = ["command"]


Spec = Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="What to train.")]
Out = Annotated[Path, grouped_option("Folder of the checkpoints.", group=OUTPUT, metavar="DIR")]
TrustCode = Annotated[
    bool, grouped_option("Run the code (FILE.py:factory) that the specification names.", "--trust-code")
]
DryRun = Annotated[bool, grouped_option("Only print the models of the grid and the time they would take.", "--dry-run")]
Device = Annotated[str, grouped_option("Where the networks are trained: cpu, cuda or cuda:N.")]
Compile = Annotated[
    Literal["auto", "on", "off"],
    grouped_option("Compile the training step; auto does so for 2,000 steps or more.", "--compile"),
]
Overwrite = Annotated[
    bool, grouped_option("Start again; without it, an earlier run resumes.", "--overwrite", group=OUTPUT)
]


@sharing("launcher", "address", "fail_fast", "quiet")
def command(
    options: Options,
    spec: Spec,
    out: Out = Path("mfdiag-model"),
    trust_code: TrustCode = False,
    dry_run: DryRun = False,
    device: Device = "cpu",
    compile_: Compile = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Train a grid of models with MeanFlow's loss at chosen beta and gamma; a killed run resumes where it stopped.

    Writes DIR/CELL/model.safetensors for each model, DIR/training.parquet and figures. A specification without axes is
    a grid of one model, DIR/model.safetensors. A finished run continues if the specification now has more steps, at a
    constant learning rate. `loss: {estimator: soflow}` trains with the loss of another method (docs/estimators).

    Example: mfdiag train sweeps/bundled.yaml --out model
    """
    from mfdiag.cli.printing import PlainConsole
    from mfdiag.cli.progress import progress_on

    cells = _cells(spec, trust_code)  # does not import torch: a bad file is reported at once

    from mfdiag.cli.device import checked_device, launcher_of
    from mfdiag.figures import save_figures
    from mfdiag.measures.run.runner import run
    from mfdiag.measures.training import TrainJob
    from mfdiag.training.trainer import TrainOptions, estimate_seconds

    console = PlainConsole(stderr=True, quiet=options.quiet, highlight=False, soft_wrap=True)
    how = TrainOptions(checked_device(device, options.launcher), compile_, resume=not overwrite)

    def say(text: str) -> None:
        console.print(f"note: {text}", markup=False)

    if dry_run:
        _print_cells(cells, estimate_seconds(cells, out, how, say=say))
        return
    recorded = {"file": str(spec), "text": spec.read_text(encoding="utf-8")}
    launcher = launcher_of(options)
    with progress_on(console) as progress:
        job = TrainJob(cells, out, how, specification=recorded, progress=progress, say=say, launcher=launcher)
        outcome = run(job, out, "overwrite", say=say)
    save_figures(outcome.frames, out)
    job.require_trained()
    job.require_finite()
    for trained in job.trained:
        sys.stdout.write(printable(f"{trained.checkpoint}\n"))


def _cells(spec: Path, trust_code: bool) -> list[GridCell]:
    """The cells of a specification. Raises InputError where it refers to code that is not trusted."""
    from mfdiag.training.grid import load_grid

    cells = load_grid(spec)
    named = sorted({code for cell in cells for code in cell.spec.code})
    if named and not trust_code:
        raise InputError(f"{spec} refers to code, {', '.join(named)}: pass --trust-code to run it.")
    return cells


def _print_cells(cells: Sequence[GridCell], seconds: float) -> None:
    for cell in cells:
        sys.stdout.write(printable(f"{cell.name or '(one model)'}  {cell.spec.steps:,} steps\n"))
    minutes = seconds / 60
    left = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.1f} minutes"
    models = f"{len(cells)} model{'s' * (len(cells) != 1)}"
    sys.stdout.write(f"{models}; training takes about {left} on this machine if not compiled.\n")
