"""Scales on which the data may have been when a network was trained: factors on the declared data, and shifts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from mfdiag.flow.data.datasets import Data, FiniteData, MomentsData

__all__ = ["data_scales", "stored_scaling"]

_LATENTS = (0.18215, 0.18125, 0.3099, 0.13025, 1.5305, 0.3611)
"""Factors on stored latents: Stable Diffusion 1 and 2, zhuyu-cs/MeanFlow, SwayStar123/MeanFlow, Stable Diffusion XL and
3, FLUX.1."""

_RANGES = ((0.0, 255.0), (0.0, 1.0), (-1.0, 1.0))  # of images as bytes, and as networks take them
_POWERS = (0.01, 0.1, 0.25, 0.5, 2.0, 4.0, 10.0, 100.0)
_SMALL = 0.02  # relative room in the range of images


def stored_scaling(data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Factor and shift from the stored numbers to the declared data; 1 and 0 where they are the same."""
    scaling = None
    if isinstance(data, FiniteData):
        scaling = getattr(data.points, "scaling", None)
    elif isinstance(data, MomentsData):
        scaling = data.moments.scaling
    return (np.ones(()), np.zeros(())) if scaling is None else (scaling.factor, scaling.shift)


def data_scales(data: Data, sample: np.ndarray) -> Sequence[tuple[float, float]]:
    """Factors on the declared data and shifts after that, the declared scale first.

    Args:
        data: The declared data.
        sample: Some of its samples [n, *shape].

    Returns:
        Pairs (factor, shift), each once.
    """
    factor, shift = stored_scaling(data)
    pairs = [(1.0, 0.0), *_images(sample)]  # the most frequent ones first
    if factor.size == 1:
        own, offset = float(factor.reshape(())), float(shift.reshape(-1)[0])
        pairs += [(scale / own, -scale * offset / own) for scale in (1.0, *_LATENTS)]
        pairs += [(scale / own, more - scale * offset / own) for scale, more in _images((sample - offset) / own)]
        pairs += [(1 / scale, 0.0) for scale in _LATENTS]  # the stored data include a factor
    else:
        pairs += [(scale, 0.0) for scale in (*_LATENTS, *(1 / scale for scale in _LATENTS))]
    pairs += [(power, 0.0) for power in _POWERS]
    distinct: list[tuple[float, float]] = []
    for pair in pairs:
        if not any(math.isclose(pair[0], k, rel_tol=1e-9) and abs(pair[1] - b) < 1e-9 for k, b in distinct):
            distinct.append(pair)
    return distinct


def _images(sample: np.ndarray) -> Iterator[tuple[float, float]]:
    """The scales of images, for samples whose numbers have the range of one of them."""
    low, high = float(sample.min()), float(sample.max())
    for start, end in _RANGES:
        room = _SMALL * (end - start)
        fills = high - low >= (end - start) / 2
        if not (start - room <= low and high <= end + room and fills):
            continue
        for other_start, other_end in _RANGES:
            factor = (other_end - other_start) / (end - start)
            yield factor, other_start - factor * start
        return
