"""Arrays and labels out of one file (.npy, .npz, .pt, .safetensors, .parquet), without running any code from it.

The numbers are used as they are, never standardised: the model was trained on them as they are.
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

from mfdiag.errors import InputError

__all__ = [
    "DATA_KEYS",
    "LABEL_KEYS",
    "READERS",
    "as_numpy",
    "check_kind",
    "checked_labels",
    "checked_points",
    "choose",
    "chosen_names",
    "labels_beside",
    "read_arrays",
    "read_points",
    "reading",
]

DATA_KEYS = ("x", "data", "images", "image", "latents", "latent", "moments", "arr_0")
LABEL_KEYS = ("y", "labels", "label")
_CHUNK = 2**22  # numbers looked at together, so that a memory-mapped file is never held whole

Source = Path | BytesIO
_Arrays = Mapping[str, Any]  # NumPy arrays or tensors by name; "" where a file holds a single one
_Read = TypeVar("_Read")


def read_points(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples and labels of a data file; the first axis counts samples.

    Returns points [N, ...] (float32 or float64 as stored, a .npy file memory-mapped; other numeric types widen to the
    nearest of the two) and labels int64 [N], or None where the file has none. Arrays are found by name: one of
    `DATA_KEYS` or the only one; labels under one of `LABEL_KEYS`. For STEM.npy the labels are in STEM_labels.npy or
    STEM.labels.npy beside it. In .parquet every other column is a feature.

    Raises InputError for a missing, empty, damaged or pickled file, an unknown extension, and numbers that cannot be
    data (no samples, no feature axis, not numeric, not finite) or labels (wrong length, negative, fractional).
    """
    points, labels = read_arrays(path, str(path), lambda arrays: choose(path, arrays))
    if path.suffix.lower() == ".npy":
        labels = labels_beside(path)
    points = checked_points(points, path)
    return points, None if labels is None else checked_labels(labels, len(points), path)


def labels_beside(path: Path) -> np.ndarray | None:
    """The array in STEM_labels.npy or STEM.labels.npy beside STEM.npy, or None."""
    beside = (path.with_name(f"{path.stem}{ending}{path.suffix}") for ending in ("_labels", ".labels"))
    found = next((candidate for candidate in beside if candidate.exists()), None)
    return None if found is None else read_arrays(found, str(found), lambda arrays: np.asarray(arrays[""]))


