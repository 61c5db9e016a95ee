"""The options that measuring commands share: one declaration each, with its group in --help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer
from typer.core import TyperCommand

from mfdiag.measures.run.table import MeasuredTable

__all__ = ["OUTPUT", "OWN", "GroupedCommand", "Options", "grouped_option", "measuring", "sharing"]

OWN, OUTPUT = "This command", "Output"
_MODEL, _DATA, _MEASUREMENT = "Model", "Data and objective", "Measurement"
_LAUNCH = "Cluster"
_GROUPS = (OWN, _MODEL, _DATA, _MEASUREMENT, _LAUNCH, OUTPUT, "Options")


def grouped_option(help: str, *names: str, group: str = OWN, **more: Any) -> Any:
    """An option that stands in a group of the help.

    Args:
        help: What it does.
        *names: Names on the command line, where they do not follow from that of the parameter.
        group: The group; by default that of the command's own options.
        **more: Further arguments of typer.Option.

    Returns:
        The option, for an annotation.
    """
    return typer.Option(*names, help=help, rich_help_panel=group, **more)


def _option(default: Any, group: str, help: str, **more: Any) -> Any:
    """A shared option; `more` goes to typer.Option."""
    option = grouped_option(help, *more.pop("names", ()), group=group, **more)
    return field(default=default, metadata={"typer": option})


_CHECKPOINTS = typer.Argument(metavar="CHECKPOINT", help="Saved models; the bundled one if none is given.")


@dataclass(frozen=True)
class Options:
    """The shared options as typed; None where the command's or the checkpoint's default applies."""

    checkpoints: list[Path] | None = field(default=None, metadata={"typer": _CHECKPOINTS})
    beta: str = _option(
        "0:1:0.05", OWN, "Tangent coefficients: a range, ends included, or a list.", metavar="A:B:STEP|LIST"
    )
    gamma: str = _option("0", OWN, "Target coefficients, in the same form.", metavar="A:B:STEP|LIST")
    batch_size: list[int] | None = _option(
        None, OWN, "n of MSE_n; repeatable. [default: 1, 64, 4096, 65536, 1048576]", metavar="N"
    )
    estimator: list[str] | None = _option(
        None,
        OWN,
        "Estimator to measure, see `mfdiag list estimators`; repeatable, `all` for every one. A file's code is run. "
        "[default: meanflow and ema_tangent, or the proxy's tangent without EMA weights; all for compare; meanflow for "
        "times]",
        metavar="NAME[:args]|FILE.py:name",
    )
    extra: list[str] | None = _option(
        None,
        OWN,
        "Quantities that cost further passes: `semi_gradient_gap`, or `divergence` above 16 dimensions; repeatable.",
        metavar="NAME",
    )
    floor: float = _option(
        0.1, OWN, "Fraction of the trained density that is mixed in; weights are at most 1/floor.", metavar="SHARE"
    )
    model: str | None = _option(
        None,
        _MODEL,
        "Code that builds the network (it is run), for checkpoints that do not describe themselves; or a model card, "
        "which says what code to run and how to call the network, see `mfdiag list cards`.",
        metavar="FILE.py:factory|pkg.module:factory|CARD.yaml",
    )
    weights: str = _option("raw", _MODEL, "Which weights to measure.", metavar="ema|raw|KEY")
    proxy: str | None = _option(
        None,
        _MODEL,
        "Source of the proxy velocity vhat; MODEL builds the teacher, as --model builds the checkpoint's network. "
        "[default: the model card's, ema if the file has EMA weights, else self]",
        metavar="self|ema|exact|teacher=PATH[@MODEL]",
    )
    prediction: str | None = _option(
        None,
        _MODEL,
        "What the network predicts, see `mfdiag list predictions`. [default: the checkpoint's]",
        metavar="NAME[:args]",
    )
    data: str | None = _option(
        None,
        _DATA,
        "Data the model was trained on: a name from `mfdiag list datasets`, a file or folder, or code that makes "
        "a data set (it is run), see docs/data.md. [default: the checkpoint's]",
        metavar="NAME|PATH|FILE.py:factory[:key=value,...]",
    )
    times: str | None = _option(
        None, _DATA, "Sampler of (r, t), see `mfdiag list times`. [default: the checkpoint's]", metavar="NAME[:args]"
    )
    source: str | None = _option(
        None,
        _DATA,
        "Distribution of x_1, see `mfdiag list sources`. [default: the checkpoint's]",
        metavar="NAME[:args]",
    )
    coupling: str | None = _option(
        None,
        _DATA,
        "How x_0 and x_1 are paired, see `mfdiag list couplings`. [default: the checkpoint's]",
        metavar="NAME[:args]",
    )
    path: str | None = _option(
        None, _DATA, "Path from x_0 to x_1, see `mfdiag list paths`. [default: the checkpoint's]", metavar="NAME"
    )
    guidance: str | None = _option(
        None,
        _DATA,
        "Guidance built into the objective, and the fraction of dropped labels, see `mfdiag list guidances`. [default: "
        "the model card's, else none]",
        metavar="NAME[:args]",
    )
    weighting: str | None = _option(
        None,
        _DATA,
        "Loss weight per sample. `adaptive` takes the sum of squares; add `,mean` for their mean, `,square` for the "
        "square of their sum. [default: the model card's, else none]",
        metavar="none|adaptive:p,eps",
    )
    samples: int = _option(4096, _MEASUREMENT, "Number of samples (x_0, x_1, r, t).")
    bins: str | None = _option(
        None, _MEASUREMENT, "Bins of r and t, or none. [default: 5,5; none for sweep; 1,5 for compare]", metavar="R,T"
    )
    by: Literal["layer", "time", "none"] | None = _option(
        None, _MEASUREMENT, "Break results down. [default: layer for variance and compare, else none]"
    )
    posterior: Literal["auto", "exact", "none"] = _option(
        "auto", _MEASUREMENT, "Exact posterior over the data; auto omits it where it would take minutes."
    )
    derivative: str | None = _option(
        None,
        _MEASUREMENT,
        "How to compute du/dx v + du/dt: exactly, or by central differences of step h in time; without h, of the step "
        "of least error. [default: the model card's, else exactly where the network allows]",
        metavar="auto|jvp|difference[:h]",
    )
    seed: int = _option(0, _MEASUREMENT, "Seed of the samples: sample i depends on (seed, i) alone.", min=0)
    engine: Literal["auto", "fast", "reference"] = _option(
        "auto", _MEASUREMENT, "How per-sample gradients are computed; reference is slow, with the same result."
    )
    chunk: str = _option("auto", _MEASUREMENT, "Samples at once; changes no result.", metavar="auto|N")
    device: str = _option("cpu", _MEASUREMENT, "Where the network runs: cpu, cuda or cuda:N.")
    dtype: Literal["float32", "float64"] = _option("float32", _MEASUREMENT, "Precision of the network.")
    launcher: Literal["local", "ray"] = _option(
        "local", _LAUNCH, "Several checkpoints or models: here, or many at once on a Ray cluster (needs mfdiag[ray])."
    )
    address: str | None = _option(
        None,
        _LAUNCH,
        "Running Ray cluster. [default: one started on this machine]",
        metavar="auto|HOST:PORT|ray://HOST:PORT",
    )
    fail_fast: bool = _option(
        False,
        _LAUNCH,
        "With --launcher ray: stop at the first one that fails, instead of finishing the others.",
        names=("--fail-fast",),
    )
    out: Path = _option(Path("mfdiag-results"), OUTPUT, "Folder for tables and figures.", metavar="DIR")
    format: Literal["table", "json", "csv"] = _option("table", OUTPUT, "What to print: a summary, or every row.")
    resume: bool = _option(False, OUTPUT, "Keep what is measured and measure the rest.", names=("--resume",))
    overwrite: bool = _option(False, OUTPUT, "Replace earlier results in the folder.", names=("--overwrite",))
    strict: bool = _option(
        False,
        OUTPUT,
        "Exit with code 2 where another convention explains the checkpoint better than the declared one.",
        names=("--strict",),
    )
    quiet: bool = _option(False, OUTPUT, "Print no progress and no notes; warnings remain.", names=("--quiet", "-q"))


_OF_SOME_TABLES = ("beta", "gamma", "batch_size", "estimator", "extra", "floor", "by", "posterior")


class GroupedCommand(TyperCommand):
    """A command whose --help lists options under the titles of their groups, its own first."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes one section for each group that has options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                argument = parameter.param_type_name == "argument"
                group = "Arguments" if argument else getattr(parameter, "rich_help_panel", None) or "Options"
                groups.setdefault(group, []).append(record)
        for title in ("Arguments", *_GROUPS):
            if title in groups:
                with formatter.section(title):
                    formatter.write_dl(groups[title])


