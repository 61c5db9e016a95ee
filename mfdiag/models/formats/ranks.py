"""Distributed tensors (DTensor) of which each process stored its part in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfdiag.errors import InputError
from mfdiag.models.formats.named_files import regular_file
from mfdiag.models.formats.pickles import PartHeader, TensorHeader
from mfdiag.models.formats.torchfile import read_torch, torch_format

__all__ = ["assembled", "read_ranks"]

_MAX_DEPTH = 4  # of mappings whose tensors are joined

Place = tuple[slice, ...]


def read_ranks(files: Mapping[str, Path], *, load: bool) -> dict[str, Any]:
    """Join the parts of distributed tensors that the files of all processes hold.

    Args:
        files: The number of each process, as in the name of its file, and the file.
        load: Whether to load tensors. Without it, each is a `TensorHeader`, and torch is not imported.

    Returns:
        The mapping of the first file, with whole tensors.

    Raises:
        InputError: If a part is missing, is divided in a way that is not known, or if files hold different networks.
    """
    paths = [regular_file(files[rank]) for rank in sorted(files, key=int)]
    headers = [read_torch(path, torch_format(path), load=False, parts=True) for path in paths]
    if not load:
        return _joined(headers, headers, paths, "", _MAX_DEPTH, load)
    trees = [read_torch(path, torch_format(path), load=True, parts=True) for path in paths]
    return _joined(headers, trees, paths, "", _MAX_DEPTH, load)


def _joined(
    headers: Sequence[Mapping[Any, Any]],
    trees: Sequence[Mapping[Any, Any]],
    paths: Sequence[Path],
    place: str,
    depth: int,
    load: bool,
) -> dict[str, Any]:
    result: dict[Any, Any] = {}
    for key, first in headers[0].items():
        name = f"{place}.{key}" if place else str(key)
        parts: list[Any] = [tree.get(key) for tree in headers]
        if isinstance(first, PartHeader):
            places = _places(name, parts, paths)
            values = [tree[key] for tree in trees]
            result[key] = _whole(first, values, places) if load else TensorHeader(first.shape, first.dtype)
        elif isinstance(first, Mapping) and depth and all(isinstance(part, Mapping) for part in parts):
            inner = [tree[key] for tree in trees]
            result[key] = _joined(parts, inner, paths, name, depth - 1, load)
        else:
            result[key] = trees[0][key]
    return result


def _places(name: str, parts: Sequence[Any], paths: Sequence[Path]) -> list[Place]:
    """Where each part lies in the tensor. Raises InputError if parts are missing.

    The parts along an axis of the tensor lie in the order of their processes on the axes of the mesh that divide it.
    """
    for part, path in zip(parts, paths, strict=True):
        if not isinstance(part, PartHeader) or part.shape != parts[0].shape:
            raise InputError(
                f"Expected a part of {name} in the file of every process, but {path} has none of the same tensor; "
                "remove files of other checkpoints from the folder."
            )
        if not part.coordinate or any(kind not in ("Shard", "Replicate") for kind, _ in part.placements):
            kinds = ", ".join(kind for kind, _ in part.placements) or "an unknown way"
            raise InputError(
                f"Expected {name} in parts that Shard or Replicate make, but {path} has parts of {kinds}; save the "
                "whole state dict with get_model_state_dict and full_state_dict=True."
            )
    spans: list[list[slice]] = [[] for _ in parts]
    for axis, length in enumerate(parts[0].shape):
        divided = [i for i, (kind, dim) in enumerate(parts[0].placements) if kind == "Shard" and dim == axis]
        lengths: dict[tuple[int, ...], int] = {}
        for part in parts:
            lengths[tuple(part.coordinate[i] for i in divided)] = part.local_shape[axis]
        starts, end = {}, 0
        for position in sorted(lengths):
            starts[position], end = end, end + lengths[position]
        if end != length:
            of = f" of {parts[0].processes} processes" if parts[0].processes else ""
            raise InputError(
                f"Expected the parts of all processes, but {paths[0].parent} has the files of {len(paths)}{of}, with "
                f"{end:,} of {length:,} rows of axis {axis} of {name}; add the files of the others."
            )
        for span, part in zip(spans, parts, strict=True):
            start = starts[tuple(part.coordinate[i] for i in divided)]
            span.append(slice(start, start + part.local_shape[axis]))
    return [tuple(span) for span in spans]


def assembled(shape: Sequence[int], values: Sequence[Any], places: Sequence[Place]) -> Any:
    """The tensor made of parts.

    Args:
        shape: Its shape.
        values: The parts.
        places: Where each part lies in it.

    Returns:
        The tensor; None if some of it is in no part.
    """
    import torch

    whole = torch.empty(shape, dtype=values[0].dtype)
    filled = torch.zeros(shape, dtype=torch.bool)
    for value, place in zip(values, places, strict=True):
        whole[place] = value
        filled[place] = True
    return whole if filled.all() else None


def _whole(header: PartHeader, values: Sequence[Any], places: Sequence[Place]) -> Any:
    whole = assembled(header.shape, values, places)
    if whole is None:
        raise InputError(
            f"Expected parts that cover a tensor {list(header.shape)}, but some of it is in none of the files; add the "
            "files of all processes."
        )
    return whole
