"""`mfdiag times`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from mfdiag.cli.options import Options, sharing

__all__ = ["command"]


@sharing(
    "checkpoints",
    "model",
    "data",
    "weights",
    "proxy",
    "times",
    "source",
    "coupling",
    "path",
    "prediction",
    "guidance",
    "weighting",
    "derivative",
    "samples",
    "chunk",
    "bins",
    "engine",
    "seed",
    "device",
    "dtype",
    "out",
    "format",
    "quiet",
    "resume",
    "overwrite",
)
def command(
    options: Options,
    estimator: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:args]|FILE.py:name", help="Whose gradient; see `list estimators`. [default: meanflow]"
        ),
    ] = None,
    floor: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the trained density mixed in; weights are at most 1/floor.")
    ] = 0.1,
) -> None:
    """Find the density of (r, t) under which the gradient varies least, and try it on fresh samples.

    Samples drawn from it weigh p/q in the loss, p being the trained density, so that the objective is the same. Writes
    DIR/times-NAME.yaml, which `--times density:FILE` and the field `times` of a training specification read.

    Example: mfdiag times model.safetensors --samples 16384 --out results
    """
    from mfdiag.cli.job import run

    run("times", replace(options, estimator=[estimator] if estimator else None), floor=floor)
