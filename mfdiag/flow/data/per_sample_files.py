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
from mfdiag.flow.data.disk_arrays import Stored
from mfdiag.flow.data.file_sources import Folder, Members
from mfdiag.flow.data.files import DATA_KEYS, LABEL_KEYS, check_kind, checked_labels, choose, read_arrays, reading

__all__ = ["Items", "find_items", "listed_items"]

_KINDS = ("npy", "npz", "pt", "pth", "safetensors")
_NOT_DATA = re.compile(r"(^|[/._-])(labels?|noise|statistics|stats?|mean|std|var)\.\w+$", re.IGNORECASE)


class Items(Stored):
    """One file per sample; `label` is what the first file holds as such, or None."""

    def __init__(self, members: Members) -> None:
        self._members = members
        first, self.label = _decoded(members.first(), members.place(0))
        self._dtype = check_kind(first, members.place(0))
        if not first.size or not first.ndim:
            raise InputError(f"{members.place(0)} has shape {list(first.shape)}; expected the numbers of one sample.")
        super().__init__((len(members.names), *first.shape))

    def _read(self, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.empty((len(rows), *self.shape[1:]), dtype=self._dtype)
        for place, (row, content) in enumerate(zip(rows.tolist(), self._members.read(rows), strict=True)):
            sample, _ = _decoded(BytesIO(content), self._place(row))
            check_kind(sample, self._place(row))
            if sample.shape != self.shape[1:]:
                raise InputError(
                    f"{self._place(row)} has shape {list(sample.shape)}, but {self._place(0)} has "
                    f"{list(self.shape[1:])}; samples of one data set share their shape."
                )
            found[place] = sample
        return found

    def _place(self, row: int) -> str:
        return self._members.place(row)

    @property
    def names(self) -> Sequence[str]:
        """The files, in the order of samples."""
        return self._members.names

    def labels_inside(self) -> np.ndarray:
        """The labels in the files [N], for which every file is read."""
        rows = np.arange(len(self))
        labels = []
        for row, content in enumerate(self._members.read(rows)):
            label = _decoded(BytesIO(content), self._place(row))[1]
            if label is None or label.size != 1:
                came = "none" if label is None else f"{label.size} numbers"
                raise InputError(f"{self._place(row)}: expected one class number as label, found {came}.")
            labels.append(label.reshape(()))
        return np.array(labels)


def find_items(members: Members, where: Path) -> tuple[Items, Callable[[], np.ndarray | None]]:
    """The samples among `members`, in their order, and a function that reads their labels int64 [N], or gives None.

    Samples are the files of one kind: .npy, .npz, .pt, .pth or .safetensors, and in archives of several components
    (KEY.latent.pth beside KEY.text.pth) the one that is named as data. Labels come from the first there is of
    dataset.json (EDM's), KEY.cls or KEY.json beside each sample, the samples' files, and class folders: in order of
    their names, or their numbers where all are numbers. Raises InputError where no sample, or no label for one of
    them, is found.
    """
    in_archives = not isinstance(members, Folder)
    split = [_split(name, in_archives) for name in members.names]
    data = [row for row, name in enumerate(members.names) if not _NOT_DATA.search(name)]
    kind = _kind([split[row][1] for row in data], members, where)
    rows = [row for row in data if split[row][1] == kind]
    items = Items(members.subset(rows))

    def labels() -> np.ndarray | None:
        # names as they are below the folder, or inside their archive
        own = [name.partition("/")[2] for name in members.names] if in_archives else members.names
        found: Any = _in_dataset_json(members, own, rows, where)
        if found is None:
            found = _beside(members, [key for key, _ in split], [ending for _, ending in split], rows, where)
        if found is None and items.label is not None:
            found = items.labels_inside()
        if found is None:
            found = _class_folders([own[row] for row in rows])
        return None if found is None else _checked(found, len(items), where)

    return items, labels


def listed_items(path: Path, ending: str = "") -> tuple[Items, np.ndarray]:
    """The samples and labels a .json file lists under root, file_list and label_list (Re-MeanFlow's).

    With an `ending`, the files NAME{ending}.npy beside each NAME.npy instead. A root that is no absolute path starts
    at the list. Raises InputError for another content, and for files outside root.
    """
    with reading(str(path)):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not {"root", "file_list", "label_list"} <= content.keys():
        raise InputError(f"{path}: expected a mapping with root, file_list and label_list; list one file per sample.")
    names = [str(name) for name in content["file_list"]]
    if not names:
        raise InputError(f"{path} lists no files.")
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise InputError(f"{path} lists {name!r}, which is not below its root; list paths relative to it.")
    if ending:
        names = [str(PurePosixPath(name).with_suffix("")) + ending + PurePosixPath(name).suffix for name in names]
    return Items(Folder(path.parent / str(content["root"]), names)), _checked(content["label_list"], len(names), path)


def _checked(labels: Any, samples: int, where: Path) -> np.ndarray:
    with reading(str(where)):  # lists of different lengths make no array
        return checked_labels(np.asarray(labels), samples, where)


def _decoded(content: Path | BytesIO, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Sample and label (or None) in a file or in the bytes of one."""
    return read_arrays(content, name, lambda arrays: choose(name, arrays))


def _split(name: str, in_archives: bool) -> tuple[str, str]:
    """Key and kind of a file: at the last dot of its name, in archives at the first as WebDataset does."""
    folder, _, base = name.rpartition("/")
    key, _, ending = base.partition(".") if in_archives else base.rpartition(".")
    return f"{folder}/{key}", ending.lower()


def _kind(endings: Sequence[str], members: Members, where: Path) -> str:
    """The one kind of file that holds samples."""
    counts = Counter(ending for ending in endings if ending.rpartition(".")[2] in _KINDS)
    named = [ending for ending in counts if ending.partition(".")[0] in DATA_KEYS]
    kinds = named if len(counts) > 1 and len(named) == 1 else list(counts)
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        found = " and ".join(f"{count:,} .{ending}" for ending, count in counts.most_common(4))
        raise InputError(f"{where} holds {found} files; expected samples of one kind: put the others elsewhere.")
    if any(name.endswith("data.mdb") for name in members.names):
        raise InputError(
            f"{where} is an LMDB, whose values are pickled Python objects as a rule; mfdiag runs no code from a file: "
            "export its arrays as part-00000.npy with part-00000_labels.npy, and so on."
        )
    found = ", ".join(f".{ending} ({count:,})" for ending, count in Counter(endings).most_common(4)) or "nothing"
    raise InputError(f"{where}: expected {', '.join(f'.{kind}' for kind in _KINDS)} files, found {found}.")


def _in_dataset_json(members: Members, names: Sequence[str], rows: Sequence[int], where: Path) -> list[Any] | None:
    """Labels from `dataset.json`, which maps names to them; None where there is no such file, or no labels in it."""
    if "dataset.json" not in names:
        return None
    row = names.index("dataset.json")
    with reading(members.place(row)):
        content = json.loads(next(members.read(np.array([row]))))["labels"]
        listed = None if content is None else dict(content)
    return None if listed is None else [_of(listed, names[row], "dataset.json", where) for row in rows]


def _beside(
    members: Members, keys: Sequence[str], endings: Sequence[str], rows: Sequence[int], where: Path
) -> list[Any] | None:
    """Labels from KEY.cls or KEY.json beside the samples; None where there are none."""
    for kind in ("cls", "json"):
        found = {key: row for row, (key, ending) in enumerate(zip(keys, endings, strict=True)) if ending == kind}
        if any(keys[row] in found for row in rows):
            places = np.array([_of(found, keys[row], f".{kind}", where) for row in rows])
            contents = zip(places.tolist(), members.read(places), strict=True)
            values = [_value(content, members.place(row)) for row, content in contents]
            if values[0] is not None:
                return values
    return None


def _of(found: Mapping[str, Any], name: str, kind: str, where: Path) -> Any:
    if name not in found:
        raise InputError(f"{where}: no label for {name} in {kind}; give every sample one, or pass labels=none.")
    return found[name]


def _value(content: bytes, place: str) -> Any:
    """The label in a .cls or .json file; None where a mapping holds none."""
    with reading(place):
        value = json.loads(content)
    if not isinstance(value, dict):
        return value
    return next((value[key] for key in (*LABEL_KEYS, "cls") if key in value), None)


def _class_folders(names: Sequence[str]) -> list[int] | None:
    """Labels from the folders of samples, where there are several and all are one level deep."""
    parents = [name.rpartition("/")[0] for name in names]
    common = os.path.commonpath(parents) if all(parents) else ""
    folders = [parent[len(common) :].strip("/") for parent in parents]
    classes = sorted(set(folders))
    if len(classes) < 2 or any(not name or "/" in name for name in classes):
        return None
    if all(name.isdecimal() for name in classes):
        return [int(name) for name in folders]
    number = {name: place for place, name in enumerate(classes)}
    return [number[name] for name in folders]
