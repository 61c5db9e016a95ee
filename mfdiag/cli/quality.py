"""`mfdiag quality`."""

from __future__ import annotations

from typing import Annotated, Any

from mfdiag.cli.options import Options, grouped_option, sharing
from mfdiag.errors import InputError
from mfdiag.measures.quality import QualityRequest, summary

__all__ = ["command"]


Metrics = Annotated[
    list[str] | None,
    grouped_option(
        "Metric to measure, see `mfdiag list metrics`; repeatable. [default: all but many_step_distance; "
        "memorization with --held-out]",
        metavar="NAME",
    ),
]
Steps = Annotated[str, grouped_option("Numbers of steps, from t = 1 to 0 on an equal grid.", metavar="LIST")]
Weights = Annotated[str, grouped_option("Which weights to measure: ema, raw or a key, or several.", metavar="LIST")]
Samples = Annotated[
    int, grouped_option("Samples for sliced Wasserstein and Frechet distances, in 32 replicates of equal size.")
]
Subsample = Annotated[int, grouped_option("Points on each side for the other metrics, in each of 32 replicates.")]
HeldOut = Annotated[
    str | None,
    grouped_option(
        "Data of the same distribution that no model was trained on, as --data takes them; for memorization.",
        metavar="DATA",
    ),
]
FeatureCode = Annotated[
    str | None,
    grouped_option(
        "Code that builds a map from samples to features (it is run); metrics are computed on features.",
        metavar="FILE.py:factory|pkg.module:factory",
    ),
]


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
    "launcher",
    "address",
    "fail_fast",
    "out",
    "format",
    "strict",
    "quiet",
    "resume",
    "overwrite",
)
def command(
    options: Options,
    metric: Metrics = None,
    nfe: Steps = "1,2,4",
    weights: Weights = "raw",
    samples: Samples = 32768,
    subsample: Subsample = 512,
    held_out: HeldOut = None,
    features: FeatureCode = None,
) -> None:
    """Measure sample quality: distances between samples of the model and the data, at 1, 2, ... steps.

    Checkpoints that differ only in their training seed also get the mean over seeds, with its interval.

    Example: mfdiag quality model.safetensors --nfe 1,2,4 --weights raw,ema --out results
    """
    from mfdiag.cli.measuring import session
    from mfdiag.measures.quality import QualityJob
    from mfdiag.measures.run.choice import code_record
    from mfdiag.measures.run.subject import SubjectOptions

    own = {
        "nfe": _steps(nfe),
        "weights": [key.strip() for key in weights.split(",")],
        "samples": samples,
        "subsample": subsample,
        "held_out": held_out,
    }
    read = {name: getattr(options, name) for name in ("model", "data", "source", "path", "prediction")}
    with session(options) as work:
        request = _request(options, metric, features, **own)
        subject, recorded = SubjectOptions(proxy="self", **read), {**read, **code_record(options.model, options.data)}
        job = QualityJob(work.checkpoints, subject, request, recorded=recorded, progress=work.progress, say=work.say)
        outcome = work.run(job)
    work.show("quality", outcome, summary)


def _request(options: Options, metric: list[str] | None, features: str | None, **own: Any) -> QualityRequest:
    """What to measure; `own` are further fields of the request."""
    import torch

    from mfdiag.cli.device import checked_device
    from mfdiag.cli.measuring import parse_chunk
    from mfdiag.quality.features import load_features
    from mfdiag.quality.metrics import default_metrics

    dtype, device = getattr(torch, options.dtype), checked_device(options.device, options.launcher)
    return QualityRequest(
        metrics=metric or default_metrics(held_out=own["held_out"] is not None),
        seed=options.seed,
        features_name=features,
        features=None if features is None else load_features(features, device, dtype),
        dtype=dtype,
        device=device,
        chunk=parse_chunk(options.chunk),
        **own,
    )


def _steps(text: str) -> list[int]:
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(piece.isdecimal() and 1 <= int(piece) <= 10_000 for piece in pieces):
        raise InputError(f"--nfe takes numbers of steps from 1 to 10,000, as in 1,2,4; got {text!r}.")
    return [int(piece) for piece in dict.fromkeys(pieces)]
