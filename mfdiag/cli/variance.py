"""`mfdiag variance`."""

from __future__ import annotations

from mfdiag.cli.options import Options, measuring

__all__ = ["command"]


@measuring("estimator", "extra")
def command(options: Options) -> None:
    """Gradient statistics: how large the variance is, and which layers, times and samples it comes from.

    Example: mfdiag variance model.safetensors --estimator meanflow --bins 5,5 --out results
    """
    from mfdiag.cli.job import run

    run("variance", options)
