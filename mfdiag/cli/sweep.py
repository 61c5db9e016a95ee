"""`mfdiag sweep`."""

from __future__ import annotations

from mfdiag.cli.options import Options, measuring

__all__ = ["command"]


@measuring("beta", "gamma", "batch_size")
def command(options: Options) -> None:
    """Sweep beta (and gamma): gradient variance, bias and MSE_n, from one pass over the samples.

    Example: mfdiag sweep model.safetensors --beta 0:1:0.05 --batch-size 512 --out results
    """
    from mfdiag.cli.job import run

    run("sweep", options)
