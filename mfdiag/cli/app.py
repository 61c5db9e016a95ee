"""The commands, by name, and the exit codes of all of them."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from mfdiag._version import __version__
from mfdiag.cli import coefficient, compare, inspect, list_, quality, report, sweep, times, train, variance
from mfdiag.errors import MfdiagError

__all__ = ["app"]


class _Commands(TyperGroup):
    """Turns what ends a command early into a line on stderr and an exit code, before typer applies codes of its own."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here, where a closed pipe can still be answered, not when Python exits
            return result
        except MfdiagError as error:
            _end(str(error), 2)
        except MemoryError:
            _end("Not enough memory: lower --samples, --chunk or --bins.", 2)
        except KeyboardInterrupt as error:
            _end("; ".join(["interrupted", *map(str, error.args)]) + ".", 3)
        except BrokenPipeError:  # stdout was closed, as by `| head`; Python must not find out again when it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)


def _end(text: str, code: int) -> NoReturn:
    sys.stderr.write(f"mfdiag: {text}\n")
    sys.exit(code)


app = typer.Typer(
    name="mfdiag",
    cls=_Commands,
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
app.command("compare")(compare.command)
app.command("times")(times.command)
app.command("quality")(quality.command)
app.command("train")(train.command)
app.command("report")(report.command)
app.command("inspect")(inspect.command)
app.command("list")(list_.command)
