"""Arrays in files, read row by row. A file that is cut short is an error, where a memory map would end the process."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from mfdiag.errors import InputError

__all__ = ["FileArray", "npy_array", "require_numbers", "require_size", "safetensors_arrays", "torch_arrays"]

_HEADER_BYTES = 100_000_000  # the most that the safetensors format allows
_ALWAYS_FITS, _MOST_EXPANSION = 2**30, 20  # bytes, and bytes of arrays for each byte of a file
_NUMPY = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1"},
    **{"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?", "C64": "<c8"},
}
_TORCH = {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}  # NumPy lacks these


class FileArray:
    """An array [n, ...] whose numbers lie one after another in a file.

    Args:
        path: The file.
        dtype: NumPy's type of a stored number, or the name of torch's for one that NumPy lacks; these become float32.
        shape: [n, ...].
        offset: Bytes before the first number.

    Raises:
        ValueError: The file is too short.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any] | str, shape: tuple[int, ...], offset: int) -> None:
        self._path, self._offset = path, offset
        self._torch = dtype if isinstance(dtype, str) else None
        self._stored = _width(dtype) if isinstance(dtype, str) else dtype
        self.dtype = np.dtype(np.float32) if self._torch else self._stored
        self.shape, self.ndim, self.size = shape, len(shape), math.prod(shape)
        missing = offset + math.prod(shape) * self._stored.itemsize - path.stat().st_size
        if min(shape, default=0) < 0 or missing > 0:
            raise ValueError(f"{missing:,} bytes are missing")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """The rows of a slice, of row numbers or of a mask."""
        index = np.arange(len(self))[rows]
        if not len(index):
            return np.empty((0, *self.shape[1:]), self.dtype)
        if (np.diff(index) > 0).all():
            return self._read(index)
        ascending, position = np.unique(index, return_inverse=True)
        return self._read(ascending)[position]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self._read(np.arange(len(self))) if self.ndim else self._scalar()
        return values if dtype is None else values.astype(dtype, copy=False)

    def _scalar(self) -> np.ndarray:
        return FileArray(self._path, self._torch or self._stored, (1,), self._offset)[:].reshape(())

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Rows with ascending numbers; neighbors are read together."""
        values = np.empty((len(rows), *self.shape[1:]), self._stored)
        if not values.size:
            return self._decoded(values)
        row_bytes = values[:1].nbytes
        starts = np.flatnonzero(np.diff(rows, prepend=-2) > 1)
        with self._path.open("rb", buffering=0) as file:
            for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
                file.seek(self._offset + int(rows[start]) * row_bytes)
                self._fill(file, values[start:end].reshape(-1).view(np.uint8).data)
        return self._decoded(values)

    def _fill(self, file: Any, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            count = file.readinto(buffer[done:])
            if not count:
                raise ValueError(f"{len(buffer) - done:,} bytes are missing, which were present before")
            done += count

    def _decoded(self, values: np.ndarray) -> np.ndarray:
        if self._torch is None:
            return values
        import torch

        decoded = torch.from_numpy(values).view(getattr(torch, self._torch))
        return decoded.float().numpy()


def _width(name: str) -> np.dtype[Any]:
    """An integer type as wide as a type of torch."""
    import torch

    return np.dtype(f"i{getattr(torch, name).itemsize}")


def require_size(location: str, claimed: int, size: int) -> None:
    """Check what a file says it holds before memory is taken for it.

    Args:
        location: The file.
        claimed: Bytes of what it says it holds.
        size: Its own bytes.

    Raises:
        InputError: It would take more than 1 GiB and 20 times the file.
    """
    if claimed > max(_ALWAYS_FITS, _MOST_EXPANSION * size):
        raise InputError(
            f"Expected {location} to hold about its own size, but its {size:,} bytes stand for {claimed:,}. Store the "
            "numbers uncompressed, as in a .npy file."
        )


def require_numbers(stream: IO[bytes], size: int) -> None:
    """Check that the .npy content of a stream has the numbers that its header claims.

    Args:
        stream: The content.
        size: Its bytes.

    Raises:
        ValueError: It is too short, is damaged, or holds Python objects.
    """
    version = np.lib.format.read_magic(stream)
    if version > (2, 0):
        return
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError("numbers are missing")


def npy_array(path: Path) -> FileArray | np.ndarray:
    """The array of a .npy file. Raises ValueError if it is damaged, or holds Python objects."""
    with path.open("rb") as file:
        if (start := file.read(1)) != np.lib.format.MAGIC_PREFIX[:1]:
            raise ValueError("it holds pickled Python objects" if start == b"\x80" else "it begins otherwise")
        file.seek(0)
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, columns_first, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            return np.load(path, allow_pickle=False)
        offset = file.tell()
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects")
    array = FileArray(path, dtype, shape, offset)
    return np.load(path, allow_pickle=False) if columns_first and len(shape) > 1 else array


def safetensors_arrays(path: Path) -> Mapping[str, FileArray]:
    """The arrays of a safetensors file by name. Raises ValueError if it is damaged."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _HEADER_BYTES):
            raise ValueError(f"its header should have {length:,} bytes")
        header = json.loads(file.read(length))
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, (start, end) = entry["dtype"], tuple(map(int, entry["shape"])), map(int, entry["data_offsets"])
        stored = np.dtype(_NUMPY[dtype]) if dtype in _NUMPY else _TORCH[dtype]
        array = FileArray(path, stored, shape, 8 + length + start)
        if not 0 <= start <= end or end - start != math.prod(shape) * array._stored.itemsize:
            raise ValueError(f"tensor {name!r} does not have the bytes of its shape")
        arrays[name] = array
    return arrays


def torch_arrays(path: Path) -> dict[str, Any] | None:
    """The tensors of a zip file of torch.save, read row by row; None where this version of torch cannot tell where.

    The values are those of its outermost mapping, or the only tensor under "".
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():  # reads names, shapes and places alone
        content = torch.load(path, map_location="cpu", weights_only=True)
    values = {"": content} if isinstance(content, torch.Tensor) else content
    if not isinstance(values, dict):
        return None
    arrays: dict[str, Any] = {}
    for name, tensor in values.items():
        if not isinstance(tensor, torch.Tensor):
            arrays[str(name)] = tensor
            continue
        start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if start is None or not tensor.is_contiguous():
            return None
        width, kind = tensor.dtype.itemsize, str(tensor.dtype).removeprefix("torch.")
        dtype = np.dtype(kind) if kind in np.sctypeDict else kind
        arrays[str(name)] = FileArray(path, dtype, tuple(tensor.shape), start + tensor.storage_offset() * width)
    return arrays
