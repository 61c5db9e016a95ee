"""Pairs (x_0, x_1) that another program made, read from a file or from a list of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mfdiag.errors import InputError
from mfdiag.flow.data.disk_arrays import Points
from mfdiag.flow.data.files import LABEL_KEYS, as_numpy, read_arrays, validated_labels, validated_points
from mfdiag.flow.data.per_sample_files import PerSampleFiles, read_file_list

__all__ = ["read_pairs"]

_EXTENSIONS = (".npz", ".safetensors")
_Side = TypeVar("_Side", np.ndarray, PerSampleFiles)


def read_pairs(path: Path) -> tuple[np.ndarray | Points, np.ndarray | Points, np.ndarray | None]:
    """Pairs x0, x1 [N, ...] and labels int64 [N] (or None).

    An .npz or .safetensors file has arrays x0 and x1, and labels named y, labels or label. A .json list of one file per
    sample (see `read_file_list`) has x0 in NAME.npy and x1 in NAME_noise.npy, which are read as they are drawn. Raises
    InputError as `read_points` does, and if x0 and x1 differ in shape.
    """
    if path.suffix.lower() == ".json":
        (data, labels), (noise, _) = read_file_list(path), read_file_list(path, "_noise")
        return *_of_one_shape(path, data, noise), labels
    if path.suffix.lower() not in _EXTENSIONS:
        raise InputError(
            f"Cannot read pairs from {path}: expected {', '.join(_EXTENSIONS)} or .json, got {path.suffix!r}."
        )

    def select(arrays: Any) -> dict[str, np.ndarray]:
        if not {"x0", "x1"} <= set(arrays):
            present = ", ".join(sorted(arrays)) or "none"
            raise InputError(f"{path}: expected arrays named x0 and x1, but the file has {present}. Rename them.")
        return {name: as_numpy(arrays[name]) for name in ("x0", "x1", *LABEL_KEYS) if name in arrays}

    arrays = read_arrays(path, str(path), select)
    label = next((key for key in LABEL_KEYS if key in arrays), None)
    pairs = _of_one_shape(path, *(validated_points(arrays[key], path) for key in ("x0", "x1")))
    return *pairs, None if label is None else validated_labels(arrays[label], len(pairs[0]), path)


def _of_one_shape(path: Path, x0: _Side, x1: _Side) -> tuple[_Side, _Side]:
    if x0.shape != x1.shape:
        raise InputError(f"{path}: expected x0 and x1 of one shape, got {list(x0.shape)} and {list(x1.shape)}.")
    return x0, x1
