"""`mfdiag train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="What to train.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the checkpoint.")] = Path("mfdiag-model"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew; otherwise an earlier run goes on.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train a model with MeanFlow's loss at a point of the coefficient plane; interrupted runs go on where they were.

    Example: mfdiag train sweeps/bundled.yaml --out model
    """
    from rich.console import Console

    from mfdiag.cli.progress import progress_on
    from mfdiag.training.spec import load_spec
    from mfdiag.training.trainer import train

    loaded = load_spec(spec)
    with progress_on(Console(stderr=True, quiet=quiet)) as report:
        result = train(
            loaded,
            out,
            progress=lambda step, loss: report(f"training on {loaded.data}, loss {loss:.4g}", step, loaded.steps),
            resume=not overwrite,
        )
    sys.stdout.write(f"{result.checkpoint}\n")
