"""Arrays and labels from one file (.npy, .npz, .pt, .safetensors, .parquet), without running any code from it.

The numbers are used as stored and never standardized, because the model was trained on them as stored.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mfdiag.errors import InputError, first_line
from mfdiag.storage import is_file

__all__ = [
    "DATA_KEYS",
    "LABEL_KEYS",
    "READERS",
    "array_names",
    "as_numpy",
    "data_and_labels",
    "float_type",
    "labels_beside",
    "parser_errors",
    "read_arrays",
    "read_points",
    "validated_labels",
    "validated_points",
]

DATA_KEYS = ("x", "data", "images", "image", "latents", "latent", "moments", "arr_0")
LABEL_KEYS = ("y", "labels", "label")
_CHUNK = 2**22  # numbers checked together, so that a memory-mapped file is never held whole

FileContent = Path | BytesIO
_Arrays = Mapping[str, Any]  # NumPy arrays or tensors by name; "" if a file holds a single one
_Extracted = TypeVar("_Extracted")


def read_points(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples and labels of a data file. The first axis counts samples.

    The data are the array named one of `DATA_KEYS`, or the only array. The labels are the array named one of
    `LABEL_KEYS`. For STEM.npy they are in STEM_labels.npy or STEM.labels.npy beside it. In .parquet files every column
    except the labels is a feature.

    Args:
        path: The file.

    Returns:
        Points [N, ...], float32 or float64 as stored (other numeric types widen to one of them), memory-mapped from a
        .npy file. Labels int64 [N], or None if the file has none.

    Raises:
        InputError: The file is missing, empty, damaged or pickled, or has an unknown extension; numbers cannot be data
            (no samples, no feature axis, not numeric, not finite) or labels (wrong length, negative, fractional).
    """
    points, labels = read_arrays(path, str(path), lambda arrays: data_and_labels(path, arrays))
    if path.suffix.lower() == ".npy":
        labels = labels_beside(path)
    points = validated_points(points, path)
    return points, None if labels is None else validated_labels(labels, len(points), path)


def labels_beside(path: Path) -> np.ndarray | None:
    """The array in STEM_labels.npy or STEM.labels.npy beside STEM.npy, or None."""
    candidates = (path.with_name(f"{path.stem}{ending}{path.suffix}") for ending in ("_labels", ".labels"))
    labels_path = next((candidate for candidate in candidates if candidate.exists()), None)
    if labels_path is None:
        return None
    return read_arrays(labels_path, str(labels_path), lambda arrays: np.asarray(arrays[""]))


def read_arrays(content: FileContent, location: str, extract: Callable[[_Arrays], _Extracted]) -> _Extracted:
    """Opens a file, or the bytes of one, and applies `extract` to its arrays.

    Args:
        content: The file, or its bytes. Files of type .npy, .pt and .safetensors are memory-mapped.
        location: Where the content comes from, for errors. Its extension selects the reader.
        extract: A function of the arrays by name; the name is "" in a file with a single array.

    Returns:
        What `extract` returns.

    Raises:
        InputError: The file is missing, empty, damaged or pickled, or has an unknown extension.
    """
    suffix = Path(location).suffix.lower()
    if suffix not in READERS:
        raise InputError(f"Cannot read {location}: unknown extension {suffix!r}; known: {', '.join(READERS)}.")
    if isinstance(content, Path) and not is_file(content):
        raise InputError(f"No file at {location}. Pass the path of a data file or the name of a data set.")
    if not (content.stat().st_size if isinstance(content, Path) else content.getbuffer().nbytes):
        raise InputError(f"{location} is empty (0 bytes). Write it again.")
    with parser_errors(location):
        return extract(READERS[suffix](content, location))


@contextmanager
def parser_errors(location: str) -> Iterator[None]:
    """Turns whatever a parser raises for the file at `location` into InputError."""
    try:
        yield
    except (InputError, ImportError, MemoryError):
        raise
    except Exception as error:  # for damaged bytes parsers raise anything: assertions, struct errors, KeyError
        reason = first_line(error).rstrip(".")
        problem = (
            f"Cannot read {location} ({reason}). It may be truncated, or not a {Path(location).suffix} file: write it "
            "again."
        )
        if isinstance(error, pickle.UnpicklingError) or "pickle" in reason or "Python objects" in reason:
            problem = (
                f"Expected plain numbers in {location}, but it holds pickled Python objects or is damaged, and mfdiag "
                "runs no code from a file. Save numeric arrays or tensors."
            )
        raise InputError(problem) from error


def _read_npy(content: FileContent, location: str) -> _Arrays:
    return {"": np.load(content, mmap_mode="c" if isinstance(content, Path) else None, allow_pickle=False)}


def _read_npz(content: FileContent, location: str) -> _Arrays:
    arrays = np.load(content, allow_pickle=False)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise InputError(f"Expected an .npz archive, but {location} holds a single array. Rename it to .npy.")
    return arrays  # reads each array when it is accessed


