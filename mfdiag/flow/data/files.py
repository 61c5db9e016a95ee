"""Arrays and labels from one file (.npy, .npz, .pt, .safetensors, .parquet), without running any code from it.

The numbers are used as stored and never standardized, because the model was trained on them as stored.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from mfdiag.errors import InputError, first_line, is_out_of_memory
from mfdiag.flow.data.file_arrays import (
    FileArray,
    npy_array,
    require_numbers,
    require_size,
    safetensors_arrays,
    torch_arrays,
)
from mfdiag.inputs import note_read
from mfdiag.storage import is_file, require_headroom

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "DATA_KEYS",
    "LABEL_KEYS",
    "READERS",
    "STREAMED_BYTES",
    "ArrayRoles",
    "StoredArrays",
    "array_beside",
    "array_names",
    "as_condition",
    "as_numpy",
    "data_and_labels",
    "file_beside",
    "float_type",
    "names_beside",
    "parser_errors",
    "read_arrays",
    "read_points",
    "validated_labels",
    "validated_points",
]

DATA_KEYS = ("x", "data", "images", "image", "latents", "latent", "moments", "arr_0")
LABEL_KEYS = ("y", "labels", "label")
_WIDER = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}  # torch computes little with these
STREAMED_BYTES = 2**28
"""A larger single file is read row by row, and not validated whole at the start."""
_WIDEST = 8  # bytes of a number
_CHUNK = 2**22  # numbers checked together, so that what is computed of them takes little memory

FileContent = Path | BytesIO
_Arrays = Mapping[str, Any]  # NumPy arrays or tensors by name; "" if a file holds a single one
_Extracted = TypeVar("_Extracted")


@dataclass(frozen=True)
class ArrayRoles:
    """Which array of a file is what, where more is known than names tell.

    Attributes:
        sample: Name of the samples; None if it is one of `DATA_KEYS`, or the only one left.
        conditions: Names that the user selects as conditions; None for every array with one row per sample.
        needed: Names of the conditions that the network takes.
    """

    sample: str | None = None
    conditions: tuple[str, ...] | None = None
    needed: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: Mapping[str, str], needed: Collection[str]) -> ArrayRoles:
        """The roles that the keys samples= and conditions= of a specification give, and those the network needs."""
        selected = None
        if "conditions" in options:
            selected = () if options["conditions"] == "none" else tuple(options["conditions"].split("/"))
        return cls(options.get("samples"), selected, tuple(needed))

    @property
    def apart(self) -> frozenset[str]:
        """Names that are neither samples nor labels."""
        return frozenset((*(self.conditions or ()), *self.needed)) - {self.sample}


class StoredArrays(NamedTuple):
    """The arrays of a data file: samples [N, ...], labels int64 [N] or None, and what lies beside them by name."""

    points: np.ndarray
    labels: np.ndarray | None
    beside: Mapping[str, Any]


def read_points(path: Path, roles: ArrayRoles = ArrayRoles()) -> StoredArrays:
    """Samples and labels of a data file. The first axis counts samples.

    The data are the array named one of `DATA_KEYS`, or the only array. The labels are the array named one of
    `LABEL_KEYS`. For STEM.npy they are in STEM_labels.npy or STEM.labels.npy beside it, and so are arrays of conditions
    (STEM_NAME.npy). In .parquet files, columns of lists are arrays by name; without such columns, every column except
    labels and conditions is a feature.

    Args:
        path: The file.
        roles: Which array is what, where names do not tell.

    Returns:
        Points [N, ...], float32 or float64 as stored (other numeric types widen to one of them). Labels int64 [N], or
        None if the file has none. All other arrays as stored.

    Raises:
        InputError: The file is missing, empty, damaged or pickled, or has an unknown extension; numbers cannot be data
            (no samples, no feature axis, not numeric, not finite) or labels (wrong length, negative, fractional).
    """

    def select(arrays: _Arrays) -> StoredArrays:
        data, label = array_names(path, arrays.keys(), roles)
        beside = {name: arrays[name] for name in names_beside(arrays.keys(), data, label)}
        return StoredArrays(as_numpy(arrays[data]), None if label is None else as_numpy(arrays[label]), beside)

    points, labels, beside = read_arrays(path, str(path), select, roles.apart)
    if path.suffix.lower() == ".npy":
        stored_labels = array_beside(path, "labels")
        labels = None if stored_labels is None else as_numpy(stored_labels)
        arrays = {name: array_beside(path, name) for name in sorted(roles.apart)}
        beside = {name: array for name, array in arrays.items() if array is not None}
    points = validated_points(points, path)
    return StoredArrays(points, None if labels is None else validated_labels(labels, len(points), path), beside)


def array_beside(path: Path, name: str) -> np.ndarray | FileArray | None:
    """The array in STEM_NAME.npy or STEM.NAME.npy beside STEM.npy, or None."""
    beside = file_beside(path, name)
    return None if beside is None else read_arrays(beside, str(beside), lambda arrays: arrays[""])


def file_beside(path: Path, name: str) -> Path | None:
    """STEM_NAME.npy or STEM.NAME.npy beside STEM.npy, or None."""
    candidates = (path.with_name(f"{path.stem}{separator}{name}{path.suffix}") for separator in "_.")
    return next((candidate for candidate in candidates if candidate.exists()), None)


def read_arrays(
    content: FileContent, location: str, extract: Callable[[_Arrays], _Extracted], apart: Collection[str] = ()
) -> _Extracted:
    """Opens a file, or the bytes of one, and applies `extract` to its arrays.

    Args:
        content: The file, or its bytes. A file of type .npy or .safetensors, or a large one of type .pt, is read when
            its arrays are, row by row; no file is memory-mapped, since one that is cut short would end the process.
        location: Where the content comes from, for errors. Its extension selects the reader.
        extract: A function of the arrays by name; the name is "" in a file with a single array.
        apart: Columns of a table that are arrays of their own.

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
    if isinstance(content, Path):
        note_read(content)
    with parser_errors(location):
        if suffix == ".parquet":
            return extract(_read_parquet(content, location, apart))
        return extract(READERS[suffix](content, location))


