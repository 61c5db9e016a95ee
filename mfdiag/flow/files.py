"""Data read from files: arrays and labels out of .npy, .npz, .pt, .safetensors and .parquet, without running any code.

The numbers are used as they are, never standardised: the model was trained on them as they are.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mfdiag.errors import InputError

__all__ = ["READERS", "read_pairs", "read_points"]

_DATA_KEYS = ("x", "data", "images", "latents", "arr_0")
_LABEL_KEYS = ("y", "labels", "label")
_CHUNK = 2**22  # numbers looked at together, so that a memory-mapped file is never held whole


def read_points(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples and labels of a data file; the first axis counts samples.

    Returns points [N, ...] (float32 or float64 as stored, a .npy file memory-mapped; other numeric types widen to the
    nearest of the two) and labels int64 [N], or None where the file has none. Arrays are found by name: x, data,
    images, latents, arr_0 or the only one; labels under y, labels or label. For STEM.npy the labels are in
    STEM_labels.npy or STEM.labels.npy beside it. In .parquet every other column is a feature.

    Raises InputError for a missing, empty, damaged or pickled file, an unknown extension, and numbers that cannot be
    data (no samples, no feature axis, not numeric, not finite) or labels (wrong length, negative, fractional).
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise InputError(f"Cannot read {path}: unknown extension {suffix!r}; known: {', '.join(READERS)}.")
    points, labels = _read(path, READERS[suffix])
    points = _checked_points(points, path)
    return points, None if labels is None else _checked_labels(labels, len(points), path)


def read_pairs(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Pairs x0, x1 [N, ...] and labels int64 [N] (or None) of an .npz or .safetensors file with arrays of these names.

    Labels are under y, labels or label. Raises InputError as `read_points` does, and where x0 and x1 differ in shape.
    """
    suffix = path.suffix.lower()
    if suffix not in _PAIR_READERS:
        raise InputError(f"Cannot read pairs from {path}: expected {' or '.join(_PAIR_READERS)}, got {suffix!r}.")
    arrays = _read(path, _PAIR_READERS[suffix])
    if not {"x0", "x1"} <= arrays.keys():
        raise InputError(f"{path}: expected arrays named x0 and x1; found {', '.join(sorted(arrays)) or 'none'}.")
    x0, x1 = (_checked_points(arrays[key], path) for key in ("x0", "x1"))
    if x0.shape != x1.shape:
        raise InputError(f"{path}: expected x0 and x1 of one shape, got {list(x0.shape)} and {list(x1.shape)}.")
    label = next((key for key in _LABEL_KEYS if key in arrays), None)
    return x0, x1, None if label is None else _checked_labels(arrays[label], len(x0), path)


_Arrays = tuple[np.ndarray, np.ndarray | None]
_Read = TypeVar("_Read")


def _read(path: Path, reader: Callable[[Path], _Read]) -> _Read:
    if not path.is_file():
        raise InputError(f"No file at {path}; give the path of a data file or the name of a data set.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); write it again.")
    try:
        return reader(path)
    except (InputError, ImportError, MemoryError):
        raise
    except Exception as error:  # parsers raise anything at damaged bytes: assertions, struct errors, KeyError
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        problem = f"Cannot read {path} ({reason}); it may be truncated or no {path.suffix} file: write it again."
        if isinstance(error, pickle.UnpicklingError) or "pickle" in reason or "Python objects" in reason:
            problem = (
                f"{path} holds pickled Python objects, or is damaged; mfdiag runs no code from a file: "
                "save plain numeric arrays or tensors."
            )
        raise InputError(problem) from error


def _read_npy(path: Path) -> _Arrays:
    points = np.load(path, mmap_mode="c", allow_pickle=False)
    beside = (path.with_name(f"{path.stem}{ending}{path.suffix}") for ending in ("_labels", ".labels"))
    found = next((candidate for candidate in beside if candidate.exists()), None)
    return points, None if found is None else _read(found, lambda file: (np.load(file, allow_pickle=False), None))[0]


