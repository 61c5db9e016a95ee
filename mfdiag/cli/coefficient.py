"""`mfdiag coefficient`."""

from __future__ import annotations

from mfdiag.cli.options import Options, measuring
from mfdiag.measures.coefficient import TABLE

__all__ = ["command"]


@measuring(TABLE)
def command(options: Options) -> None:
    """Compute optimal control-variate coefficients in closed form, by form, cell of (r, t) and batch size.

    Example: mfdiag coefficient model.safetensors --bins 5,5 --batch-size 512 --out results
    """
    from mfdiag.cli.measuring import measure_table

    measure_table(TABLE, options)
