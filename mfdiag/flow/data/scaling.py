"""From numbers as stored to samples on the scale that a model was trained on.

    x_0 = scale (z - mean) / std        z as stored, mean and std per channel

z itself may be random: variational encoders store the moments m and s of z ~ N(m, s^2).
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
from mfdiag.flow.data.files import as_numpy, parser_errors, read_arrays
from mfdiag.inputs import note_read
from mfdiag.storage import read_text

__all__ = ["LatentMoments", "Numbers", "ScaledPoints", "Scaling", "channels_first", "make_scaling", "read_statistics"]

Numbers = float | Sequence[float] | np.ndarray

_LOGVAR_RANGE = (
    -30,
    20,
)  # as in diffusers' DiagonalGaussianDistribution; at -30, z is its mean to float32's last digit


class Scaling(NamedTuple):
    """x_0 = factor z + shift, both of a shape that broadcasts over samples [n, *shape] with channels first."""

    factor: np.ndarray
    shift: np.ndarray

    @property
    def identity(self) -> bool:
        """Whether it changes nothing."""
        return bool((self.factor == 1).all() and (self.shift == 0).all())


class ScaledPoints:
    """Points on the model's scale, channels first. Rows of `stored` are read and scaled when they are accessed."""

    def __init__(self, stored: Points, scaling: Scaling, channels_last: bool) -> None:
        self._stored, self.scaling, self._channels_last = stored, scaling, channels_last
        self.shape = (stored.shape[0], *channels_first(stored.shape[1:], channels_last))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """Samples float64 [n, *shape]."""
        z = self._stored[rows]
        return self.scaling.factor * (np.moveaxis(z, -1, 1) if self._channels_last else z) + self.scaling.shift


class LatentMoments:
    """Means and standard deviations of z on the model's scale, from the 2C channels of `stored` [N, 2C, ...].

    The second half of the channels holds standard deviations or, with `logvar`, logarithms of variances. `shape` is
    [N, C, ...], the shape of the samples.
    """

    def __init__(self, stored: Points, scaling: Scaling, channels_last: bool, logvar: bool) -> None:
        channels, *rest = channels_first(stored.shape[1:], channels_last)
        self._stored, self.scaling, self._channels_last, self._logvar = stored, scaling, channels_last, logvar
        self.shape = (stored.shape[0], channels // 2, *rest)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations, each float64 [n, C, ...]."""
        z = np.asarray(self._stored[rows], dtype=np.float64)
        mean, spread = np.split(np.moveaxis(z, -1, 1) if self._channels_last else z, 2, axis=1)
        std = np.exp(spread.clip(*_LOGVAR_RANGE) / 2) if self._logvar else np.abs(spread)
        return self.scaling.factor * mean + self.scaling.shift, np.abs(self.scaling.factor) * std


def channels_first(shape: Sequence[int], channels_last: bool) -> tuple[int, ...]:
    """The shape of a sample with its channels first. `channels_last` says that they are last in `shape`."""
    return (shape[-1], *shape[:-1]) if channels_last else tuple(shape)


def make_scaling(
    spec: str, shape: tuple[int, ...], scale: Numbers | None, mean: Numbers | None, std: Numbers | None
) -> Scaling:
    """The scaling x_0 = scale (z - mean) / std. Each of the three is one number, or one per channel or coordinate.

    Args:
        spec: The specification of the data, for errors.
        shape: Shape of a sample, channels first.
        scale: Not 0; None is 1.
        mean: None is 0.
        std: Above 0; None is 1.

    Returns:
        The scaling.

    Raises:
        InputError: A wrong count of numbers, or a number outside its range.
    """
    by_scale, by_mean, by_std = (
        _broadcast(spec, key, default if value is None else value, shape)
        for key, value, default in (("scale", scale, 1.0), ("mean", mean, 0.0), ("std", std, 1.0))
    )
    if not (by_std > 0).all() or not (by_scale != 0).all():
        raise InputError(f"{spec}: std must be above 0, and scale must not be 0.")
    return Scaling(by_scale / by_std, -by_mean * by_scale / by_std)


def _broadcast(spec: str, key: str, value: Numbers, shape: tuple[int, ...]) -> np.ndarray:
    """`value` as an array that broadcasts over samples [n, *shape]."""
    numbers = np.asarray(value, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise InputError(f"{spec}: {key} must be finite.")
    if numbers.size == 1:
        return numbers.reshape(())
    if numbers.size == shape[0]:
        return numbers.reshape(-1, *[1] * (len(shape) - 1))
    if numbers.size == math.prod(shape) and numbers.shape[-len(shape) :] == shape:
        return numbers.reshape(shape)
    raise InputError(
        f"{spec}: expected one number for {key} or one for each of {shape[0]} channels (samples have shape "
        f"{list(shape)}), but {key} has shape {list(numbers.shape)}. Pass another {key}, or set layout=."
    )


def read_statistics(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation in a .json or array file, under these names or latent_mean and the like.

    A variance (`var`) gives the standard deviation if there is no std. Raises InputError if the file has neither.
    """

    def select(arrays: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        names = {name.removeprefix("latents_").removeprefix("latent_"): name for name in arrays}
        if "mean" not in names or not {"std", "var"} & names.keys():
            present = ", ".join(name or "an array without a name" for name in arrays) or "none"
            raise InputError(f"{path}: expected mean and std (or var), but the file has {present}. Rename the arrays.")
        mean, spread = (
            np.asarray(as_numpy(arrays[names[key]]), dtype=np.float64)
            for key in ("mean", "std" if "std" in names else "var")
        )
        return mean, spread if "std" in names else np.sqrt(spread)

    if path.suffix.lower() == ".json":
        note_read(path)
        with parser_errors(str(path)):
            return select({key: np.asarray(value) for key, value in json.loads(read_text(path)).items()})
    return read_arrays(path, str(path), select)
