"""`mfdiag compare`."""

from __future__ import annotations

from mfdiag.cli.options import Options, measuring
from mfdiag.measures.compare import TABLE

__all__ = ["command"]


@measuring(TABLE)
def command(options: Options) -> None:
    """Compare every estimator with MeanFlow on the same samples: variance, bias, MSE_n, cost and the best mixture.

    Example: mfdiag compare model.safetensors --proxy teacher=teacher.safetensors --out results
    """
    from mfdiag.cli.measuring import measure_table

    measure_table(TABLE, options)
