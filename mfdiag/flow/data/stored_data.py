"""Data on disk: `PATH[:key=value,...]` says where samples and labels are, and how the numbers are scaled."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.data.condition_arrays import select_conditions
from mfdiag.flow.data.disk_arrays import Points, ShardedArray
from mfdiag.flow.data.file_sources import ARCHIVES, FolderFiles, open_file_source
from mfdiag.flow.data.files import (
    DATA_KEYS,
    LABEL_KEYS,
    READERS,
    STREAMED_BYTES,
    ArrayRoles,
    as_numpy,
    data_and_labels,
    file_beside,
    parser_errors,
    read_arrays,
    read_points,
    validated_labels,
)
from mfdiag.flow.data.per_sample_files import find_samples, read_file_list
from mfdiag.flow.data.scaling import (
    LatentMoments,
    Numbers,
    ScaledPoints,
    channels_first,
    make_scaling,
    read_statistics,
)
from mfdiag.inputs import note_read
from mfdiag.storage import exists, expanded, is_file, is_folder, read_text

__all__ = ["SPEC_KEYS", "StoredData", "is_stored_data", "parse_numbers", "read_stored_data"]

SPEC_KEYS: dict[str, str] = {
    "scale": "a number",
    "mean": "numbers separated by /, one for all channels or one for each",
    "std": "numbers separated by /, one for all channels or one for each",
    "statistics": "a file with mean and std (or var): .json, .npz, .pt or .safetensors",
    "moments": "logvar or std: what follows the mean on the channel axis",
    "layout": "nchw or nhwc: channels first or last",
    "labels": "a file of class numbers, or none",
    "files": "samples or shards: what each file of a folder holds",
    "samples": "the name of the array with the samples",
    "conditions": "names of arrays separated by /, or none",
}
_CHOICES = {"moments": ("logvar", "std"), "layout": ("nchw", "nhwc"), "files": ("samples", "shards")}
_READ_BY_ROW = (".npy", ".pt", ".pth", ".safetensors")


def is_stored_data(spec: str) -> bool:
    """Whether `spec` refers to something on disk, by its form or because the path exists."""
    path = _split(spec)[0]
    looks_like_path = "/" in path or "\\" in path or bool(Path(path.partition(":")[0]).suffix)
    return looks_like_path or Path(path).suffix.lower() in READERS or (bool(path) and exists(Path(path)))


def _split(spec: str) -> tuple[str, str]:
    """Path and options of `PATH[:key=value,...]`. If the whole text is an existing path, it has no options."""
    if exists(expanded(spec)):
        return spec, ""
    match = re.fullmatch(r"(.+?):([a-z]+(?:[=,].*)?)", spec)
    return (match[1], match[2]) if match else (spec, "")


class StoredData(NamedTuple):
    """Samples [N, *shape] or the moments they are drawn from, labels int64 [N] or None, conditions [N, ...] by name."""

    points: Points | LatentMoments
    labels: np.ndarray | None
    conditions: Mapping[str, Points]


def read_stored_data(
    spec: str,
    *,
    scale: Numbers | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    needed: Collection[str] = (),
) -> StoredData:
    """The samples, labels and conditions of `PATH[:key=value,...]`.

    Samples are read when they are drawn, except from a small single file without scaling, which is read at once.

    Args:
        spec: The specification.
        scale: Scale of the model's card. It applies if `spec` sets none of scale, mean, std and statistics.
        mean: Mean of the model's card; applies as `scale` does.
        std: Standard deviation of the model's card; applies as `scale` does.
        needed: Names of the arrays of conditions that the network takes.

    Returns:
        What is stored.

    Raises:
        InputError: The specification contradicts itself or the data, or the data cannot be read.
    """
    path, options = _parse(spec)
    if options.keys() & {"scale", "mean", "std", "statistics"}:
        scale, mean, std = (parse_numbers(spec, key, options.get(key)) for key in ("scale", "mean", "std"))
        if "statistics" in options:
            mean, std = read_statistics(expanded(options["statistics"]))
    stored, labels, conditions = _read_unscaled(path, options, ArrayRoles.of(options, needed))
    channels_last = options.get("layout") == "nhwc"
    channels, *rest = channels_first(stored.shape[1:], channels_last)
    if "moments" not in options:
        scaling = make_scaling(spec, (channels, *rest), scale, mean, std)
        unchanged = scaling.identity and not channels_last
        return StoredData(stored if unchanged else ScaledPoints(stored, scaling, channels_last), labels, conditions)
    if channels % 2:
        raise InputError(
            f"{spec}: moments= expects an even number of channels, means first, but samples have {channels} channels. "
            "Remove moments=, or set layout=."
        )
    scaling = make_scaling(spec, (channels // 2, *rest), scale, mean, std)
    moments = LatentMoments(stored, scaling, channels_last, options["moments"] == "logvar")
    return StoredData(moments, labels, conditions)


def _parse(spec: str) -> tuple[Path, dict[str, str]]:
    """Path, and values by key. Raises InputError for an unknown or repeated key, or an invalid value."""
    path, text = _split(spec)
    options: dict[str, str] = {}
    for piece in text.split(",") if text else []:
        key, _, value = (part.strip() for part in piece.partition("="))
        if key not in SPEC_KEYS:
            raise did_you_mean("key of a data specification", key, SPEC_KEYS)
        if key in options:
            raise InputError(f"Bad {spec!r}: {key} appears twice. Remove one.")
        if not value or value not in _CHOICES.get(key, (value,)):
            raise InputError(f"Bad {spec!r}: {key} must be {SPEC_KEYS[key]}, got {value!r}.")
        options[key] = value
    if {"statistics", "mean"} <= options.keys() or {"statistics", "std"} <= options.keys():
        raise InputError(f"Bad {spec!r}: statistics= already sets mean and std. Remove one of the two.")
    return expanded(path), options


def parse_numbers(spec: str, key: str, text: str | None) -> list[float] | None:
    """The value of a key that takes numbers separated by /; None for no value.

    Args:
        spec: The specification, for errors.
        key: The key.
        text: Its value.

    Returns:
        The numbers.

    Raises:
        InputError: A part is no number.
    """
    if text is None:
        return None
    try:
        return [float(piece) for piece in text.split("/")]
    except ValueError:
        raise InputError(f"Bad {spec!r}: {key} must be {SPEC_KEYS[key]}, got {text!r}.") from None


def _read_unscaled(
    path: Path, options: Mapping[str, str], roles: ArrayRoles
) -> tuple[Points, np.ndarray | None, Mapping[str, Points]]:
    """Samples as stored, labels and conditions."""
    label_option = options.get("labels")
    points: Points
    conditions: Mapping[str, Points] = {}
    if not exists(path) and path.suffix.lower() in ("", ".json", *ARCHIVES):
        raise InputError(f"No file or folder at {path}. Pass the path of the data or the name of a data set.")
    if is_folder(path) and (own := _one_file_per_array(path, roles)) is not None:
        points, labels, conditions = own
    elif is_folder(path) or path.suffix.lower() in ARCHIVES:
        points, labels, conditions = _read_many_files(path, options.get("files"), label_option is None, roles)
    elif path.suffix.lower() == ".json":
        points, labels = read_file_list(path)
    elif path.suffix.lower() in _READ_BY_ROW and is_file(path) and _largest_file(path, roles) > STREAMED_BYTES:
        points = ShardedArray([path], roles)
        labels, conditions = points.labels, points.conditions()
    else:
        points, labels, beside = read_points(path, roles)
        conditions = select_conditions(beside, roles.conditions, roles.needed, len(points), path)
    if label_option == "none":
        labels = None
    elif label_option is not None:
        labels = _read_labels(expanded(label_option), len(points))
    return points, labels, conditions


def _largest_file(path: Path, roles: ArrayRoles) -> int:
    """Bytes of the file, or of the largest array of conditions beside a .npy file."""
    names = roles.apart if path.suffix.lower() == ".npy" else ()
    return max(file.stat().st_size for file in (path, *(file_beside(path, name) for name in names)) if file is not None)


def _one_file_per_array(path: Path, roles: ArrayRoles) -> tuple[Points, np.ndarray | None, Mapping[str, Points]] | None:
    """Samples, labels and conditions of a folder like x.npy, y.npy, obs.npy; None for a folder of another layout."""
    files = {file.stem: file for file in sorted(path.iterdir()) if file.suffix.lower() in (".npy", ".pt", ".pth")}
    data = [name for name in files if name == roles.sample or (name in DATA_KEYS and name not in roles.apart)]
    others = [name for name in files if name not in data]
    known = {*LABEL_KEYS, *roles.apart}
    if len(data) != 1 or not others or not (known & set(others)) or roles.sample not in (None, data[0]):
        return None
    labels_file = next((name for name in LABEL_KEYS if name in others), None)
    points = read_points(files[data[0]]).points
    labels = None if labels_file is None else _read_labels(files[labels_file], len(points))
    beside = {
        name: read_arrays(files[name], str(files[name]), lambda arrays: next(iter(arrays.values())))
        for name in others
        if name != labels_file
    }
    return points, labels, select_conditions(beside, roles.conditions, roles.needed, len(points), path)


def _read_many_files(
    path: Path, files_hold: str | None, with_labels: bool, roles: ArrayRoles
) -> tuple[Points, np.ndarray | None, Mapping[str, Points]]:
    """Samples of a folder or of archives. Files of a folder hold "samples", "shards", or what their shapes suggest."""
    files = open_file_source(path)
    samples, read_labels = find_samples(files, path, roles)
    if files_hold is None and isinstance(files, FolderFiles) and samples.first_label is not None:
        files_hold = "samples" if samples.first_label.size == 1 else "shards"
    labels = read_labels() if with_labels and files_hold != "shards" else None
    if files_hold is None and isinstance(files, FolderFiles) and labels is None:
        # [C, H, W] and [d] are single samples, [n, C, H, W] and [n, d] are many
        files_hold = "shards" if len(samples.shape[1:]) in (2, 4) else "samples"
    if files_hold != "shards":
        return samples, labels, samples.conditions()
    if not isinstance(files, FolderFiles):
        raise InputError(f"{path}: files in archives hold one sample each. Unpack them to use files=shards.")
    shards = ShardedArray([path / name for name in samples.names], roles)
    return shards, shards.labels if with_labels else None, shards.conditions()


def _read_labels(path: Path, samples: int) -> np.ndarray:
    """Class numbers in a .json list or in an array file."""
    if path.suffix.lower() == ".json":
        note_read(path)
        with parser_errors(str(path)):
            return validated_labels(np.asarray(json.loads(read_text(path))), samples, path)
    return validated_labels(read_arrays(path, str(path), lambda arrays: _label_array(path, arrays)), samples, path)


def _label_array(path: Path, arrays: Mapping[str, Any]) -> np.ndarray:
    data, labels = data_and_labels(path, arrays) if len(arrays) > 1 else (as_numpy(next(iter(arrays.values()))), None)
    return data if labels is None else labels
