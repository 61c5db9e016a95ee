"""safetensors files: a single one, or several shards with an index."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mfdiag.errors import InputError
from mfdiag.models.formats.archives import damaged_file
from mfdiag.models.formats.named_files import file_beside
from mfdiag.models.formats.pickles import TensorHeader

__all__ = ["read_safetensors", "read_sharded"]

_NOT_IN_NUMPY = ("BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")
_DTYPES = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "BOOL": "bool", "C": "complex"}


def read_safetensors(path: Path, *, load: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the tensors of a safetensors file, and the text entries of its header.

    With `load` the tensors are memory-mapped; without it, each is a `TensorHeader`. Raises InputError if the file is
    damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt" if load else "numpy") as file:
            names = file.keys()
            tree = {name: file.get_tensor(name) if load else _header(file, name) for name in names}
            return tree, dict(file.metadata() or {})
    except SafetensorError as error:
        raise damaged_file(path, "safetensors", str(error).rstrip(".")) from error


def _header(file: Any, name: str) -> TensorHeader:
    tensor_slice = file.get_slice(name)
    code, shape = tensor_slice.get_dtype(), tuple(tensor_slice.get_shape())
    letters = code.partition("_")[0].rstrip("0123456789")  # F8_E4M3 keeps its suffix
    dtype = _DTYPES.get(letters, letters) + code[len(letters) :].lower()
    return TensorHeader(shape, dtype, None if shape or code in _NOT_IN_NUMPY else file.get_tensor(name).item())


def read_sharded(index: Path, read_shard: Callable[[Path], Mapping[str, Any]]) -> tuple[dict[str, Any], list[Path]]:
    """Read the tensors that an index (`weight_map`: tensor name to file name) lists, and the paths of their files.

    Args:
        index: The index.
        read_shard: Reads the tensors of one shard.

    Returns:
        Tensors by name, and the shards in the order of their names.

    Raises:
        InputError: If the index is no such JSON or names a file outside its own folder, and if a shard is missing, is
            damaged, or lacks a tensor.
    """
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        names = sorted(set(places.values()), key=str)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"Expected an index with a weight_map from tensor names to file names, but {index} is not one "
            f"({type(error).__name__}); download it again."
        ) from error
    files = {name: file_beside(index, name) for name in names}
    shards = {name: read_shard(file) for name, file in files.items()}
    missing = [name for name, place in places.items() if name not in shards[place]]
    if missing:
        raise InputError(
            f"Expected the tensor {missing[0]} in {places[missing[0]]}, as {index} says, but it is missing "
            f"({len(missing)} of {len(places)} are); download the shards again."
        )
    return {name: shards[place][name] for name, place in places.items()}, list(files.values())
