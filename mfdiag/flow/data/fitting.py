"""Whether data look like what a model was trained on: their shape, and the scale of their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from mfdiag.flow.data.datasets import Data, FiniteData, MomentsData
from mfdiag.flow.seeds import uniforms

__all__ = ["check_scale", "shape_hint"]

_FACTOR = 2.5  # images in [-1, 1] have standard deviations from about 0.4 on, and are no reason for a note
_NUMBERS = 2**22  # coordinates looked at, in 16 to 256 samples
_ENCODERS = {  # scaling factors in the configuration of each encoder
    0.18215: "Stable Diffusion 1 and 2",
    0.13025: "Stable Diffusion XL",
    1.5305: "Stable Diffusion 3",
    0.3611: "FLUX.1",
}


def check_scale(data: Data, say: Callable[[str], None], *, std: float = 1.0) -> None:
    """Says where samples of stored data differ from `std`, that of a model's training data, by more than 2.5 times.

    The note has mean and standard deviation over all coordinates, the latter also by channel, and the scale that
    would fit. Laws in closed form are not looked at.
    """
    if not isinstance(data, FiniteData | MomentsData):
        return
    count = min(256, max(16, _NUMBERS // math.prod(data.shape)))
    x, _ = data.sample(uniforms(0, "scale", np.arange(count), data.width))
    found = float(x.std())
    if std / _FACTOR <= found <= std * _FACTOR:
        return
    channels = [f"{value:.3g}" for value in x.swapaxes(0, 1).reshape(x.shape[1], -1).std(axis=1)]
    by_channel = f" ({', '.join(channels)} by channel)" if x.ndim > 2 and len(channels) <= 16 else ""
    say(
        f"{data.name}: over {count} samples the mean is {x.mean():.3g} and the standard deviation {found:.3g}"
        f"{by_channel}, but the card lets expect about {std:.3g}: {_remedy(x, found, std)}."
    )


def _remedy(x: np.ndarray, found: float, std: float) -> str:
    """The scale that would fit, in words."""
    if not found:
        return "all numbers are the same; check the file"
    if x.min() >= 0 and x.max() <= 255 and (x.max() <= 1 or (x == np.round(x)).all()):
        half = "0.5" if x.max() <= 1 else "127.5"
        return f"these look like images from 0 to {2 * float(half):.0f}; add mean={half},std={half} for [-1, 1]"
    known = _encoder(std / found)
    factor = known or float(f"{std / found:.3g}")
    name = f", the factor of {_ENCODERS[known]}," if known else ""
    again = "; if an encoder's factor is in them already, pass scale=1" if _encoder(found / std) else ""
    return f"times {factor:.5g}{name} it would be {factor * found:.2g}{again}"


def _encoder(factor: float) -> float | None:
    """The encoder's scaling factor nearest to `factor`, if it is within a quarter."""
    nearest = min(_ENCODERS, key=lambda known: abs(math.log(factor / known)))
    return nearest if abs(math.log(factor / nearest)) < 0.25 else None


def shape_hint(shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    """The word of the data's specification that would turn samples of `shape` into `expected` ones; "" for none."""
    if len(shape) > 1 and (shape[-1], *shape[:-1]) == expected:
        return "add layout=nhwc to --data"
    if shape and (shape[0] / 2, *shape[1:]) == expected:
        return "if these are an encoder's moments, add moments=logvar or moments=std to --data"
    return ""
