"""`mfdiag quality`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mfdiag.cli.options import Options, sharing
from mfdiag.errors import InputError

if TYPE_CHECKING:
    from mfdiag.measures.request import Subject

__all__ = ["command"]


@sharing(
    "checkpoints",
    "model",
    "data",
    "source",
    "path",
    "prediction",
    "chunk",
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
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Repeatable, see `list metrics`. [default: all]")
    ] = None,
    nfe: Annotated[str, typer.Option(metavar="LIST", help="Numbers of steps, from t = 1 to 0 on an equal grid.")] = (
        "1,2,4"
    ),
    weights: Annotated[
        str, typer.Option(metavar="LIST", help="Which weights are measured: ema, raw or a key, or several.")
    ] = "raw",
    samples: Annotated[
        int, typer.Option(help="Samples for sliced Wasserstein and Frechet distances, rounded up to 32 replicates.")
    ] = 32768,
    subsample: Annotated[
        int, typer.Option(help="Points on each side for the other metrics, in each of 32 replicates.")
    ] = 512,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.py:factory|pkg.module:factory",
            help="Code that builds a map from samples to features (it is run), under which all metrics are taken.",
        ),
    ] = None,
) -> None:
    """Sample quality: distances between samples of the model and the data, at 1, 2, ... steps.

    Checkpoints that differ only in the seed they were trained with also get the mean over seeds, with its interval.

    Example: mfdiag quality model.safetensors --nfe 1,2,4 --weights raw,ema --out results
    """
    import torch

    from mfdiag.cli.device import checked_device
    from mfdiag.cli.job import chunk_of, present
    from mfdiag.measures.subject import load_subject
    from mfdiag.quality.features import load_features
    from mfdiag.quality.job import QualityRequest, run_quality
    from mfdiag.quality.metrics import metrics

    dtype, device = getattr(torch, options.dtype), checked_device(options.device)
    request = QualityRequest(
        metrics=metric or list(metrics()),
        nfe=_steps(nfe),
        weights=[key.strip() for key in weights.split(",")],
        samples=samples,
        subsample=subsample,
        seed=options.seed,
        features_name=features,
        features=None if features is None else load_features(features, device, dtype),
        dtype=dtype,
        device=device,
        chunk=chunk_of(options.chunk),
    )
    axes = {name: getattr(options, name) for name in ("source", "path", "prediction")}

    def load(path: Path, key: str) -> Subject:
        return load_subject(
            path, model=options.model, data=options.data, weights=key, proxy="self", say=lambda _: None, **axes
        )

    present(
        "quality",
        options,
        lambda checkpoints, mode, progress, say: run_quality(
            checkpoints,
            load,
            request,
            options.out,
            mode,
            options={"model": options.model, "data": options.data, **axes},
            progress=progress,
            say=say,
        ),
    )


def _steps(text: str) -> list[int]:
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(piece.isdecimal() and 1 <= int(piece) <= 10_000 for piece in pieces):
        raise InputError(f"--nfe takes numbers of steps from 1 to 10,000, as in 1,2,4; got {text!r}.")
    return [int(piece) for piece in dict.fromkeys(pieces)]