def read_arrays(source: Source, where: str, wanted: Callable[[_Arrays], _Read]) -> _Read:
    """`wanted` of the arrays by name, "" for a file of a single one, in a file or in the bytes of one.

    `where` names the file, and by its extension how it is read; .npy, .pt and .safetensors files are memory-mapped.
    Raises InputError for a missing, empty, damaged or pickled file and an unknown extension.
    """
    suffix = Path(where).suffix.lower()
    if suffix not in READERS:
        raise InputError(f"Cannot read {where}: unknown extension {suffix!r}; known: {', '.join(READERS)}.")
    if isinstance(source, Path) and not source.is_file():
        raise InputError(f"No file at {where}; give the path of a data file or the name of a data set.")
    if not (source.stat().st_size if isinstance(source, Path) else source.getbuffer().nbytes):
        raise InputError(f"{where} is empty (0 bytes); write it again.")
    with reading(where):
        return wanted(READERS[suffix](source, where))


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Whatever a parser raises at the file `where`, as InputError."""
    try:
        yield
    except (InputError, ImportError, MemoryError):
        raise
    except Exception as error:  # parsers raise anything at damaged bytes: assertions, struct errors, KeyError
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        problem = (
            f"Cannot read {where} ({reason}); it may be truncated or no {Path(where).suffix} file: write it again."
        )
        if isinstance(error, pickle.UnpicklingError) or "pickle" in reason or "Python objects" in reason:
            problem = (
                f"{where} holds pickled Python objects, or is damaged; mfdiag runs no code from a file: "
                "save plain numeric arrays or tensors."
            )
        raise InputError(problem) from error


def _read_npy(source: Source, where: str) -> _Arrays:
    return {"": np.load(source, mmap_mode="c" if isinstance(source, Path) else None, allow_pickle=False)}


def _read_npz(source: Source, where: str) -> _Arrays:
    arrays = np.load(source, allow_pickle=False)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise InputError(f"{where} is not an .npz archive; rename a single array to .npy.")
    return arrays  # reads each array when it is asked for


def _read_pt(source: Source, where: str) -> _Arrays:
    import torch

    mapped = isinstance(source, Path) and zipfile.is_zipfile(source)  # not in torch's format before 1.6
    content = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    if isinstance(content, torch.Tensor):
        return {"": content}
    if not isinstance(content, dict):
        raise InputError(f"{where} holds a {type(content).__name__}; expected a tensor or a dict of tensors.")
    return {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor | int)}


def _read_safetensors(source: Source, where: str) -> _Arrays:
    from safetensors.torch import load, load_file

    return load_file(source) if isinstance(source, Path) else load(source.getvalue())  # files are memory-mapped


def _read_parquet(source: Source, where: str) -> _Arrays:
    import pandas as pd

    frame = pd.read_parquet(source)
    key = next((key for key in LABEL_KEYS if key in frame.columns), None)
    labels = {} if key is None else {key: frame.pop(key).to_numpy()}
    for column in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[column]):
            kind = frame[column].dtype
            raise InputError(f"{where}: column {column!r} holds {kind}, expected numbers; drop or encode it.")
    return {"": frame.to_numpy()} | labels


READERS: dict[str, Callable[[Source, str], _Arrays]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_pt,
    ".pth": _read_pt,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}


def choose(where: Path | str, arrays: _Arrays) -> tuple[np.ndarray, np.ndarray | None]:
    """The data array and the label array (or None) among named ones."""
    data, label = chosen_names(where, arrays.keys())
    return as_numpy(arrays[data]), None if label is None else as_numpy(arrays[label])


def chosen_names(where: Path | str, names: Collection[str]) -> tuple[str, str | None]:
    """The names of the data array and of the label array (or None)."""
    label = next((key for key in LABEL_KEYS if key in names), None)
    others = [key for key in names if key != label]
    data = next((key for key in DATA_KEYS if key in others), others[0] if len(others) == 1 else None)
    if data is None:
        found = ", ".join(sorted(names)) or "none"
        raise InputError(f"{where}: expected one array, or one named {', '.join(DATA_KEYS)}; found {found}.")
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


def check_kind(points: np.ndarray, where: Path | str) -> type:
    """The type, float32 or float64, that holds these numbers; InputError where they are no real numbers."""
    if points.dtype.kind not in "biuf":
        raise InputError(f"{where} holds {points.dtype} values; expected real numbers.")
    return np.float32 if np.result_type(points.dtype, np.float32) == np.float32 else np.float64


def checked_points(points: np.ndarray, path: Path) -> np.ndarray:
    """Points float32 or float64 [N, ...]; InputError where they cannot be data: see `read_points`."""
    wide = check_kind(points, path)
    if points.ndim < 2:
        raise InputError(
            f"{path} has shape {points.shape}; expected [samples, features...]: reshape single numbers to [N, 1]."
        )
    if points.size == 0:
        raise InputError(f"{path} has shape {points.shape}: no samples or no features to measure on.")
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


def checked_labels(labels: np.ndarray, samples: int, where: Path | str) -> np.ndarray:
    """Labels int64 [samples]; InputError where they are no class numbers."""
    if labels.shape != (samples,):
        raise InputError(f"{where}: labels have shape {labels.shape}; expected one for each of {samples} samples.")
    numeric = labels.dtype.kind in "biuf" and bool(np.isfinite(labels).all())
    if not numeric or not np.array_equal(labels, np.floor(labels.astype(np.float64))):
        raise InputError(f"{where}: labels of type {labels.dtype} are not all whole; expected class numbers 0, 1, ...")
    if labels.min() < 0:
        raise InputError(f"{where}: the smallest label is {int(labels.min())}; expected class numbers 0, 1, ...")
    return labels.astype(np.int64)
