"""Files of flax.serialization: MessagePack with extension types for arrays. No code in them is run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mfdiag.errors import InputError
from mfdiag.models.formats.archives import damaged_file
from mfdiag.models.formats.jax_tree import JAX_EXTRA, as_sets, known_dtype, tensor_of
from mfdiag.models.formats.pickles import TensorHeader

__all__ = ["is_flax", "read_flax", "unpacked"]

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # extension types that flax defines
_CHUNKED = "__msgpack_chunked_array__"  # mark of an array that is stored in parts, because MessagePack has a limit
_BITS = {"bool": 8, "float8_e4m3fn": 8, "float8_e4m3fnuz": 8, "float8_e5m2": 8, "float8_e5m2fnuz": 8}


def is_flax(start: bytes) -> bool:
    """Whether a file that begins with `start` is a MessagePack mapping whose first key is text."""
    if len(start) < 2:
        return False
    length = {0xDE: 2, 0xDF: 4}.get(start[0], 0 if 0x81 <= start[0] <= 0x8F else None)
    key = start[length + 1 : length + 2] if length is not None else b""
    return bool(key) and (0xA0 <= key[0] <= 0xBF or key[0] in (0xD9, 0xDA, 0xDB))


def read_flax(path: Path, *, load: bool) -> dict[str, Any]:
    """Read the sets of weights and plain values of a file that flax wrote.

    Args:
        path: The file.
        load: Whether to read the values; without it, arrays are `TensorHeader`s.

    Returns:
        The outermost mapping; parameters have dotted names.

    Raises:
        InputError: If the file is damaged or holds something other than arrays and plain values, or the extra is
            missing.
    """
    return as_sets(_joined(unpacked(path.read_bytes(), path, load=load), path, load), path)


def unpacked(content: bytes, path: Path, *, load: bool) -> Any:
    """The content of MessagePack bytes that flax wrote.

    Args:
        content: The bytes.
        path: The file, for errors.
        load: Whether to read the values; without it, arrays are `TensorHeader`s.

    Returns:
        Nested mappings down to tensors and plain values.

    Raises:
        InputError: As `read_flax`.
    """
    try:
        import msgpack
    except ImportError as error:
        raise InputError(f"Expected the package msgpack to read {path}, but it is missing: {JAX_EXTRA}.") from error

    def extension(code: int, data: bytes) -> Any:
        if code in (_ARRAY, _SCALAR):
            return _array(msgpack.unpackb(data, raw=False), path, load)
        if code == _COMPLEX:
            return complex(*msgpack.unpackb(data))
        raise InputError(
            f"Expected arrays and plain values in {path}, but it has an extension of type {code}; "
            "write it with flax.serialization."
        )

    try:
        return msgpack.unpackb(content, ext_hook=extension, raw=False)
    except InputError:
        raise
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise damaged_file(path, "flax msgpack", str(error).rstrip(".") or type(error).__name__) from error


def _array(parts: Any, path: Path, load: bool) -> Any:
    """An array from its shape, the name of its dtype, and its bytes."""
    shape, dtype, data = parts
    dtype = known_dtype(dtype.decode() if isinstance(dtype, bytes) else dtype, path)
    if not all(isinstance(size, int) and size >= 0 for size in shape):
        raise damaged_file(path, "flax msgpack", f"an array has the shape {shape}")
    bits = _BITS.get(dtype) or int("".join(filter(str.isdecimal, dtype)))
    if math.prod(shape) * bits // 8 != len(data):
        raise damaged_file(path, "flax msgpack", f"an array of shape {list(shape)} has {len(data)} bytes")
    return tensor_of(data, tuple(shape), dtype, load=load)


def _joined(tree: Any, path: Path, load: bool) -> Any:
    """The tree with arrays that are stored in parts as one."""
    if not isinstance(tree, Mapping):
        return tree
    if _CHUNKED not in tree:
        return {name: _joined(value, path, load) for name, value in tree.items()}
    try:
        shape = tuple(tree["shape"][str(axis)] for axis in range(len(tree["shape"])))
        chunks = [tree["chunks"][str(number)] for number in range(len(tree["chunks"]))]
        sizes = sum(math.prod(chunk.shape) for chunk in chunks)
        if not chunks or sizes != math.prod(shape):
            raise ValueError(f"parts of {sizes} numbers for the shape {list(shape)}")
        if not load:
            return TensorHeader(shape, chunks[0].dtype)
        import torch

        return torch.cat([chunk.reshape(-1) for chunk in chunks]).reshape(shape)
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise damaged_file(path, "flax msgpack", f"an array in parts: {error}") from error
