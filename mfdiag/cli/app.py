"""The commands, by name."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mfdiag._version import __version__
from mfdiag.cli import coefficient, inspect, list_, report, sweep, train, variance

__all__ = ["app"]

app = typer.Typer(
    name="mfdiag",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"mfdiag {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Variance diagnostics and ablations of MeanFlow models, from a saved checkpoint.

    Measures how large the gradient variance is and where it comes from, which control-variate coefficient is optimal,
    and what bias each remedy would pay. Without a checkpoint, the commands use the bundled one.

    Example: mfdiag sweep model.safetensors --beta 0:1:0.05 --out results
    """


app.command("sweep")(sweep.command)
app.command("variance")(variance.command)
app.command("coefficient")(coefficient.command)
app.command("train")(train.command)
app.command("report")(report.command)
app.command("inspect")(inspect.command)
app.command("list")(list_.command)
