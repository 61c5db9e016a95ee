"""Samples that stay on disk: arrays in many files, read row by row as they are drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mfdiag.errors import InputError
from mfdiag.flow.data.files import as_numpy, check_kind, checked_labels, chosen_names, labels_beside, read_arrays

__all__ = ["Points", "Shards", "Stored", "tiles"]


class Points(Protocol):
    """What a finite data set needs of its samples: an array [N, *shape], or something read like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, *shape]."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """The samples of a slice, or of an array of row numbers or of truth values."""


def tiles(rows: np.ndarray, size: int = 2048) -> Iterator[np.ndarray]:
    """Row numbers in pieces of `size`: what is held together of data that may not fit in memory."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class Stored(ABC):
    """Rows [N, *shape] on disk. Those asked for together are each read once, in the order they lie there."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The rows of a slice, of row numbers or of a mask, float32 or float64.

        Raises InputError where what is read is damaged, of another shape, or not finite.
        """
        if isinstance(rows, slice):
            index = np.arange(*rows.indices(len(self)))
        else:
            index = np.flatnonzero(rows) if rows.dtype == bool else rows
        if not len(index):
            return np.empty((0, *self.shape[1:]), dtype=np.float32)
        ascending, place = np.unique(index, return_inverse=True)
        found = self._read(ascending)
        bad = np.flatnonzero(~np.isfinite(found).reshape(len(found), -1).all(axis=1))
        if len(bad):
            raise InputError(f"{self._place(ascending[bad[0]])} holds NaN or infinite values; remove it.")
        return found[place]

    @abstractmethod
    def _read(self, rows: np.ndarray) -> np.ndarray:
        """The rows, ascending and different from each other, float32 or float64."""

    @abstractmethod
    def _place(self, row: int) -> str:
        """Where a row lies, for errors."""


@dataclass(frozen=True)
class _Shard:
    path: Path
    shape: tuple[int, ...]
    labels: np.ndarray | None


class Shards(Stored):
    """Arrays [n_k, *shape] in several files, one after the other.

    Files are memory-mapped when they are read from, except .npz, which is read whole each time. `labels` are int64 [N],
    from NAME_labels.npy beside NAME.npy or from the file itself, or None. Raises InputError for shards of different
    shapes, with labels for some alone, or that are truncated.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        shards = [_shard(path) for path in paths]
        first = shards[0]
        for shard in shards:
            if shard.shape[1:] != first.shape[1:]:
                raise InputError(
                    f"{shard.path} holds samples of shape {list(shard.shape[1:])}, but {first.path} of "
                    f"{list(first.shape[1:])}; samples of one data set share their shape."
                )
            if (shard.labels is None) != (first.labels is None):
                bare, other = (shard, first) if shard.labels is None else (first, shard)
                raise InputError(f"{bare.path} has no labels, but {other.path} has; give all of them labels, or none.")
        self._paths = [shard.path for shard in shards]
        self._starts = np.cumsum([0, *(shard.shape[0] for shard in shards)])
        labels = [shard.labels for shard in shards if shard.labels is not None]
        self.labels = np.concatenate(labels) if labels else None
        super().__init__((int(self._starts[-1]), *first.shape[1:]))

    def _read(self, rows: np.ndarray) -> np.ndarray:
        shard = self._shard_of(rows)
        return np.concatenate([_take(self._paths[k], rows[shard == k] - self._starts[k]) for k in np.unique(shard)])

    def _place(self, row: int) -> str:
        shard = int(self._shard_of(np.array([row]))[0])
        return f"{self._paths[shard]}, sample {row - self._starts[shard]}"

    def _shard_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1


def _shard(path: Path) -> _Shard:
    def look(arrays: Mapping[str, Any]) -> tuple[tuple[int, ...], np.ndarray | None]:
        data, label = chosen_names(path, arrays.keys())
        return tuple(arrays[data].shape), None if label is None else as_numpy(arrays[label])

    shape, labels = read_arrays(path, str(path), look)
    if path.suffix.lower() == ".npy":
        labels = labels_beside(path)
    if len(shape) < 2 or 0 in shape:
        raise InputError(f"{path} has shape {list(shape)}; expected [samples, features...] with at least one of each.")
    return _Shard(path, shape, None if labels is None else checked_labels(labels, shape[0], path))


def _take(path: Path, rows: np.ndarray) -> np.ndarray:
    """Rows of a shard, float32 or float64."""

    def look(arrays: Mapping[str, Any]) -> np.ndarray:
        return as_numpy(arrays[chosen_names(path, arrays.keys())[0]][rows])

    points = read_arrays(path, str(path), look)
    return points.astype(check_kind(points, path), copy=False)