def _read_npz(path: Path) -> _Arrays:
    with np.load(path, allow_pickle=False) as arrays:
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise InputError(f"{path} is not an .npz archive; rename a single array to .npy.")
        return _choose(path, arrays)


def _read_pt(path: Path) -> _Arrays:
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, torch.Tensor):
        return _from_torch(content), None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}; expected a tensor or a dict of tensors.")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    points, labels = _choose(path, tensors)
    return _from_torch(points), None if labels is None else _from_torch(labels)


def _read_safetensors(path: Path) -> _Arrays:
    from safetensors.torch import load_file

    points, labels = _choose(path, load_file(path))
    return _from_torch(points), None if labels is None else _from_torch(labels)


def _read_parquet(path: Path) -> _Arrays:
    import pandas as pd

    frame = pd.read_parquet(path)
    key = next((key for key in _LABEL_KEYS if key in frame.columns), None)
    labels = None if key is None else frame.pop(key)
    for column in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[column]):
            kind = frame[column].dtype
            raise InputError(f"{path}: column {column!r} holds {kind}, expected numbers; drop or encode it.")
    return frame.to_numpy(), None if labels is None else labels.to_numpy()


READERS: dict[str, Callable[[Path], _Arrays]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_pt,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}


def _named_npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _named_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.torch import load_file

    return {name: _from_torch(tensor) for name, tensor in load_file(path).items()}


_PAIR_READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".npz": _named_npz,
    ".safetensors": _named_safetensors,
}


def _choose(path: Path, arrays: Mapping[str, Any]) -> tuple[Any, Any]:
    """The data array and the label array (or None) among named ones."""
    label = next((key for key in _LABEL_KEYS if key in arrays), None)
    others = [key for key in arrays if key != label]
    key = next((key for key in _DATA_KEYS if key in others), others[0] if len(others) == 1 else None)
    if key is None:
        found = ", ".join(sorted(arrays)) or "none"
        raise InputError(f"{path}: expected one array, or one named {', '.join(_DATA_KEYS)}; found {found}.")
    return arrays[key], None if label is None else arrays[label]


def _from_torch(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    # NumPy has no bfloat16 and no 8-bit floats
    narrow = tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64)
    return (tensor.float() if narrow else tensor).numpy()


def _checked_points(points: np.ndarray, path: Path) -> np.ndarray:
    if points.dtype.kind not in "biuf":
        raise InputError(f"{path} holds {points.dtype} values; expected real numbers.")
    if points.ndim < 2:
        raise InputError(
            f"{path} has shape {points.shape}; expected [samples, features...]: reshape single numbers to [N, 1]."
        )
    if points.size == 0:
        raise InputError(f"{path} has shape {points.shape}: no samples or no features to measure on.")
    wide = np.float32 if np.result_type(points.dtype, np.float32) == np.float32 else np.float64
    points = np.asarray(points, dtype=wide)  # no copy, and a memory map stays one, where the type fits
    count, first = 0, None
    rows = max(1, _CHUNK // points[0].size)
    for start in range(0, len(points), rows):
        bad = ~np.isfinite(points[start : start + rows])
        found = int(np.count_nonzero(bad))
        if found and first is None:
            row, *rest = (int(axis) for axis in np.unravel_index(int(bad.argmax()), bad.shape))
            first = (start + row, *rest)
        count += found
    if first is not None:
        raise InputError(f"{path}: {count} values are NaN or infinite, the first at index {first}; remove them.")
    return points


def _checked_labels(labels: np.ndarray, samples: int, path: Path) -> np.ndarray:
    if labels.shape != (samples,):
        raise InputError(f"{path}: labels have shape {labels.shape}; expected one for each of {samples} samples.")
    numeric = labels.dtype.kind in "biuf" and bool(np.isfinite(labels).all())
    if not numeric or not np.array_equal(labels, np.floor(labels.astype(np.float64))):
        raise InputError(f"{path}: labels of type {labels.dtype} are not all whole; expected class numbers 0, 1, ...")
    if labels.min() < 0:
        raise InputError(f"{path}: the smallest label is {int(labels.min())}; expected class numbers 0, 1, ...")
    return labels.astype(np.int64)
