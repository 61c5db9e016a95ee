"""Data sets of one file per sample, with labels: in a folder, in tar or zip archives, or listed in a .json file."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mfdiag.errors import InputError
from mfdiag.flow.data.disk_arrays import DiskArray
from mfdiag.flow.data.file_arrays import FileArray
from mfdiag.flow.data.file_sources import FileSource, FolderFiles
from mfdiag.flow.data.files import (
    DATA_KEYS,
    LABEL_KEYS,
    ArrayRoles,
    array_names,
    as_condition,
    as_numpy,
    data_and_labels,
    float_type,
    names_beside,
    parser_errors,
    read_arrays,
    validated_labels,
)
from mfdiag.inputs import note_read
from mfdiag.storage import read_text

__all__ = ["PerSampleCondition", "PerSampleFiles", "find_samples", "read_file_list"]

_EXTENSIONS = ("npy", "npz", "pt", "pth", "safetensors")
_NOT_DATA = re.compile(r"(^|[/._-])(labels?|noise|statistics|stats?|mean|std|var)\.\w+$", re.IGNORECASE)
_NAMES_IN_ERROR = 4  # kinds of files that an error lists


class PerSampleFiles(DiskArray):
    """One file per sample. `first_label` is the label array in the first file, or None."""

    def __init__(self, files: FileSource, roles: ArrayRoles = ArrayRoles()) -> None:
        self._files, self._roles = files, roles
        sample, self.first_label = _described(files.first(), files.location(0), roles)
        self._dtype = float_type(sample, files.location(0))
        if not sample.size or not sample.ndim:
            raise InputError(
                f"{files.location(0)}: expected the numbers of one sample, got shape {list(sample.shape)}."
            )
        super().__init__((len(files.names), *sample.shape))

    def _read(self, rows: np.ndarray) -> np.ndarray:
        samples: np.ndarray = np.empty((len(rows), *self.shape[1:]), dtype=self._dtype)
        for position, (row, content) in enumerate(zip(rows.tolist(), self._files.read(rows), strict=True)):
            sample, _ = _decode(BytesIO(content), self._location(row), self._roles)
            float_type(sample, self._location(row))
            if sample.shape != self.shape[1:]:
                raise InputError(
                    f"Expected samples of one shape, but {self._location(row)} has {list(sample.shape)} and "
                    f"{self._location(0)} has {list(self.shape[1:])}. Move the others elsewhere."
                )
            samples[position] = sample
        return samples

    def _location(self, row: int) -> str:
        return self._files.location(row)

    def conditions(self) -> dict[str, PerSampleCondition]:
        """The arrays beside the sample in each file, by name."""

        def beside(arrays: Mapping[str, Any]) -> list[str]:
            return names_beside(arrays.keys(), *array_names(location, arrays.keys(), self._roles))

        location = self._files.location(0)
        within = read_arrays(self._files.first(), location, beside)
        names = within if self._roles.conditions is None else self._roles.conditions
        return {name: PerSampleCondition(name, self._files) for name in names}

    @property
    def names(self) -> Sequence[str]:
        """The files, in the order of samples."""
        return self._files.names

    def labels_inside(self) -> np.ndarray:
        """The labels in the files [N]. Reads every file. Raises InputError if a file has no single class number."""
        rows = np.arange(len(self))
        labels = []
        for row, content in enumerate(self._files.read(rows)):
            label = _decode(BytesIO(content), self._location(row), self._roles)[1]
            if label is None or label.size != 1:
                problem = "no label" if label is None else f"{label.size} numbers"
                raise InputError(f"{self._location(row)}: expected one class number as label, got {problem}.")
            labels.append(label.reshape(()))
        return np.array(labels)


class PerSampleCondition(DiskArray):
    """The array `name` in each file, in the type it is stored in."""

    def __init__(self, name: str, files: FileSource) -> None:
        self._name, self._files = name, files
        super().__init__((len(files.names), *self._array(files.first(), 0).shape))

    def _array(self, content: Path | BytesIO, row: int) -> np.ndarray:
        def select(arrays: Mapping[str, Any]) -> np.ndarray:
            if self._name not in arrays:
                raise InputError(
                    f"Expected array {self._name!r} in {self._location(row)}, as in the other files. Add it."
                )
            return as_condition(self._name, as_numpy(arrays[self._name])[None], self._location(row))[0]

        return read_arrays(content, self._location(row), select)

    def _invalid(self, samples: np.ndarray) -> np.ndarray:
        return np.zeros(samples.shape, dtype=bool)  # checked when they are read

    def _read(self, rows: np.ndarray) -> np.ndarray:
        arrays = []
        for row, content in zip(rows.tolist(), self._files.read(rows), strict=True):
            array = self._array(BytesIO(content), row)
            if array.shape != self.shape[1:]:
                raise InputError(
                    f"Expected {self._name!r} of one shape, but {self._location(row)} has {list(array.shape)} and "
                    f"{self._location(0)} has {list(self.shape[1:])}. Pad them to one length and add a mask."
                )
            arrays.append(array)
        return np.stack(arrays)

    def _location(self, row: int) -> str:
        return self._files.location(row)


def find_samples(
    files: FileSource, location: Path, roles: ArrayRoles = ArrayRoles()
) -> tuple[PerSampleFiles, Callable[[], np.ndarray | None]]:
    """The samples among `files`, and a function that reads their labels int64 [N] or returns None.

    Samples are the files of one type: .npy, .npz, .pt, .pth or .safetensors. In archives with several components
    (KEY.latent.pth beside KEY.text.pth) they are the component that is named as data. The first of these sources that
    exists provides the labels: dataset.json (EDM's), KEY.cls or KEY.json beside each sample, the files of the samples,
    class folders. Class folders are numbered by their own numbers if all names are numbers, else in the order of their
    names. Raises InputError if there is no sample, or if a sample has no label while others have one.

    Args:
        files: The files.
        location: Their path, for errors.
        roles: Which array of a file is what; files whose names end in that of a condition are no samples.

    Returns:
        The samples, and the function.
    """
    in_archives = not isinstance(files, FolderFiles)
    keys_and_endings = [_split(name, in_archives) for name in files.names]
    conditions = tuple(f"{separator}{name}" for name in roles.apart for separator in "_.")
    data_rows = [
        row
        for row, name in enumerate(files.names)
        if not _NOT_DATA.search(name) and not name.rpartition(".")[0].endswith(conditions)
    ]
    data_ending = _sample_ending([keys_and_endings[row][1] for row in data_rows], files, location)
    rows = [row for row in data_rows if keys_and_endings[row][1] == data_ending]
    samples = PerSampleFiles(files.subset(rows), roles)

    def read_labels() -> np.ndarray | None:
        # names relative to the folder, or to their archive
        names = [name.partition("/")[2] for name in files.names] if in_archives else files.names
        labels: Any = _labels_in_dataset_json(files, names, rows, location)
        if labels is None:
            labels = _labels_beside_samples(files, keys_and_endings, rows, location)
        if labels is None and samples.first_label is not None:
            labels = samples.labels_inside()
        if labels is None:
            labels = _labels_of_class_folders([names[row] for row in rows])
        return None if labels is None else _validated(labels, len(samples), location)

    return samples, read_labels


def read_file_list(path: Path, ending: str = "") -> tuple[PerSampleFiles, np.ndarray]:
    """The samples and labels that a .json file lists under root, file_list and label_list (Re-MeanFlow's format).

    With an `ending`, the samples are the files NAME{ending}.npy beside each NAME.npy. A relative root starts at the
    folder of the list. Raises InputError for another content, and for files outside root.
    """
    note_read(path)
    with parser_errors(str(path)):
        content = json.loads(read_text(path))
    if not isinstance(content, dict) or not {"root", "file_list", "label_list"} <= content.keys():
        raise InputError(
            f"{path}: expected a mapping with root, file_list and label_list. Write one that lists one file per sample."
        )
    if not isinstance(content["file_list"], list):
        raise InputError(f"{path}: expected file_list to be a list of file names, got {content['file_list']!r:.40}.")
    names = [str(name) for name in content["file_list"]]
    if not names:
        raise InputError(f"{path}: expected at least one file in file_list, got none.")
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise InputError(f"{path} lists {name!r}, which is not below its root. List paths relative to root.")
    if ending:
        names = [ending.join(os.path.splitext(name)) for name in names]  # noqa: PTH122  (a Path refuses an empty one)
    root = path.parent / str(content["root"])
    note_read(root, names)
    samples = PerSampleFiles(FolderFiles(root, names))
    return samples, _validated(content["label_list"], len(names), path)


def _validated(labels: Any, samples: int, location: Path) -> np.ndarray:
    with parser_errors(str(location)):  # lists of different lengths are not an array
        return validated_labels(np.asarray(labels), samples, location)


def _described(
    content: Path | BytesIO, location: str, roles: ArrayRoles
) -> tuple[np.ndarray | FileArray, np.ndarray | None]:
    """Sample and label (or None) of a file that may be too large to read: the sample is not read where that can be."""

    def select(arrays: Mapping[str, Any]) -> tuple[np.ndarray | FileArray, np.ndarray | None]:
        data, label = array_names(location, arrays.keys(), roles)
        sample = arrays[data] if isinstance(arrays[data], FileArray) else as_numpy(arrays[data])
        return sample, None if label is None else as_numpy(arrays[label])

    return read_arrays(content, location, select)


def _decode(
    content: Path | BytesIO, location: str, roles: ArrayRoles = ArrayRoles()
) -> tuple[np.ndarray, np.ndarray | None]:
    """Sample and label (or None) in a file or in the bytes of one."""
    return read_arrays(content, location, lambda arrays: data_and_labels(location, arrays, roles))


def _split(name: str, in_archives: bool) -> tuple[str, str]:
    """Key and ending of a file name, split at its last dot; in archives at its first, as WebDataset does."""
    folder, _, base = name.rpartition("/")
    key, _, ending = base.partition(".") if in_archives else base.rpartition(".")
    return f"{folder}/{key}", ending.lower()


def _sample_ending(endings: Sequence[str], files: FileSource, location: Path) -> str:
    """The ending of the files that hold samples."""
    counts = Counter(ending for ending in endings if ending.rpartition(".")[2] in _EXTENSIONS)
    named_as_data = [ending for ending in counts if ending.partition(".")[0] in DATA_KEYS]
    candidates = named_as_data if len(counts) > 1 and len(named_as_data) == 1 else list(counts)
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        kinds = ", ".join(f".{ending} ({count:,})" for ending, count in counts.most_common(_NAMES_IN_ERROR))
        raise InputError(
            f"Expected sample files of one kind in {location}, but it holds {kinds} files. Move the others elsewhere."
        )
    if any(name.endswith("data.mdb") for name in files.names):
        raise InputError(
            f"{location} is an LMDB. Its values are usually pickled Python objects, and mfdiag runs no code from a "
            "file. Export its arrays as part-00000.npy with part-00000_labels.npy, and so on."
        )
    kinds = ", ".join(f".{ending} ({count:,})" for ending, count in Counter(endings).most_common(_NAMES_IN_ERROR))
    extensions = ", ".join(f".{extension}" for extension in _EXTENSIONS)
    raise InputError(f"{location}: expected {extensions} files, but it holds {kinds or 'nothing'}. Check the path.")


def _labels_in_dataset_json(
    files: FileSource, names: Sequence[str], rows: Sequence[int], location: Path
) -> list[Any] | None:
    """Labels from `dataset.json`, which maps names to them; None if there is no such file, or no labels in it."""
    if "dataset.json" not in names:
        return None
    row = names.index("dataset.json")
    with parser_errors(files.location(row)):
        content = json.loads(next(files.read(np.array([row]))))["labels"]
        labels = None if content is None else dict(content)
    return None if labels is None else [_lookup(labels, names[row], "dataset.json", location) for row in rows]


def _labels_beside_samples(
    files: FileSource, keys_and_endings: Sequence[tuple[str, str]], rows: Sequence[int], location: Path
) -> list[Any] | None:
    """Labels from KEY.cls or KEY.json beside the samples; None if there are none."""
    sample_keys = [keys_and_endings[row][0] for row in rows]
    for label_ending in ("cls", "json"):
        row_of = {key: row for row, (key, ending) in enumerate(keys_and_endings) if ending == label_ending}
        if any(key in row_of for key in sample_keys):
            label_rows = np.array([_lookup(row_of, key, f".{label_ending}", location) for key in sample_keys])
            contents = zip(label_rows.tolist(), files.read(label_rows), strict=True)
            values = [_label_in(content, files.location(row)) for row, content in contents]
            if values[0] is not None:
                return values
    return None


def _lookup(mapping: Mapping[str, Any], name: str, source: str, location: Path) -> Any:
    if name not in mapping:
        raise InputError(
            f"{location}: no label for {name.lstrip('/')} in {source}. Add a label for every sample, or pass "
            "labels=none."
        )
    return mapping[name]


def _label_in(content: bytes, location: str) -> Any:
    """The label in a .cls or .json file; None if a mapping has none."""
    with parser_errors(location):
        value = json.loads(content)
    if not isinstance(value, dict):
        return value
    return next((value[key] for key in (*LABEL_KEYS, "cls") if key in value), None)


def _labels_of_class_folders(names: Sequence[str]) -> list[int] | None:
    """Labels from the folders of samples, if there are several folders and all are on one level."""
    parents = [name.rpartition("/")[0] for name in names]
    common = os.path.commonpath(parents) if all(parents) else ""
    folders = [parent[len(common) :].strip("/") for parent in parents]
    classes = sorted(set(folders))
    if len(classes) < 2 or any(not name or "/" in name for name in classes):
        return None
    if all(name.isdecimal() for name in classes):
        return [int(name) for name in folders]
    number = {name: position for position, name in enumerate(classes)}
    return [number[name] for name in folders]
