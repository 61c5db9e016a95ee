"""The commands, by name, and the exit codes of all of them."""

from __future__ import annotations

import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from mfdiag._version import __version__
from mfdiag.cli import (
    coefficient,
    compare,
    doctor,
    identify,
    inspect,
    list_,
    quality,
    report,
    sweep,
    times,
    train,
    variance,
)
from mfdiag.cli.options import GroupedCommand, Options, measuring
from mfdiag.errors import InputError, MfdiagError, first_line, machine_error, plain_validation, printable
from mfdiag.inputs import recording
from mfdiag.measures import MeasuredTable, measured_tables
from mfdiag.models.open_calls import calls_closed
from mfdiag.storage import remedy_of
from mfdiag.world import may_speak, started_processes

__all__ = ["app"]

_DEBUG = "--debug"


class _Commands(TyperGroup):
    """Turns errors and interrupts into a line on stderr and an exit code, before typer applies its own codes."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with recording(), warnings.catch_warnings(), calls_closed():
                if not (ctx.meta[_DEBUG] or sys.warnoptions):  # those of libraries: users cannot act on them
                    warnings.simplefilter("ignore")
                result = super().invoke(ctx)
            sys.stdout.flush()  # here, where a closed pipe can still be handled, not when Python exits
            return result
        except MfdiagError as error:
            _show_traceback(ctx)
            _end(str(error), 2)
        except typer.BadParameter as error:
            if error.message:  # typer passes on what its parser of types says
                error.message = f"{plain_validation(error.message)}."
            raise
        except KeyboardInterrupt as error:
            _end("; ".join(["interrupted", *map(str, error.args)]) + ".", 3)
        except (Exception, SystemExit) as error:
            if any(isinstance(cause, BrokenPipeError) for cause in (error, error.__context__)):  # rich exits on one
                # stdout was closed, as by `| head`: keep Python from flushing it again at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(0)
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort):  # typer's own
                raise
            _show_traceback(ctx)
            _end(*_unexpected(error, str(ctx.invoked_subcommand)))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Accepts --debug anywhere among the arguments."""
        ctx.meta[_DEBUG] = _DEBUG in args
        for argument in args:
            if any("\ud800" <= letter <= "\udfff" for letter in argument):  # bytes that are no text
                _end(f"Expected arguments in UTF-8, but got {argument!r}. Rename the file.", 2)
        return super().parse_args(ctx, [argument for argument in args if argument != _DEBUG])


def _show_traceback(ctx: Any) -> None:
    if ctx.meta[_DEBUG]:
        sys.stderr.write(printable(traceback.format_exc()))


_LESS_MEMORY = {
    "train": "lower batch_size, measure_samples or the size of the model",
    "quality": "lower --chunk, --samples or --subsample",
    **dict.fromkeys(("inspect", "report", "list"), "close other programs, or use a machine with more"),
}  # for other commands see `_unexpected`


def _unexpected(error: BaseException, command: str) -> tuple[str, int]:
    """The line and the exit code of an error that nothing else has explained."""
    machine = machine_error(error)
    if isinstance(machine, MemoryError):
        return f"Not enough memory: {_LESS_MEMORY.get(command, 'lower --chunk, --samples or --bins')}.", 2
    if machine is not None:
        _discard_output()
        name = f" {machine.filename}" if machine.filename else ""
        return f"Cannot read or write{name} ({machine.strerror or machine}). {remedy_of(machine)}.", 2
    from mfdiag.models.failures import failing_layer, reason_of

    if isinstance(error, SystemExit):
        return f"Code that mfdiag was passed called sys.exit({error.code!r}). Remove that; {_DEBUG} shows where.", 2
    if failing_layer(error) is not None:
        return f"The network fails: {reason_of(error)}. Correct it or --model; {_DEBUG} shows the traceback.", 2
    text = f"Unexpected {type(error).__name__}: {first_line(error).removesuffix('.')}."
    return f"{text} This is an error in mfdiag or in code that it was passed; {_DEBUG} shows the traceback.", 1


def _discard_output() -> None:
    """Keep Python from flushing stdout again at exit where its disk is full."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(text: str, code: int) -> NoReturn:
    with suppress(OSError):  # the exit code remains
        if may_speak(sys.exception()):
            sys.stderr.write(f"mfdiag: {printable(text)}\n")
    sys.exit(code)


def _in_one_process(name: str, command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, which refuses to run in several processes that would all do the same."""

    @functools.wraps(command)
    def alone(**values: Any) -> None:
        if (count := started_processes()) > 1:
            raise InputError(
                f"`mfdiag {name}` runs in one process, but WORLD_SIZE says that {count} were started: run it without "
                f"torchrun. {', '.join(_SHARED)} share their samples."
            )
        command(**values)

    return alone


app = typer.Typer(
    name="mfdiag",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _version(requested: bool) -> None:
    if requested:
        sys.stdout.write(f"mfdiag {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option(_DEBUG, help="Show the traceback of an error. It may stand anywhere in the command.")
    ] = False,
) -> None:
    """Variance diagnostics and ablations of MeanFlow models, from a saved checkpoint.

    Measures how large the gradient variance is and where it comes from, which control-variate coefficient is optimal,
    and how much bias each remedy adds. Without a checkpoint, the commands use the bundled one.

    Example: mfdiag sweep model.safetensors --beta 0:1:0.05 --out results
    """


def _plugin_command(table: MeasuredTable) -> Callable[..., None]:
    """The command of a table that another package adds."""

    def command(options: Options) -> None:
        from mfdiag.cli.measuring import measure_table

        measure_table(table, options)

    command.__doc__ = f"{table.schema.doc}\n\nExample: mfdiag {table.name} model.safetensors --out results"
    return measuring(table)(command)


_COMMANDS: dict[str, Callable[..., Any]] = {
    "sweep": sweep.command,
    "variance": variance.command,
    "coefficient": coefficient.command,
    "compare": compare.command,
    "times": times.command,
    "quality": quality.command,
    "identify": identify.command,
    "doctor": doctor.command,
    "train": train.command,
    "report": report.command,
    "inspect": inspect.command,
    "list": list_.command,
}
_SHARED = ("sweep", "variance", "coefficient", "compare", "times", "quality")  # by the processes of torchrun
for _name, _command in _COMMANDS.items():
    app.command(_name, cls=GroupedCommand)(_command if _name in _SHARED else _in_one_process(_name, _command))
for _table in measured_tables().values():
    if _table.name not in _COMMANDS:
        app.command(_table.name, cls=GroupedCommand)(_plugin_command(_table))
