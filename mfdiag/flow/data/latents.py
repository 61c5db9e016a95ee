"""Data on disk: `PATH[:key=value,...]`, where the samples and their labels are, and how their numbers are scaled."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.data.disk_arrays import Points, Shards
from mfdiag.flow.data.file_sources import ARCHIVES, Folder, open_members
from mfdiag.flow.data.files import READERS, as_numpy, checked_labels, choose, read_arrays, read_points, reading
from mfdiag.flow.data.per_sample_files import find_items, listed_items
from mfdiag.flow.data.scaling import LatentMoments, Numbers, Scaled, channels_first, make_scaling, read_statistics

__all__ = ["WORDS", "is_place", "read_latents"]

WORDS: dict[str, str] = {
    "scale": "a number",
    "mean": "numbers separated by /, one for all channels or for each",
    "std": "numbers separated by /, one for all channels or for each",
    "statistics": "a file with mean and std (or var): .json, .npz, .pt or .safetensors",
    "moments": "logvar or std: what is stacked behind the mean on the channel axis",
    "layout": "nchw or nhwc: where the channels are, first or last",
    "labels": "a file of class numbers, or none",
    "files": "samples or shards: what a file of a folder holds",
}
_CHOICES = {"moments": ("logvar", "std"), "layout": ("nchw", "nhwc"), "files": ("samples", "shards")}
_MAPPED = (".npy", ".pt", ".pth", ".safetensors")
_STREAMED = 2**28  # bytes of a single file above which it is not read and checked whole at the start


def is_place(spec: str) -> bool:
    """Whether `spec` names something on disk, by its form or because it is there."""
    path = _split(spec)[0]
    named = "/" in path or "\\" in path or bool(Path(path.partition(":")[0]).suffix)
    return named or Path(path).suffix.lower() in READERS or (bool(path) and Path(path).exists())


def _split(spec: str) -> tuple[str, str]:
    """Path and words of `PATH[:key=value,...]`; what exists as it stands is a path alone."""
    if Path(spec).expanduser().exists():
        return spec, ""
    found = re.fullmatch(r"(.+?):([a-z]+(?:[=,].*)?)", spec)
    return (found[1], found[2]) if found else (spec, "")


def read_latents(
    spec: str, *, scale: Numbers | None = None, mean: Numbers | None = None, std: Numbers | None = None
) -> tuple[Points | LatentMoments, np.ndarray | None]:
    """The samples `PATH[:key=value,...]` names and their labels int64 [N] (or None).

    `scale`, `mean` and `std` hold where the specification says nothing of any of them. Samples are read as they are
    drawn, except from a single small file that is used as it is. Raises InputError for a specification that makes no
    sense and for data that cannot be read.
    """
    path, words = _parse(spec)
    if words.keys() & {"scale", "mean", "std", "statistics"}:
        scale, mean, std = (
            _numbers(spec, key, words[key]) if key in words else None for key in ("scale", "mean", "std")
        )
        if "statistics" in words:
            mean, std = read_statistics(Path(words["statistics"]).expanduser())
    stored, labels = _stored(path, words)
    last = words.get("layout") == "nhwc"
    channels, *rest = channels_first(stored.shape[1:], last)
    if "moments" not in words:
        scaling = make_scaling(spec, (channels, *rest), scale, mean, std)
        return stored if scaling.identity and not last else Scaled(stored, scaling, last), labels
    if channels % 2:
        raise InputError(
            f"{spec}: moments are stacked on the channel axis, mean first, but samples have {channels} channels: leave "
            "moments= away, or say where the channels are by layout=."
        )
    scaling = make_scaling(spec, (channels // 2, *rest), scale, mean, std)
    return LatentMoments(stored, scaling, last, words["moments"] == "logvar"), labels


def _parse(spec: str) -> tuple[Path, dict[str, str]]:
    """Path, and values by key. Raises InputError for an unknown or repeated key, or a value that is none of a key's."""
    path, text = _split(spec)
    words: dict[str, str] = {}
    for piece in text.split(",") if text else []:
        key, _, value = (part.strip() for part in piece.partition("="))
        if key not in WORDS:
            raise did_you_mean("word of a data file", key, WORDS)
        if key in words:
            raise InputError(f"Bad {spec!r}: {key} is there twice; leave it once.")
        if not value or value not in _CHOICES.get(key, (value,)):
            raise InputError(f"Bad {spec!r}: {key} must be {WORDS[key]}, got {value!r}.")
        words[key] = value
    if {"statistics", "mean"} <= words.keys() or {"statistics", "std"} <= words.keys():
        raise InputError(f"Bad {spec!r}: statistics= has mean and std already; give one or the other.")
    return Path(path).expanduser(), words


def _numbers(spec: str, key: str, text: str) -> list[float]:
    try:
        return [float(piece) for piece in text.split("/")]
    except ValueError:
        raise InputError(f"Bad {spec!r}: {key} must be {WORDS[key]}, got {text!r}.") from None


def _stored(path: Path, words: Mapping[str, str]) -> tuple[Points, np.ndarray | None]:
    """Samples as stored, and labels."""
    word = words.get("labels")
    points: Points
    if not path.exists() and path.suffix.lower() in ("", ".json", *ARCHIVES):
        raise InputError(f"No file or folder at {path}; give the path of the data or the name of a data set.")
    if path.is_dir() or path.suffix.lower() in ARCHIVES:
        points, labels = _in_many(path, words.get("files"), labelled=word is None)
    elif path.suffix.lower() == ".json":
        points, labels = listed_items(path)
    elif path.suffix.lower() in _MAPPED and path.is_file() and path.stat().st_size > _STREAMED:
        points = Shards([path])
        labels = points.labels
    else:
        points, labels = read_points(path)
    if word is None or word == "none":
        return points, labels if word is None else None
    return points, _labels_file(Path(word).expanduser(), len(points))


def _in_many(path: Path, files: str | None, labelled: bool) -> tuple[Points, np.ndarray | None]:
    """Samples of a folder or of archives: one per file, or many per file where these are arrays of samples."""
    members = open_members(path)
    items, read_labels = find_items(members, path)
    if files is None and isinstance(members, Folder) and items.label is not None:
        files = "samples" if items.label.size == 1 else "shards"
    labels = read_labels() if labelled and files != "shards" else None
    if files is None and isinstance(members, Folder) and labels is None:
        # [C, H, W] and [d] are samples, [n, C, H, W] and [n, d] are many
        files = "shards" if len(items.shape[1:]) in (2, 4) else "samples"
    if files != "shards":
        return items, labels
    if not isinstance(members, Folder):
        raise InputError(f"{path}: archives hold one sample per file; unpack them to use files=shards.")
    shards = Shards([path / name for name in items.names])
    return shards, shards.labels if labelled else None


def _labels_file(path: Path, samples: int) -> np.ndarray:
    """Class numbers in a .json list or in an array file."""
    if path.suffix.lower() == ".json":
        with reading(str(path)):
            return checked_labels(np.asarray(json.loads(path.read_text(encoding="utf-8"))), samples, path)
    return checked_labels(read_arrays(path, str(path), lambda found: _only(path, found)), samples, path)


def _only(path: Path, arrays: Mapping[str, Any]) -> np.ndarray:
    data, labels = choose(path, arrays) if len(arrays) > 1 else (as_numpy(next(iter(arrays.values()))), None)
    return data if labels is None else labels
