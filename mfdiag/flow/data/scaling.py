"""From numbers as they are stored to samples on the scale a model was trained on.

    x_0 = scale (z - mean) / std        z as stored, mean and std per channel

z itself may be drawn: encoders of the variational kind store the moments of z, which is N(m, s^2) then.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mfdiag.errors import InputError
from mfdiag.flow.data.disk_arrays import Points
from mfdiag.flow.data.files import as_numpy, read_arrays, reading

__all__ = ["LatentMoments", "Numbers", "Scaled", "Scaling", "channels_first", "make_scaling", "read_statistics"]

Numbers = float | Sequence[float] | np.ndarray


class Scaling(NamedTuple):
    """x_0 = factor z + shift, both of a shape that broadcasts over samples [n, *shape] with channels first."""

    factor: np.ndarray
    shift: np.ndarray

    @property
    def identity(self) -> bool:
        """Whether it changes nothing."""
        return bool((self.factor == 1).all() and (self.shift == 0).all())


class Scaled:
    """Points on the model's scale, channels first: rows of `stored`, read and scaled when they are asked for."""

    def __init__(self, stored: Points, scaling: Scaling, last: bool) -> None:
        self._stored, self._scaling, self._last = stored, scaling, last
        self.shape = (stored.shape[0], *channels_first(stored.shape[1:], last))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """Samples float64 [n, *shape]."""
        found = self._stored[rows]
        return self._scaling.factor * (np.moveaxis(found, -1, 1) if self._last else found) + self._scaling.shift


class LatentMoments:
    """Means and standard deviations of z on the model's scale, from 2C channels of the points `stored` [N, 2C, ...].

    `shape` is [N, C, ...], that of the samples. The second half of the channels are standard deviations or, with
    `logvar`, the logarithms of variances.
    """

    def __init__(self, stored: Points, scaling: Scaling, last: bool, logvar: bool) -> None:
        channels, *rest = channels_first(stored.shape[1:], last)
        self._stored, self._scaling, self._last, self._logvar = stored, scaling, last, logvar
        self.shape = (stored.shape[0], channels // 2, *rest)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations, each float64 [n, C, ...]."""
        found = np.asarray(self._stored[rows], dtype=np.float64)
        mean, spread = np.split(np.moveaxis(found, -1, 1) if self._last else found, 2, axis=1)
        # diffusers' DiagonalGaussianDistribution bounds log-variances so; below, z is its mean to float32's last digit
        std = np.exp(spread.clip(-30, 20) / 2) if self._logvar else np.abs(spread)
        return self._scaling.factor * mean + self._scaling.shift, np.abs(self._scaling.factor) * std


def channels_first(shape: Sequence[int], last: bool) -> tuple[int, ...]:
    """The shape of a sample with its channels first; `last` says that they are last in `shape`."""
    return (shape[-1], *shape[:-1]) if last else tuple(shape)


def make_scaling(
    spec: str, shape: tuple[int, ...], scale: Numbers | None, mean: Numbers | None, std: Numbers | None
) -> Scaling:
    """The scaling of samples of `shape`, channels first; None stands for 1, 0 and 1. `spec` is named in errors.

    Each is one number, or one for each channel, or one for each coordinate. Raises InputError for other counts, and
    for a std that is not above 0 or a scale of 0.
    """
    by_scale, by_mean, by_std = (
        _broadcast(spec, key, default if value is None else value, shape)
        for key, value, default in (("scale", scale, 1.0), ("mean", mean, 0.0), ("std", std, 1.0))
    )
    if not (by_std > 0).all() or not (by_scale != 0).all():
        raise InputError(f"{spec}: std must be above 0, and scale not 0.")
    return Scaling(by_scale / by_std, -by_mean * by_scale / by_std)


def _broadcast(spec: str, key: str, value: Numbers, shape: tuple[int, ...]) -> np.ndarray:
    """`value` as an array that broadcasts over samples [n, *shape]."""
    numbers = np.asarray(value, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise InputError(f"{spec}: {key} is not finite.")
    if numbers.size == 1:
        return numbers.reshape(())
    if numbers.size == shape[0]:
        return numbers.reshape(-1, *[1] * (len(shape) - 1))
    if numbers.size == math.prod(shape) and numbers.shape[-len(shape) :] == shape:
        return numbers.reshape(shape)
    raise InputError(
        f"{spec}: {key} has shape {list(numbers.shape)}, but samples have {shape[0]} channels (shape {list(shape)}); "
        "give one number, or one for each channel, or say where the channels are by layout=."
    )


def read_statistics(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation in a .json or array file, by these names or latent_mean and the like.

    A var gives the standard deviation where there is no std. Raises InputError where the file has neither.
    """

    def wanted(arrays: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        names = {name.removeprefix("latents_").removeprefix("latent_"): name for name in arrays}
        if "mean" not in names or not {"std", "var"} & names.keys():
            found = ", ".join(name or "an array without a name" for name in arrays) or "none"
            raise InputError(f"{path}: expected mean and std (or var), found {found}.")
        mean, spread = (
            np.asarray(as_numpy(arrays[names[key]]), dtype=np.float64)
            for key in ("mean", "std" if "std" in names else "var")
        )
        return mean, spread if "std" in names else np.sqrt(spread)

    if path.suffix.lower() == ".json":
        with reading(str(path)):
            return wanted({key: np.asarray(value) for key, value in json.loads(path.read_text("utf-8")).items()})
    return read_arrays(path, str(path), wanted)
