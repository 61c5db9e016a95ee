"""`mfdiag sweep`."""

from __future__ import annotations

from mfdiag.cli.options import Options, measuring
from mfdiag.measures.sweep import TABLE

__all__ = ["command"]


@measuring(TABLE)
def command(options: Options) -> None:
    """Sweep beta (and gamma): gradient variance, bias and MSE_n, from one pass over the samples.

    Example: mfdiag sweep model.safetensors --beta 0:1:0.05 --batch-size 512 --out results
    """
    from mfdiag.cli.measuring import measure_table

    measure_table(TABLE, options)