@contextmanager
def parser_errors(location: str) -> Iterator[None]:
    """Turns whatever a parser raises for the file at `location` into InputError."""
    try:
        yield
    except (InputError, ImportError):
        raise
    except Exception as error:  # for damaged bytes parsers raise anything: assertions, struct errors, KeyError
        if is_out_of_memory(error):
            raise
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
    if isinstance(content, Path):
        return {"": npy_array(content)}
    require_numbers(content, _size(content))
    content.seek(0)
    return {"": np.load(content, allow_pickle=False)}


def _read_npz(content: FileContent, location: str) -> _Arrays:
    arrays = np.load(content, allow_pickle=False)
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise InputError(f"Expected an .npz archive, but {location} holds a single array. Rename it to .npy.")
    archive = arrays.zip
    assert archive is not None, "it is open"
    require_size(location, sum(member.file_size for member in archive.infolist()), _size(content))
    for member in archive.infolist():
        with archive.open(member) as stream:
            if member.filename.endswith(".npy"):
                require_numbers(stream, member.file_size)
    return arrays  # reads each array when it is accessed


def _read_pt(content: FileContent, location: str) -> _Arrays:
    import torch

    by_row = isinstance(content, Path) and content.stat().st_size > STREAMED_BYTES and zipfile.is_zipfile(content)
    if isinstance(content, Path) and by_row and (arrays := torch_arrays(content)) is not None:
        return arrays
    if zipfile.is_zipfile(content):
        with zipfile.ZipFile(content) as archive:
            require_size(location, sum(info.file_size for info in archive.infolist()), _size(content))
    if isinstance(content, BytesIO):
        content.seek(0)
    value = torch.load(content, map_location="cpu", weights_only=True)
    for tensor in value.values() if isinstance(value, dict) else [value]:
        if isinstance(tensor, torch.Tensor):  # one that is expanded takes no room in the file
            require_size(location, tensor.numel() * tensor.itemsize, _size(content))
    if isinstance(value, torch.Tensor):
        return {"": value}
    if not isinstance(value, dict):
        raise InputError(
            f"Expected a tensor or a dict of tensors in {location}, but it holds a {type(value).__name__}. Save "
            "tensors."
        )
    return {str(key): entry for key, entry in value.items() if isinstance(entry, torch.Tensor | int)}


