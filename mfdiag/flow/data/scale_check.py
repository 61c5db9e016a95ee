"""Checks whether data look like what a model was trained on: the scale of their numbers, and their shape."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mfdiag.flow.data.datasets import Data, FiniteData, MomentsData
from mfdiag.flow.seeds import uniforms

__all__ = ["check_scale", "shape_hint", "whole_numbers_note"]

_MAX_RATIO = 2.5  # images in [-1, 1] have standard deviations from about 0.4, which needs no note
_NUMBERS = 2**22  # coordinates that the check reads
_LEAST_MAXIMUM = 32  # of whole numbers that look like pixels; counts, classes and masks stay below
_SAMPLES = (16, 256)  # fewest and most samples that the check reads
_SAME_ENCODER = 0.25  # relative difference of two scales, in logarithms, below which an encoder explains the ratio
_MAX_CHANNELS = 16  # more standard deviations would hide the note
_ENCODER_SCALES = {  # from the configuration of each encoder
    0.18215: "Stable Diffusion 1 and 2",
    0.13025: "Stable Diffusion XL",
    1.5305: "Stable Diffusion 3",
    0.3611: "FLUX.1",
}


def check_scale(data: Data, say: Callable[[str], None], *, std: float = 1.0) -> None:
    """Reports if the standard deviation of stored data differs by more than 2.5 times from what the model expects.

    The note has the mean and standard deviation over all coordinates, the standard deviation of each channel, and the
    scale that would correct it. Closed-form distributions are not checked.

    Args:
        data: The data.
        say: Receives the note.
        std: Standard deviation of the data that the model was trained on.
    """
    if not isinstance(data, FiniteData | MomentsData):
        return
    x = _first_samples(data)
    measured = float(x.std())
    if std / _MAX_RATIO <= measured <= std * _MAX_RATIO:
        return
    channels = [f"{value:.3g}" for value in x.swapaxes(0, 1).reshape(x.shape[1], -1).std(axis=1)]
    by_channel = f" (by channel: {', '.join(channels)})" if x.ndim > 2 and len(channels) <= _MAX_CHANNELS else ""
    say(
        f"{data.name}: the model card implies a standard deviation of about {std:.3g}, but {len(x)} samples have mean "
        f"{x.mean():.3g} and standard deviation {measured:.3g}{by_channel}. {_remedy(x, measured, std)}."
    )


def whole_numbers_note(data: Data) -> str | None:
    """What to say of stored data whose numbers are whole and in [0, 255], as images before any scaling; else None."""
    if not isinstance(data, FiniteData):
        return None
    x = _first_samples(data)
    if x.min() < 0 or not _LEAST_MAXIMUM <= x.max() <= 255 or not (x == np.round(x)).all():
        return None
    return (
        f"{data.name}: all numbers are whole, from {x.min():.0f} to {x.max():.0f}, and are used unscaled. If these are "
        "images in [0, 255], every result is on a wrong scale: add mean=127.5,std=127.5 to --data if the model was "
        "trained on [-1, 1], or std=255 if on [0, 1]."
    )


def _first_samples(data: FiniteData | MomentsData) -> np.ndarray:
    """Some samples of the data [n, *shape]."""
    fewest, most = _SAMPLES
    count = min(most, max(fewest, _NUMBERS // math.prod(data.shape)))
    return data.sample(uniforms(0, "scale", np.arange(count), data.width))[0]


def _remedy(x: np.ndarray, measured: float, std: float) -> str:
    """What to do, as a sentence without its full stop."""
    if not measured:
        return "All numbers are equal: check the file"
    if x.min() >= 0 and x.max() <= 255 and (x.max() <= 1 or (x == np.round(x)).all()):
        half = "0.5" if x.max() <= 1 else "127.5"
        return (
            f"These look like images in [0, {2 * float(half):.0f}]: add mean={half},std={half} to map them to [-1, 1]"
        )
    known = _encoder_scale(std / measured)
    factor = known or float(f"{std / measured:.3g}")
    name = f", the factor of {_ENCODER_SCALES[known]}," if known else ""
    scaled_already = _encoder_scale(measured / std) is not None
    alternative = "; if the data include an encoder's factor already, pass scale=1" if scaled_already else ""
    return f"With scale={factor:.5g}{name} it would be {factor * measured:.2g}{alternative}"


def _encoder_scale(factor: float) -> float | None:
    """The encoder scale nearest to `factor`, if it is close enough to explain it."""
    nearest = min(_ENCODER_SCALES, key=lambda scale: abs(math.log(factor / scale)))
    return nearest if abs(math.log(factor / nearest)) < _SAME_ENCODER else None


def shape_hint(shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """The key of a data specification that would turn samples of `shape` into `expected` ones, or ""."""
    if len(shape) > 1 and (shape[-1], *shape[:-1]) == expected:
        return "add layout=nhwc to --data"
    if shape and (shape[0] / 2, *shape[1:]) == expected:
        return "if these are an encoder's moments, add moments=logvar or moments=std to --data"
    return ""
