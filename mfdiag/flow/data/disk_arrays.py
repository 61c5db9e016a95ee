"""Samples that stay on disk: arrays in many files, read row by row as samples are drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mfdiag.errors import InputError
from mfdiag.flow.data.files import (
    ArrayRoles,
    array_beside,
    array_names,
    as_condition,
    as_numpy,
    float_type,
    names_beside,
    parser_errors,
    read_arrays,
    validated_labels,
)

__all__ = ["DiskArray", "Points", "ShardedArray", "ShardedCondition", "tiles"]


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
        bad = np.flatnonzero(self._invalid(samples).reshape(len(samples), -1).any(axis=1))
        if len(bad):
            raise InputError(f"{self._location(ascending[bad[0]])} holds NaN or infinite values. Remove it.")
        return samples[position]

    def _invalid(self, samples: np.ndarray) -> np.ndarray:
        """Which numbers cannot be used."""
        return ~np.isfinite(samples)

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
    beside: tuple[str, ...]


class ShardedArray(DiskArray):
    """Arrays [n_k, *shape] in several files, concatenated.

    Files are opened when they are read, row by row, except .npz, which is read whole each time. `labels` are int64 [N],
    from NAME_labels.npy beside NAME.npy or from the file itself, or None. Raises InputError for shards that have
    different shapes, labels for some alone, or missing bytes.
    """

    def __init__(self, paths: Sequence[Path], roles: ArrayRoles = ArrayRoles()) -> None:
        shards = [_open_shard(path, roles) for path in paths]
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
        self._roles, self._beside = roles, first.beside
        self._paths = [shard.path for shard in shards]
        self._starts = np.cumsum([0, *(shard.shape[0] for shard in shards)])
        labels = [shard.labels for shard in shards if shard.labels is not None]
        self.labels = np.concatenate(labels) if labels else None
        super().__init__((int(self._starts[-1]), *first.shape[1:]))

    def _read(self, rows: np.ndarray) -> np.ndarray:
        shard = self._shard_of(rows)
        return np.concatenate(
            [_read_rows(self._paths[k], rows[shard == k] - self._starts[k], self._roles) for k in np.unique(shard)]
        )

    def conditions(self) -> dict[str, ShardedCondition]:
        """The arrays beside the samples of all shards, by name. Raises InputError for one that does not fit them."""
        names = self._beside if self._roles.conditions is None else self._roles.conditions
        return {name: ShardedCondition(name, self._paths, self._starts) for name in names}

    def _location(self, row: int) -> str:
        shard = int(self._shard_of(np.array([row]))[0])
        return f"{self._paths[shard]}, sample {row - self._starts[shard]}"

    def _shard_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1


class ShardedCondition(DiskArray):
    """Arrays [n_k, ...] beside the samples of each shard, concatenated, in the type they are stored in.

    They lie in the file of the samples, or in NAME_condition.npy beside NAME.npy. Raises InputError for shards that
    lack the array, or have another shape or number of rows.
    """

    def __init__(self, name: str, paths: Sequence[Path], starts: np.ndarray) -> None:
        self._name, self._paths, self._starts = name, paths, starts
        shapes = [self._array(path, lambda array: tuple(array.shape)) for path in paths]
        for path, shape, count in zip(paths, shapes, np.diff(starts).tolist(), strict=True):
            if shape[:1] != (count,) or shape[1:] != shapes[0][1:]:
                raise InputError(
                    f"Expected one row of {name!r} of one shape for each of {count:,} samples of {path}, but it has "
                    f"shape {list(shape)}. Write one row per sample, or leave it out with conditions=."
                )
        super().__init__((int(starts[-1]), *shapes[0][1:]))

    def _array(self, path: Path, select: Callable[[Any], Any]) -> Any:
        """What `select` makes of the array in or beside a shard."""

        def within(arrays: Mapping[str, Any]) -> Any:
            if self._name not in arrays:
                raise InputError(f"Expected array {self._name!r} in {path}, as in the other shards. Add it.")
            return select(arrays[self._name])

        if path.suffix.lower() != ".npy":
            return read_arrays(path, str(path), within)
        beside = array_beside(path, self._name)
        if beside is None:
            raise InputError(f"Expected {path.stem}_{self._name}.npy beside {path}, as for the other shards. Add it.")
        with parser_errors(str(path)):
            return select(beside)

    def _invalid(self, samples: np.ndarray) -> np.ndarray:
        return np.isnan(samples) if samples.dtype.kind == "f" else np.zeros(samples.shape, dtype=bool)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        parts = []
        for k in np.unique(shard):
            own = rows[shard == k] - self._starts[k]
            part = self._array(self._paths[k], partial(_rows_of, rows=own))
            parts.append(as_condition(self._name, part, self._paths[k]))
        return np.concatenate(parts)

    def _location(self, row: int) -> str:
        return f"{self._name!r} of row {row}"


def _rows_of(array: Any, rows: np.ndarray) -> np.ndarray:
    return as_numpy(array[rows])


def _open_shard(path: Path, roles: ArrayRoles) -> _Shard:
    def parts(arrays: Mapping[str, Any]) -> tuple[tuple[int, ...], np.ndarray | None, tuple[str, ...]]:
        data, label = array_names(path, arrays.keys(), roles)
        shape = tuple(arrays[data].shape)
        beside = names_beside(arrays.keys(), data, label)
        fitting = [name for name in beside if name in roles.needed or tuple(arrays[name].shape)[:1] == shape[:1]]
        return shape, None if label is None else as_numpy(arrays[label]), tuple(fitting)

    shape, labels, beside = read_arrays(path, str(path), parts)
    if path.suffix.lower() == ".npy":
        stored_labels = array_beside(path, "labels")
        labels = None if stored_labels is None else as_numpy(stored_labels)
        beside = tuple(name for name in sorted(roles.apart) if array_beside(path, name) is not None)
    if len(shape) < 2 or 0 in shape:
        raise InputError(f"{path}: expected shape [samples, features...] with at least one of each, got {list(shape)}.")
    return _Shard(path, shape, None if labels is None else validated_labels(labels, shape[0], path), beside)


def _read_rows(path: Path, rows: np.ndarray, roles: ArrayRoles) -> np.ndarray:
    """Rows of a shard, float32 or float64."""

    def select(arrays: Mapping[str, Any]) -> np.ndarray:
        return as_numpy(arrays[array_names(path, arrays.keys(), roles)[0]][rows])

    points = read_arrays(path, str(path), select)
    return points.astype(float_type(points, path), copy=False)