def _read_safetensors(content: FileContent, location: str) -> _Arrays:
    if isinstance(content, Path):
        return safetensors_arrays(content)
    from safetensors.torch import load

    return load(content.getvalue())


def _read_parquet(content: FileContent, location: str, apart: Collection[str] = ()) -> _Arrays:
    import pyarrow.parquet as pq

    require_headroom()
    opened = content.open("rb") if isinstance(content, Path) else nullcontext(content)  # a name may look like a URI
    with opened as stream, pq.ParquetFile(stream) as file:
        _require_numbers_in_columns(file, location)
        groups = (file.metadata.row_group(k) for k in range(file.metadata.num_row_groups))
        counts = (group.column(k).num_values for group in groups for k in range(group.num_columns))
        require_size(location, _WIDEST * (sum(counts) + file.metadata.num_rows), _size(content))
        frame = file.read().to_pandas()
    arrays: dict[str, np.ndarray] = {}
    for name in [key for key in LABEL_KEYS if key in frame.columns][:1] + sorted(apart):
        numbered = sorted((c for c in frame.columns if re.fullmatch(re.escape(name) + r"[_.]\d+", str(c))), key=_number)
        if name in frame.columns:
            arrays[name] = _column(frame.pop(name), location)
        elif numbered:
            arrays[name] = np.stack([_column(frame.pop(column), location) for column in numbered], axis=1)
    columns = {str(name): _column(frame[name], location) for name in frame.columns}
    if any(column.ndim > 1 for column in columns.values()):
        return columns | arrays
    return {"": frame.to_numpy()} | arrays


def _require_numbers_in_columns(file: Any, location: str) -> None:
    """InputError for a column of anything but numbers or lists of them, before it is read."""
    for field in file.schema_arrow:
        kind = field.type
        while hasattr(kind, "value_type"):  # of lists
            kind = kind.value_type
        if not re.fullmatch(r"u?int\d+|(half)?float|double|bool|null|decimal.*", str(kind)):
            raise InputError(
                f"Expected numbers in {location}, but column {field.name!r} holds {field.type}. Drop it or encode it."
            )


def _size(content: FileContent) -> int:
    """Bytes of a file."""
    return content.stat().st_size if isinstance(content, Path) else content.getbuffer().nbytes


def _number(column: str) -> int:
    """The number at the end of a column's name."""
    return int(re.split(r"[_.]", column)[-1])


def _column(column: pd.Series, location: str) -> np.ndarray:
    """The numbers of a column [N], or [N, ...] if it holds lists of one length."""
    if column.dtype.kind in "biufc":
        return column.to_numpy()
    values = list(column)
    if values and all(isinstance(value, np.ndarray | list) for value in values):
        with suppress(ValueError):  # lists of different lengths
            return np.stack([_nested(value) for value in values])
        kind = "lists of different lengths"
    else:
        kind = str(column.dtype)
    raise InputError(
        f"Expected numbers in {location}, but column {column.name!r} holds {kind}. Drop it or encode it; pad lists to "
        "one length."
    )


def _nested(value: Any) -> np.ndarray:
    """A list of lists as one array. Raises ValueError if their lengths differ."""
    array = np.asarray(value)
    return np.stack([_nested(item) for item in array]) if array.dtype == object else array


READERS: dict[str, Callable[[FileContent, str], _Arrays]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_pt,
    ".pth": _read_pt,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}


def data_and_labels(
    location: Path | str, arrays: _Arrays, roles: ArrayRoles = ArrayRoles()
) -> tuple[np.ndarray, np.ndarray | None]:
    """The data array and the label array of a file. Raises InputError as `array_names` does.

    Args:
        location: The file, for errors.
        arrays: Its arrays by name.
        roles: Which array is what, where names do not tell.

    Returns:
        The two arrays; None if there are no labels.
    """
    data, label = array_names(location, arrays.keys(), roles)
    return as_numpy(arrays[data]), None if label is None else as_numpy(arrays[label])