def _parameters() -> dict[str, inspect.Parameter]:
    """The parameters of a command function that declares every shared option."""
    types = get_type_hints(Options)
    return {
        entry.name: inspect.Parameter(
            entry.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=entry.default,
            annotation=Annotated[types[entry.name], entry.metadata["typer"]],
        )
        for entry in fields(Options)
    }


def measuring(table: MeasuredTable) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Give a function of `Options` the command line of a measured table: every shared option that it takes."""
    left_out = set(_OF_SOME_TABLES) - set(table.options)
    return sharing(*(name for name in _parameters() if name not in left_out))


def sharing(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a function of `Options` and further options a command line: those, and the shared options in `names`.

    Shared options that are not in `names` keep their defaults.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        shared = _parameters()
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

        def command(**values: Any) -> None:
            function(Options(**{name: values.pop(name) for name in names}), **values)

        parameters = _ordered([shared[name] for name in names], own)
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__doc__ = function.__doc__
        return command

    return decorate


def _ordered(shared: Sequence[inspect.Parameter], own: Sequence[inspect.Parameter]) -> list[inspect.Parameter]:
    """The argument first, then the command's own options, then the shared ones."""
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    return [*(p for p in shared if p.name == "checkpoints"), *keyword, *(p for p in shared if p.name != "checkpoints")]
