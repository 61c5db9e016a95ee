"""`mfdiag variance`."""

from __future__ import annotations

from mfdiag.cli.options import Options, measuring
from mfdiag.measures.variance import TABLE

__all__ = ["command"]


@measuring(TABLE)
def command(options: Options) -> None:
    """Measure gradient statistics: how large the variance is, and which layers, times and samples it comes from.

    Example: mfdiag variance model.safetensors --estimator meanflow --bins 5,5 --out results
    """
    from mfdiag.cli.measuring import measure_table

    measure_table(TABLE, options)
