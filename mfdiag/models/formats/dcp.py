"""Folders of torch.distributed.checkpoint: `.metadata` says where the parts of each tensor lie in the data files.

torch unpickles `.metadata`. This reader takes it as data: stand-ins replace the classes it names, and each part in the
data files, which is a file of torch.save in itself, is read as such a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from mfdiag.errors import InputError, first_line
from mfdiag.models.formats.archives import damaged_file
from mfdiag.models.formats.named_files import file_beside, regular_file
from mfdiag.models.formats.pickles import PickleContent, Record, TensorHeader, read_pickle
from mfdiag.models.formats.ranks import assembled
from mfdiag.models.formats.torchfile import read_torch, read_torch_bytes, torch_format
from mfdiag.storage import is_file

__all__ = ["read_dcp"]

_METADATA = ".metadata"
_REST = "meta.pt"  # where Lightning stores what is not sharded
_METADATA_CLASSES = (
    *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
    *("TensorProperties", "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING"),
)
_CLASSES = (*(f"metadata.{name}" for name in _METADATA_CLASSES), "filesystem._StorageInfo")
_OPTIMIZER_STATE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "square_avg", "step")


class _Piece(NamedTuple):
    """A part of a tensor: where it begins in the tensor, its lengths, and where its bytes are."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: Path
    start: int
    length: int


def read_dcp(folder: Path, *, load: bool) -> tuple[dict[str, Any], list[Path]]:
    """Read the tensors and plain values of a folder of torch.distributed.checkpoint.

    Args:
        folder: The folder with `.metadata`.
        load: Whether to load tensors. Without it, each is a `TensorHeader`, and torch is not imported.

    Returns:
        The tree of the state that was saved, without the states of optimizers, and the files that hold it.

    Raises:
        InputError: If a file is missing, damaged, or names anything outside the folder; if parts of a tensor are
            missing; if values are pickled objects that are neither tensors nor plain values.
    """
    index = regular_file(folder / _METADATA)
    try:
        metadata, where = _metadata(index)
        tree: dict[str, Any] = {}
        files: dict[str, Path] = {}
        for name, entry in metadata.items():
            path = where.paths.get(name, (name,))
            if _belongs_to_optimizer(path):
                continue
            pieces = _pieces(name, entry, where, index, files)
            value = _tensor(name, entry, pieces, index, load) if _is_tensor(entry) else _read(pieces[0], load=False)
            _put(tree, path, value)
    except InputError:
        raise
    except Exception as error:  # metadata of another form raises KeyError, TypeError, AttributeError, ...
        raise damaged_file(index, "DCP", f"{type(error).__name__}: {first_line(error)}".rstrip(".")) from error
    rest = folder / _REST
    if is_file(rest):
        tree = dict(read_torch(rest, torch_format(rest), load=load)) | tree
        files[_REST] = rest
    return tree, [index, *sorted(files.values())]


class _Places(NamedTuple):
    """Path of keys of each entry in the saved state, and where its parts are: file, first byte, bytes, offsets."""

    paths: Mapping[str, tuple[Any, ...]]
    parts: Mapping[str, list[tuple[tuple[int, ...] | None, Record]]]


def _metadata(index: Path) -> tuple[Mapping[str, Record], _Places]:
    pickled = PickleContent(records=frozenset(f"torch.distributed.checkpoint.{name}" for name in _CLASSES))
    with index.open("rb") as file:
        content = read_pickle(file, pickled).tree
    if pickled.unknown:
        raise InputError(
            f"Expected metadata of torch.distributed.checkpoint, but {index} names {pickled.unknown[0]}; mfdiag runs "
            "no code from a file. Write the folder again with torch.distributed.checkpoint.save."
        )
    parts: dict[str, list[tuple[tuple[int, ...] | None, Record]]] = {}
    for place, info in content.storage_data.items():
        parts.setdefault(place.fqn, []).append((getattr(place, "offset", None), info))
    return content.state_dict_metadata, _Places(content.planner_data or {}, parts)


def _pieces(name: str, entry: Record, where: _Places, index: Path, files: dict[str, Path]) -> list[_Piece]:
    """The parts of an entry. `files` collects the files they are in, each checked once."""
    stored = where.parts.get(name, [])
    sizes = {tuple(chunk.offsets): tuple(chunk.sizes) for chunk in entry.chunks} if _is_tensor(entry) else {}
    pieces = []
    for offsets, info in stored:
        if getattr(info, "transform_descriptors", None):
            raise InputError(
                f"Expected uncompressed tensors, but {index} says that {name} is stored by "
                f"{info.transform_descriptors[0]!r}; save without extensions of the file system."
            )
        if info.relative_path not in files:
            files[info.relative_path] = file_beside(index, info.relative_path)
        file = files[info.relative_path]
        if not (info.offset >= 0 and info.length >= 0 and info.offset + info.length <= file.stat().st_size):
            raise damaged_file(file, "DCP", f"{name} should end at byte {info.offset + info.length:,}")
        key = tuple(offsets or ())
        pieces.append(_Piece(key, sizes.get(key, ()), file, info.offset, info.length))
    if not pieces:
        raise damaged_file(index, "DCP", f"it does not say where {name} is")
    return pieces


def _is_tensor(entry: Record) -> bool:
    return hasattr(entry, "chunks")


def _tensor(name: str, entry: Record, pieces: list[_Piece], index: Path, load: bool) -> Any:
    """The tensor made of its parts, or its header. Raises InputError if parts are missing."""
    shape = tuple(entry.size)
    covered = sum(prod(piece.sizes) for piece in {piece.offsets: piece for piece in pieces}.values())
    if covered != prod(shape):
        raise InputError(
            f"Expected all parts of {name}, but {index} lists {covered:,} of {prod(shape):,} numbers; copy the whole "
            "folder, with the files of every process."
        )
    if not load:
        number = None if shape else _read(pieces[0], load=False).item()
        return TensorHeader(shape, _dtype(entry), number)
    parts = [(piece, _read(piece, load=True)) for piece in pieces]
    for piece, part in parts:
        if tuple(getattr(part, "shape", ())) != piece.sizes or not hasattr(part, "dtype"):
            raise damaged_file(piece.file, "DCP", f"{name} has another shape than {index.name} says")
    if len(parts) == 1:
        return parts[0][1]
    places = [
        tuple(slice(start, start + size) for start, size in zip(piece.offsets, piece.sizes, strict=True))
        for piece in pieces
    ]
    whole = assembled(shape, [part for _, part in parts], places)
    if whole is None:
        raise damaged_file(index, "DCP", f"the parts of {name} overlap")
    return whole


def _dtype(entry: Record) -> str:
    """The dtype that torch pickles as the first field of a tensor's properties."""
    return str(entry.properties.state[0])


def _read(piece: _Piece, *, load: bool) -> Any:
    """The part; without `load` a header, a plain value, or an object that is not read, as data loaders leave them."""
    with piece.file.open("rb") as file:
        file.seek(piece.start)
        raw = file.read(piece.length)
    return read_torch_bytes(raw, piece.file, load=load)


def _belongs_to_optimizer(path: tuple[Any, ...]) -> bool:
    """Whether an entry is the state of an optimizer, which may be twice as large as the weights."""
    words = ".".join(map(str, path)).split(".")
    return words[-1] in _OPTIMIZER_STATE and "state" in words[:-1]


def _put(tree: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    """Set the value at a path of keys; lists become mappings, whose keys are whole numbers."""
    for key in path[:-1]:
        inner = tree.setdefault(key, {})
        if not isinstance(inner, dict):
            return
        tree = inner
    tree[path[-1]] = value
