"""Pairs (x_0, x_1) that another program made, read from a file or from a list of files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mfdiag.errors import InputError
from mfdiag.flow.data.condition_arrays import select_conditions
from mfdiag.flow.data.disk_arrays import Points
from mfdiag.flow.data.files import LABEL_KEYS, as_numpy, read_arrays, validated_labels, validated_points
from mfdiag.flow.data.per_sample_files import PerSampleFiles, read_file_list

__all__ = ["StoredPairs", "read_pairs"]

_EXTENSIONS = (".npz", ".safetensors")
_Side = TypeVar("_Side", np.ndarray, PerSampleFiles)


class StoredPairs(NamedTuple):
    """Pairs x0, x1 [N, ...], labels int64 [N] or None, and conditions [N, ...] by name."""

    x0: np.ndarray | Points
    x1: np.ndarray | Points
    labels: np.ndarray | None
    conditions: Mapping[str, Points]


def read_pairs(path: Path) -> StoredPairs:
    """Read stored pairs.

    An .npz or .safetensors file has arrays x0 and x1, labels named y, labels or label, and conditions of any name. A
    .json list of one file per sample (see `read_file_list`) has x0 in NAME.npy and x1 in NAME_noise.npy, which are read
    as they are drawn. Raises InputError as `read_points` does, and if x0 and x1 differ in shape.
    """
    if path.suffix.lower() == ".json":
        (data, labels), (noise, _) = read_file_list(path), read_file_list(path, "_noise")
        return StoredPairs(*_of_one_shape(path, data, noise), labels, {})
    if path.suffix.lower() not in _EXTENSIONS:
        raise InputError(
            f"Cannot read pairs from {path}: expected {', '.join(_EXTENSIONS)} or .json, got {path.suffix!r}."
        )

    def select(arrays: Any) -> dict[str, Any]:
        if not {"x0", "x1"} <= set(arrays):
            present = ", ".join(sorted(arrays)) or "none"
            raise InputError(f"{path}: expected arrays named x0 and x1, but the file has {present}. Rename them.")
        return {name: arrays[name] for name in arrays}

    arrays = read_arrays(path, str(path), select)
    label = next((key for key in LABEL_KEYS if key in arrays), None)
    x0, x1 = _of_one_shape(path, *(validated_points(as_numpy(arrays[key]), path) for key in ("x0", "x1")))
    classes = None if label is None else validated_labels(as_numpy(arrays[label]), len(x0), path)
    beside = {name: values for name, values in arrays.items() if name not in ("x0", "x1", label)}
    return StoredPairs(x0, x1, classes, select_conditions(beside, None, (), len(x0), path))


def _of_one_shape(path: Path, x0: _Side, x1: _Side) -> tuple[_Side, _Side]:
    if x0.shape != x1.shape:
        raise InputError(f"{path}: expected x0 and x1 of one shape, got {list(x0.shape)} and {list(x1.shape)}.")
    return x0, x1
