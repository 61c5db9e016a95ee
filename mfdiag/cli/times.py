"""`mfdiag times`."""

from __future__ import annotations

from mfdiag.cli.options import Options, measuring
from mfdiag.measures.times import TABLE

__all__ = ["command"]


@measuring(TABLE)
def command(options: Options) -> None:
    """Find the density of (r, t) with the lowest gradient variance, and test it on new samples.

    Samples drawn from it get the loss weight p/q, where p is the trained density, so that the objective stays the same.
    Writes DIR/times-NAME.yaml, which `--times density:FILE` and the field `times` of a training specification read.

    Example: mfdiag times model.safetensors --samples 16384 --out results
    """
    from mfdiag.cli.measuring import measure_table

    measure_table(TABLE, options)
