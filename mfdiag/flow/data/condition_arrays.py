"""Arrays beside the samples that condition a network: observations, text, masks, spectrograms, under any name."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mfdiag.errors import InputError
from mfdiag.flow.data.disk_arrays import Points, tiles
from mfdiag.flow.data.files import as_condition

__all__ = ["require_rows", "row_groups", "select_conditions"]


def require_rows(name: str, array: Points, samples: int, location: Path | str) -> None:
    """Check that an array of conditions has one row for each sample.

    Args:
        name: Name of the array.
        array: The array.
        samples: Number of samples.
        location: Where it comes from, for errors.

    Raises:
        InputError: It has another number of rows.
    """
    if len(array) != samples:
        raise InputError(
            f"Expected one row of {name!r} for each of {samples:,} samples of {location}, but it has shape "
            f"{list(array.shape)}. Write one row per sample, in the order of the samples."
        )


def select_conditions(
    arrays: Mapping[str, Any], names: Collection[str] | None, needed: Collection[str], samples: int, location: Path
) -> dict[str, np.ndarray]:
    """The arrays beside the samples that are conditions.

    Args:
        arrays: All arrays beside samples and labels, by name.
        names: Those that the user selects; None takes every array with one row per sample.
        needed: Names that the network takes. These are never left out for a wrong number of rows.
        samples: Number of samples.
        location: Where the arrays come from, for errors.

    Returns:
        The conditions by name.

    Raises:
        InputError: An array is missing, or cannot condition the samples.
    """
    selected = {}
    for name in names or ():
        if name not in arrays:
            present = ", ".join(arrays) or "none"
            raise InputError(
                f"Expected array {name!r} beside the samples of {location}, as conditions= says, but the arrays are "
                f"{present}. Correct conditions=."
            )
    for name, values in arrays.items():
        shape = getattr(values, "shape", ())
        if name in (names or ()) or (names is None and (name in needed or (shape and shape[0] == samples))):
            selected[name] = as_condition(name, values, location)
            require_rows(name, selected[name], samples, location)
    return selected


def row_groups(arrays: Mapping[str, Points], labels: np.ndarray | None, samples: int) -> np.ndarray:
    """Number of the distinct value that the conditions of each sample have.

    Args:
        arrays: Conditions [samples, ...] by name.
        labels: Class numbers [samples] that condition the network too, or None.
        samples: Number of samples.

    Returns:
        int64 [samples]; rows are equal bit by bit exactly if their numbers are.
    """
    number: dict[bytes, int] = {}
    groups = np.empty(samples, dtype=np.int64)
    for rows in tiles(np.arange(samples)):
        parts = [np.ascontiguousarray(array[rows]).reshape(len(rows), -1) for array in arrays.values()]
        if labels is not None:
            parts.append(labels[rows, None])
        for position, row in enumerate(rows.tolist()):
            digest = hashlib.blake2b(digest_size=16)
            for part in parts:
                digest.update(part[position].tobytes())
            groups[row] = number.setdefault(digest.digest(), len(number))
    return groups