def _read_pt(content: FileContent, location: str) -> _Arrays:
    import torch

    mapped = isinstance(content, Path) and zipfile.is_zipfile(content)  # torch's format before 1.6 is not a zip file
    value = torch.load(content, map_location="cpu", weights_only=True, mmap=mapped)
    if isinstance(value, torch.Tensor):
        return {"": value}
    if not isinstance(value, dict):
        raise InputError(
            f"Expected a tensor or a dict of tensors in {location}, but it holds a {type(value).__name__}. Save "
            "tensors."
        )
    return {str(key): entry for key, entry in value.items() if isinstance(entry, torch.Tensor | int)}


def _read_safetensors(content: FileContent, location: str) -> _Arrays:
    from safetensors.torch import load, load_file

    return load_file(content) if isinstance(content, Path) else load(content.getvalue())  # files are memory-mapped


def _read_parquet(content: FileContent, location: str) -> _Arrays:
    import pandas as pd

    frame = pd.read_parquet(content)
    key = next((key for key in LABEL_KEYS if key in frame.columns), None)
    labels = {} if key is None else {key: frame.pop(key).to_numpy()}
    for column in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[column]):
            raise InputError(
                f"Expected numbers in {location}, but column {column!r} holds {frame[column].dtype}. Drop it or encode "
                "it."
            )
    return {"": frame.to_numpy()} | labels


READERS: dict[str, Callable[[FileContent, str], _Arrays]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_pt,
    ".pth": _read_pt,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}


def data_and_labels(location: Path | str, arrays: _Arrays) -> tuple[np.ndarray, np.ndarray | None]:
    """The data array and the label array (or None) of a file. Raises InputError as `array_names` does."""
    data, label = array_names(location, arrays.keys())
    return as_numpy(arrays[data]), None if label is None else as_numpy(arrays[label])


def array_names(location: Path | str, names: Collection[str]) -> tuple[str, str | None]:
    """The name of the data array and of the label array (or None). Raises InputError if the data are ambiguous."""
    label = next((key for key in LABEL_KEYS if key in names), None)
    others = [key for key in names if key != label]
    data = next((key for key in DATA_KEYS if key in others), others[0] if len(others) == 1 else None)
    if data is None:
        present = ", ".join(sorted(names)) or "none"
        raise InputError(
            f"{location}: expected one array, or one named {', '.join(DATA_KEYS)}, but the file has {present}. Rename "
            "the data array."
        )
    return data, label


def as_numpy(values: Any) -> np.ndarray:
    """A tensor, array or number as NumPy array."""
    if isinstance(values, np.ndarray | int):
        return np.asanyarray(values)
    import torch

    tensor = values.detach()
    # NumPy has no bfloat16 and no 8-bit floats
    narrow = tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64)
    return (tensor.float() if narrow else tensor).numpy()


def float_type(points: np.ndarray, location: Path | str) -> type:
    """The type, float32 or float64, that holds these numbers. Raises InputError if they are not real numbers."""
    if points.dtype.kind not in "biuf":
        raise InputError(f"Expected real numbers in {location}, but it holds {points.dtype} values. Convert them.")
    return np.float32 if np.result_type(points.dtype, np.float32) == np.float32 else np.float64


def validated_points(points: np.ndarray, path: Path) -> np.ndarray:
    """Points as float32 or float64 [N, ...]. Raises InputError if they cannot be data, see `read_points`."""
    dtype = float_type(points, path)
    if points.ndim < 2:
        raise InputError(
            f"{path}: expected shape [samples, features...], got {points.shape}. Reshape single numbers to [N, 1]."
        )
    if points.size == 0:
        raise InputError(f"{path}: expected at least one sample and one feature, got shape {points.shape}.")
    points = np.asarray(points, dtype=dtype)  # if the type fits: no copy, and a memory map stays one
    count, first = 0, None
    rows = max(1, _CHUNK // points[0].size)
    for start in range(0, len(points), rows):
        bad = ~np.isfinite(points[start : start + rows])
        bad_count = int(np.count_nonzero(bad))
        if bad_count and first is None:
            row, *rest = (int(axis) for axis in np.unravel_index(int(bad.argmax()), bad.shape))
            first = (start + row, *rest)
        count += bad_count
    if first is not None:
        raise InputError(f"{path}: {count} values are NaN or infinite, the first at index {first}. Remove them.")
    return points


def validated_labels(labels: np.ndarray, samples: int, location: Path | str) -> np.ndarray:
    """Labels of a data set as class numbers.

    Args:
        labels: Numbers of any type.
        samples: Number of samples.
        location: Where the labels come from, for errors.

    Returns:
        int64 [samples].

    Raises:
        InputError: The labels are not one class number 0, 1, ... for each sample.
    """
    if labels.shape != (samples,):
        raise InputError(f"{location}: expected one label for each of {samples} samples, got shape {labels.shape}.")
    numeric = labels.dtype.kind in "biuf" and bool(np.isfinite(labels).all())
    if not numeric or not np.array_equal(labels, np.floor(labels.astype(np.float64))):
        raise InputError(
            f"{location}: expected class numbers 0, 1, ..., but labels of type {labels.dtype} are not all whole."
        )
    if labels.min() < 0:
        raise InputError(
            f"{location}: expected class numbers 0, 1, ..., but the smallest label is {int(labels.min())}."
        )
    return labels.astype(np.int64)