def array_names(
    location: Path | str, names: Collection[str], roles: ArrayRoles = ArrayRoles()
) -> tuple[str, str | None]:
    """The names of the data array and of the label array of a file.

    Args:
        location: The file, for errors.
        names: Names of its arrays.
        roles: Which array is what, where names do not tell.

    Returns:
        The two names; None if there are no labels.

    Raises:
        InputError: The data are ambiguous, or the array that `roles` names is missing.
    """
    if roles.sample is not None and roles.sample not in names:
        present = ", ".join(filter(None, sorted(names))) or "no array with a name"
        raise InputError(
            f"Expected array {roles.sample!r} in {location}, as samples= says, but it has {present}. Correct samples=."
        )
    label = next((key for key in LABEL_KEYS if key in names and key not in (*roles.apart, roles.sample)), None)
    others = [key for key in names if key != label and key not in roles.apart]
    only = others[0] if len(others) == 1 else None
    data = roles.sample or next((key for key in DATA_KEYS if key in others), only)
    if data is None:
        present = ", ".join(sorted(names)) or "none"
        raise InputError(
            f"{location}: expected one array, or one named {', '.join(DATA_KEYS)}, but the file has {present}. Rename "
            "the data array, or add samples=NAME to --data."
        )
    return data, label


def names_beside(names: Collection[str], data: str, label: str | None) -> list[str]:
    """The names of other arrays than samples and labels. Mirrored samples, such as moments_flip, are none of them.

    Args:
        names: Names of all arrays.
        data: Name of the samples.
        label: Name of the labels, or None.

    Returns:
        The other names.
    """
    return [name for name in names if name not in (data, label) and not name.startswith(f"{data}_flip")]


def as_numpy(values: Any) -> np.ndarray:
    """A tensor, array or number as NumPy array."""
    if isinstance(values, np.ndarray | FileArray | int):
        return np.asanyarray(values)
    import torch

    tensor = values.detach().cpu()
    # NumPy has no bfloat16 and no 8-bit floats
    narrow = tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64)
    return (tensor.float() if narrow else tensor).numpy()


def float_type(points: np.ndarray | FileArray, location: Path | str) -> type:
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
    points = np.asarray(points, dtype=dtype)  # no copy if the type fits
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


def as_condition(name: str, values: Any, location: Path | str) -> np.ndarray:
    """An array of conditions as stored: booleans, integers and floating-point numbers keep their type.

    Args:
        name: Name of the array.
        values: Array or tensor [N, ...].
        location: Where it comes from, for errors.

    Returns:
        The array [N, ...].

    Raises:
        InputError: The rows have different lengths, or are no numbers, or there is no axis of samples, or a value is
            NaN.
    """
    values = as_numpy(values) if hasattr(values, "detach") else np.asanyarray(values)
    if values.dtype.kind not in "biuf":
        kind = {"O": "rows of different lengths or Python objects", "U": "text", "S": "text"}.get(
            values.dtype.kind, f"{values.dtype} values"
        )
        raise InputError(
            f"Expected numbers in array {name!r} of {location}, but it holds {kind}. Pad rows to one length and add a "
            "mask, or encode text as token numbers or embeddings."
        )
    if not values.ndim:
        raise InputError(
            f"Expected one row for each sample in array {name!r} of {location}, but it is a single number. Repeat it, "
            f"or pass it as a constant: `call: {{keywords: {{{name}: {values.item()}}}}}` in a card."
        )
    if values.dtype.name in _WIDER:
        values = values.astype(_WIDER[values.dtype.name])
    rows = max(1, _CHUNK // max(1, values[:1].size))
    for start in range(0, len(values) if values.dtype.kind == "f" else 0, rows):
        if np.isnan(bad := values[start : start + rows]).any():  # infinite values are used in masks
            row = start + int(np.isnan(bad).reshape(len(bad), -1).any(axis=1).argmax())
            raise InputError(f"{location}: array {name!r} has NaN values, first in row {row}. Remove them.")
    return values
