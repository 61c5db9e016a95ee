"""The options that measuring commands share, declared once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

__all__ = ["Options", "measuring", "sharing"]


@dataclass(frozen=True)
class Options:
    """Options of a measuring command as typed; None where the command's or the checkpoint's default holds."""

    checkpoints: list[Path]
    model: str | None
    data: str | None
    weights: str
    proxy: str | None
    times: str | None
    source: str | None
    coupling: str | None
    path: str | None
    prediction: str | None
    guidance: str | None
    derivative: str | None
    weighting: str | None
    samples: int
    chunk: str
    bins: str | None
    by: str | None
    engine: str
    seed: int
    posterior: str
    device: str
    dtype: str
    out: Path
    format: str
    quiet: bool
    resume: bool
    overwrite: bool
    beta: str = "0:1:0.05"
    gamma: str = "0"
    batch_size: list[int] | None = None
    estimator: list[str] | None = None
    extra: list[str] | None = None


def _template(
    checkpoints: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[CHECKPOINT]...", help="Saved models; the bundled one if none is named."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:factory|pkg.module:factory|CARD.yaml",
            help="Code that builds the network (it is run), for checkpoints that do not describe themselves, or a "
            "model card that names the code and says how to call it, see `list cards`.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH[:key=value,...]",
            help="Data the model was trained on: see `list datasets`, and docs/data.md for files and folders. "
            "[default: the checkpoint's]",
        ),
    ] = None,
    weights: Annotated[str, typer.Option(metavar="ema|raw|KEY", help="Which weights are measured.")] = "raw",
    proxy: Annotated[
        str | None,
        typer.Option(
            metavar="self|ema|exact|teacher=PATH[@MODEL]",
            help="Where the proxy velocity vhat comes from; MODEL is for a teacher what --model is. [default: the "
            "model card's, ema where the file has it, else self]",
        ),
    ] = None,
    times: Annotated[
        str | None,
        typer.Option(metavar="NAME[:args]", help="Sampler of (r, t), see `list times`. [default: the checkpoint's]"),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="NAME[:args]", help="What x_1 is, see `list sources`. [default: the checkpoint's]"),
    ] = None,
    coupling: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:args]", help="Which x_0 meets which x_1, see `list couplings`. [default: the checkpoint's]"
        ),
    ] = None,
    path: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="From x_0 to x_1, see `list paths`. [default: the checkpoint's]"),
    ] = None,
    prediction: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:args]",
            help="What the network's output stands for, see `list predictions`. [default: the checkpoint's]",
        ),
    ] = None,
    guidance: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:args]",
            help="Guidance built into the objective, and the share of null labels, see `list guidances`. [default: the "
            "model card's, else none]",
        ),
    ] = None,
    derivative: Annotated[
        str | None,
        typer.Option(
            metavar="auto|jvp|difference[:h]",
            help="How du/dx v + du/dt is taken: exactly, or by central differences of step h in time, or of the step "
            "of least error. [default: the model card's, else exactly where the network can]",
        ),
    ] = None,
    weighting: Annotated[
        str | None,
        typer.Option(
            metavar="none|adaptive:p,eps",
            help="Loss weight per sample; adaptive takes the sum of squares, or with `,mean` or `,square` at its end "
            "their mean or the square of their sum. [default: the model card's, else none]",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Number of samples (x_0, x_1, r, t).")] = 4096,
    chunk: Annotated[str, typer.Option(metavar="auto|N", help="Samples at once; changes no result.")] = "auto",
    bins: Annotated[
        str | None,
        typer.Option(metavar="R,T", help="Bins of r and t, or none. [default: 5,5; none for sweep; 1,5 for compare]"),
    ] = None,
    by: Annotated[
        Literal["layer", "time", "none"] | None,
        typer.Option(help="Break results down. [default: layer for variance and compare, else none]"),
    ] = None,
    engine: Annotated[
        Literal["auto", "fast", "reference"], typer.Option(help="How per-sample gradients are met; reference is slow.")
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Sample i depends on (seed, i) alone.")] = 0,
    posterior: Annotated[
        Literal["auto", "exact", "none"],
        typer.Option(help="The exact posterior over the data; auto leaves it out where it would take minutes."),
    ] = "auto",
    device: Annotated[str, typer.Option(help="Where the network runs.")] = "cpu",
    dtype: Annotated[Literal["float32", "float64"], typer.Option(help="Precision of the network.")] = "float32",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of tables and figures.")] = Path("mfdiag-results"),
    format: Annotated[
        Literal["table", "json", "csv"], typer.Option(help="What stdout gets: a summary, or every row.")
    ] = "table",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what is measured, go on with the rest.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results in the folder.")] = False,
    beta: Annotated[
        str, typer.Option(metavar="A:B:STEP|LIST", help="Tangent coefficients, ends included, or a comma list.")
    ] = "0:1:0.05",
    gamma: Annotated[str, typer.Option(metavar="A:B:STEP|LIST", help="Target coefficients, likewise.")] = "0",
    batch_size: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="n of MSE_n; repeatable. [default: 1, 64, 4096, 65536, 1048576]"),
    ] = None,
    estimator: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:args]|FILE.py:name",
            help="See `list estimators`; repeatable, or `all`. A file's code is run. "
            "[default: meanflow and ema_tangent; all for compare]",
        ),
    ] = None,
    extra: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Quantities that cost further passes: `semi_gradient_gap`, or `divergence` above 16 dimensions; "
            "repeatable.",
        ),
    ] = None,
) -> None: ...


_ONLY_SOME = {"beta", "gamma", "batch_size", "estimator", "extra"}


def measuring(*own: str) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Gives a function of `Options` the shared command line, plus those of the rarer options it names."""

    def decorate(function: Callable[[Options], None]) -> Callable[..., None]:
        def command(**given: Any) -> None:
            function(Options(**{**given, "checkpoints": given["checkpoints"] or []}))

        shared = inspect.signature(_template, eval_str=True)
        kept = [p for name, p in shared.parameters.items() if name not in _ONLY_SOME - set(own)]
        command.__signature__ = shared.replace(parameters=kept)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in kept}
        command.__doc__ = function.__doc__
        return command

    return decorate


def sharing(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a function of `Options` and options of its own a command line of these and of the shared ones in `names`.

    Shared options that are not named keep their defaults.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        template = inspect.signature(_template, eval_str=True)
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        defaults = {name: p.default for name, p in template.parameters.items()}

        def command(**given: Any) -> None:
            shared = defaults | {name: given.pop(name) for name in names}
            function(Options(**{**shared, "checkpoints": shared["checkpoints"] or []}), **given)

        kept = [template.parameters[name] for name in names]
        command.__signature__ = template.replace(parameters=[*kept[:1], *own, *kept[1:]])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in (*kept, *own)}
        command.__doc__ = function.__doc__
        return command

    return decorate
