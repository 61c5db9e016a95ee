"""Folders of Orbax: arrays in the Zarr format, each in a folder of its own or all in an OCDBT database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mfdiag.errors import InputError, abbreviated, first_line
from mfdiag.models.formats.archives import damaged_file
from mfdiag.models.formats.flaxfile import is_flax, unpacked
from mfdiag.models.formats.jax_tree import JAX_EXTRA, as_sets, known_dtype, tensor_of
from mfdiag.models.formats.pickles import TensorHeader
from mfdiag.storage import is_folder

__all__ = ["orbax_folder", "read_orbax"]

_TREE = "_METADATA"  # the tree of names
_AGGREGATE = "checkpoint"  # the tree in MessagePack, with small arrays inside, before Orbax 0.5
_PLACEHOLDER = "PLACEHOLDER://"  # in place of an array that lies outside the aggregate
_DATABASE = "manifest.ocdbt"
_ITEMS = ("default", "state", "params", "model")  # folders in a step of a CheckpointManager
_OPTIMIZER = "opt_state."  # twice as large as the weights, and never needed
_MAX_CHOICES = 5  # that an error lists
_VIEWS = {1: "uint8", 2: "uint16"}  # bits of dtypes that numpy lacks, by their bytes


def orbax_folder(path: Path) -> Path | None:
    """The folder with the arrays of an Orbax checkpoint, or None.

    Args:
        path: A folder: of one item, of a step of a `CheckpointManager`, or of its only step.

    Returns:
        `path`, or the folder below it.

    Raises:
        InputError: If there are several steps or items, of which one must be chosen.
    """
    if not is_folder(path):
        return None
    if _has_tree(path):
        return path
    items = [path / name for name in _ITEMS if _has_tree(path / name)]
    items = items or [folder for folder in sorted(path.iterdir()) if _has_tree(folder)]
    steps = [folder for folder in sorted(path.iterdir()) if folder.name.isdecimal() and folder.is_dir()]
    steps = [folder for folder in steps if any(_has_tree(item) for item in (folder, *folder.iterdir()))]
    choices = items or steps
    if len(choices) > 1:
        names = abbreviated([folder.name for folder in choices], _MAX_CHOICES)
        raise InputError(
            f"Expected one Orbax checkpoint, but {path} has {len(choices)}: {names}; pass one of them, as in "
            f"{choices[-1]}."
        )
    return orbax_folder(choices[0]) if choices else None


def _has_tree(folder: Path) -> bool:
    return (folder / _TREE).is_file() or _has_aggregate(folder)


def _has_aggregate(folder: Path) -> bool:
    """Whether the folder has the tree in MessagePack; TensorFlow writes text of that name."""
    file = folder / _AGGREGATE
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return is_flax(stream.read(9))


def read_orbax(folder: Path, *, load: bool) -> tuple[dict[str, Any], list[Path]]:
    """Read the sets of weights and plain values of an Orbax checkpoint.

    Args:
        folder: As `orbax_folder` returns it.
        load: Whether to read the values; without it, arrays are `TensorHeader`s.

    Returns:
        The outermost mapping, in which parameters have dotted names; and all files of the folder.

    Raises:
        InputError: If the folder is damaged, or the extra is missing.
    """
    tree = _aggregate(folder, load) if _has_aggregate(folder) else _tree_of_names(folder)
    names = list(_placeholders(tree))
    for name in names:
        if not name or "\\" in name or name.startswith("/") or ".." in name.split("/"):
            raise damaged_file(folder, "Orbax", f"it names an array {name!r} outside its folder")
    arrays = _read_arrays(folder, names, load)
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return as_sets(_filled(tree, arrays), folder), files


def _tree_of_names(folder: Path) -> dict[str, Any]:
    """Nested mappings whose leaves are placeholders of arrays, from the metadata."""
    tree: dict[str, Any] = {}
    try:
        metadata = json.loads((folder / _TREE).read_bytes())
        for entry in metadata["tree_metadata"].values():
            keys = [str(key["key"]) for key in entry["key_metadata"]]
            if not keys or entry["value_metadata"].get("value_type") in ("None", "Dict", "List", "Tuple", "NamedTuple"):
                continue  # an empty node
            inner = tree
            for key in keys[:-1]:
                inner = inner.setdefault(key, {})
            inner[keys[-1]] = _PLACEHOLDER + ".".join(keys)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged_file(folder, "Orbax", f"{_TREE} is no tree of names, {type(error).__name__}") from error
    return tree


def _aggregate(folder: Path, load: bool) -> Any:
    file = folder / _AGGREGATE
    return unpacked(file.read_bytes(), file, load=load)


def _placeholders(tree: Any) -> list[str]:
    """The names of the arrays that a tree refers to."""
    if isinstance(tree, Mapping):
        return [name for value in tree.values() for name in _placeholders(value)]
    if isinstance(tree, list):
        return [name for value in tree for name in _placeholders(value)]
    is_placeholder = isinstance(tree, str) and tree.startswith(_PLACEHOLDER)
    return [tree.removeprefix(_PLACEHOLDER)] if is_placeholder else []


def _filled(tree: Any, arrays: Mapping[str, Any]) -> Any:
    """The tree with arrays in place of placeholders; lists become mappings, as flax has them."""
    if isinstance(tree, list):
        tree = {str(number): value for number, value in enumerate(tree)}
    if isinstance(tree, Mapping):
        return {name: _filled(value, arrays) for name, value in tree.items()}
    if isinstance(tree, str) and tree.startswith(_PLACEHOLDER):
        return arrays[tree.removeprefix(_PLACEHOLDER)]
    return tree


def _read_arrays(folder: Path, names: list[str], load: bool) -> dict[str, Any]:
    """Arrays by name, all opened and read at once."""
    try:
        import tensorstore
    except ImportError as error:
        raise InputError(
            f"Expected the package tensorstore to read {folder}, but it is missing: {JAX_EXTRA}."
        ) from error
    metadata = json.loads((folder / _TREE).read_bytes()) if (folder / _TREE).is_file() else {}
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    base = f"file://{folder.resolve()}/"
    database = (folder / _DATABASE).is_file()
    specs = {
        name: {"driver": driver, "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/"}}
        if database
        else {"driver": driver, "kvstore": {"driver": "file", "path": f"{folder.resolve()}/{name}/"}}
        for name in names
    }
    try:
        opened = {name: tensorstore.open(spec, open=True, read=True) for name, spec in specs.items()}
        stores = {name: future.result() for name, future in opened.items()}
        headers = {n: TensorHeader(tuple(s.shape), known_dtype(s.dtype.name, folder)) for n, s in stores.items()}
        needed = {name: store for name, store in stores.items() if load and not name.startswith(_OPTIMIZER)}
        pending = {name: store.read() for name, store in needed.items()}
        return headers | {name: _tensor(part.result(), headers[name].dtype) for name, part in pending.items()}
    except (ValueError, TypeError, OSError) as error:
        raise damaged_file(folder, "Orbax", first_line(error).rstrip(".")) from error


def _tensor(array: Any, dtype: str) -> Any:
    """A tensor from what tensorstore read; numpy alone lacks some of its dtypes."""
    plain = array if array.dtype.kind in "biufc" else array.view(_VIEWS[array.dtype.itemsize])
    return tensor_of(plain.tobytes(), tuple(array.shape), dtype, load=True)
