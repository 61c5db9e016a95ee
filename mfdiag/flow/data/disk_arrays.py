"""Samples that stay on disk: arrays in many files, read row by row as samples are drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mfdiag.errors import InputError
from mfdiag.flow.data.files import array_beside, array_names, as_numpy, float_type, read_arrays, validated_labels

__all__ = ["DiskArray", "Points", "ShardedArray", "tiles"]


class Points(Protocol):
    """The samples of a finite data set: an array [N, *shape], or an object that is read like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, *shape]."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """The samples of a slice, of an array of row numbers, or of a mask."""


def tiles(rows: np.ndarray, size: int = 2048) -> Iterator[np.ndarray]:
    """Splits row numbers into pieces of `size`, for data that may not fit in memory."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class DiskArray(ABC):
    """Rows [N, *shape] on disk. Each access reads every row once, in disk order."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The rows of a slice, of row numbers or of a mask, float32 or float64.

        Raises InputError if what is read is damaged, of another shape, or not finite.
        """
        if isinstance(rows, slice):
            index = np.arange(*rows.indices(len(self)))
        else:
            index = np.flatnonzero(rows) if rows.dtype == bool else rows
        if not len(index):
            return np.empty((0, *self.shape[1:]), dtype=np.float32)
        ascending, position = np.unique(index, return_inverse=True)
        samples = self._read(ascending)
        bad = np.flatnonzero(~np.isfinite(samples).reshape(len(samples), -1).all(axis=1))
        if len(bad):
            raise InputError(f"{self._location(ascending[bad[0]])} holds NaN or infinite values. Remove it.")
        return samples[position]

    @abstractmethod
    def _read(self, rows: np.ndarray) -> np.ndarray:
        """The rows, float32 or float64. Row numbers are ascending and distinct."""

    @abstractmethod
    def _location(self, row: int) -> str:
        """Where a row lies, for error messages."""


@dataclass(frozen=True)
class _Shard:
    path: Path
    shape: tuple[int, ...]
    labels: np.ndarray | None


class ShardedArray(DiskArray):
    """Arrays [n_k, *shape] in several files, concatenated.

    Files are memory-mapped when they are read, except .npz, which is read whole each time. `labels` are int64 [N], from
    NAME_labels.npy beside NAME.npy or from the file itself, or None. Raises InputError for shards that have different
    shapes, labels for some alone, or missing bytes.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        shards = [_open_shard(path) for path in paths]
        first = shards[0]
        for shard in shards:
            if shard.shape[1:] != first.shape[1:]:
                raise InputError(
                    f"Expected samples of one shape, but {shard.path} has {list(shard.shape[1:])} and {first.path} has "
                    f"{list(first.shape[1:])}. Move the others elsewhere."
                )
            if (shard.labels is None) != (first.labels is None):
                unlabeled, labeled = (shard, first) if shard.labels is None else (first, shard)
                raise InputError(
                    f"Expected labels for all shards or for none, but {unlabeled.path} has no labels and "
                    f"{labeled.path} has. Add or remove labels."
                )
        self._paths = [shard.path for shard in shards]
        self._starts = np.cumsum([0, *(shard.shape[0] for shard in shards)])
        labels = [shard.labels for shard in shards if shard.labels is not None]
        self.labels = np.concatenate(labels) if labels else None
        super().__init__((int(self._starts[-1]), *first.shape[1:]))

    def _read(self, rows: np.ndarray) -> np.ndarray:
        shard = self._shard_of(rows)
        return np.concatenate(
            [_read_rows(self._paths[k], rows[shard == k] - self._starts[k]) for k in np.unique(shard)]
        )

    def _location(self, row: int) -> str:
        shard = int(self._shard_of(np.array([row]))[0])
        return f"{self._paths[shard]}, sample {row - self._starts[shard]}"

    def _shard_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1


def _open_shard(path: Path) -> _Shard:
    def shape_and_labels(arrays: Mapping[str, Any]) -> tuple[tuple[int, ...], np.ndarray | None]:
        data, label = array_names(path, arrays.keys())
        return tuple(arrays[data].shape), None if label is None else as_numpy(arrays[label])

    shape, labels = read_arrays(path, str(path), shape_and_labels)
    if path.suffix.lower() == ".npy":
        labels = array_beside(path, "labels")
    if len(shape) < 2 or 0 in shape:
        raise InputError(f"{path}: expected shape [samples, features...] with at least one of each, got {list(shape)}.")
    return _Shard(path, shape, None if labels is None else validated_labels(labels, shape[0], path))


def _read_rows(path: Path, rows: np.ndarray) -> np.ndarray:
    """Rows of a shard, float32 or float64."""

    def select(arrays: Mapping[str, Any]) -> np.ndarray:
        return as_numpy(arrays[array_names(path, arrays.keys())[0]][rows])

    points = read_arrays(path, str(path), select)
    return points.astype(float_type(points, path), copy=False)
