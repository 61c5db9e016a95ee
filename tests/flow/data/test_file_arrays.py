"""Arrays read row by row are those that the formats' own readers give, and a file that is cut short is an error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mfdiag.errors import InputError
from mfdiag.flow.data.file_arrays import FileArray, npy_array, safetensors_arrays, torch_arrays
from mfdiag.flow.data.files import as_numpy
from mfdiag.flow.data.stored_data import read_stored_data

ROWS: list[Any] = [slice(None), slice(2, 5), np.array([4, 0, 0, 3]), np.arange(7) % 2 == 0, np.array([], dtype=int)]


def agrees(array: FileArray, expected: np.ndarray) -> None:
    assert array.shape == expected.shape and array.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(array), expected)
    for rows in ROWS if expected.ndim and len(expected) == 7 else []:
        np.testing.assert_array_equal(array[rows], expected[rows])


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "u1", "<i8", "?", "<c8"])
@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 2, 2, 1), (7, 0), (0, 3), ()])
def test_npy(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    expected = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    np.save(tmp_path / "a.npy", expected)
    array = npy_array(tmp_path / "a.npy")
    assert isinstance(array, FileArray)
    agrees(array, expected)
    np.save(tmp_path / "columns.npy", np.asfortranarray(expected))
    np.testing.assert_array_equal(np.asarray(npy_array(tmp_path / "columns.npy")), expected)


TENSORS = {
    "f": torch.randn(7, 3, generator=torch.Generator().manual_seed(0)),
    "b": torch.arange(21).view(7, 3).bfloat16(),
    "e": torch.arange(7).to(torch.float8_e4m3fn),
    "i": torch.arange(7),
    "q": torch.arange(7) > 2,
    "n": torch.tensor(3.5),
}


@pytest.mark.parametrize(("write", "read"), [(save_file, safetensors_arrays), (torch.save, torch_arrays)])
def test_tensors(write: Callable[..., Any], read: Callable[..., Any], tmp_path: Path) -> None:
    write(TENSORS, tmp_path / "a")
    arrays = read(tmp_path / "a")
    assert arrays.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert isinstance(arrays[name], FileArray)
        agrees(arrays[name], as_numpy(tensor))


def test_tensors_in_another_order_are_loaded(tmp_path: Path) -> None:
    torch.save({"x": torch.arange(6).view(2, 3).T}, tmp_path / "a")
    assert torch_arrays(tmp_path / "a") is None


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".pt"])
@pytest.mark.parametrize("streamed", [0, 2**28])
def test_a_file_that_is_cut_short_while_it_is_read_is_an_error(
    suffix: str, streamed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory map would end the process with SIGBUS."""
    for module in ("files", "stored_data"):
        monkeypatch.setattr(f"mfdiag.flow.data.{module}.STREAMED_BYTES", streamed)
    path, x = tmp_path / f"a{suffix}", torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    if suffix == ".npy":
        np.save(path, x.numpy())
    else:
        (torch.save if suffix == ".pt" else save_file)({"x": x}, path)
    points = read_stored_data(str(path)).points
    os.truncate(path, path.stat().st_size // 2)
    if streamed:
        np.testing.assert_array_equal(points[slice(None)], x.numpy())
        return
    with pytest.raises(InputError, match="truncated"):
        points[np.array([0, 4999])]
