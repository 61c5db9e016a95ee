"""Data files: each type round trips with its labels; each kind of bad file gives one sentence."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import FiniteData, load_data
from mfdiag.flow.data.files import READERS, read_points

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
Y = np.array([0, 2, 1, 0, 2, 1])


def _npy(path: Path, x: np.ndarray, y: np.ndarray | None) -> None:
    np.save(path, x)
    if y is not None:
        np.save(path.with_name(f"{path.stem}_labels.npy"), y)


def _npz(path: Path, x: np.ndarray, y: np.ndarray | None) -> None:
    np.savez(path, images=x) if y is None else np.savez(path, images=x, labels=y)


def _tensors(x: np.ndarray, y: np.ndarray | None) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor(x)} | ({} if y is None else {"y": torch.tensor(y)})


def _parquet(path: Path, x: np.ndarray, y: np.ndarray | None) -> None:
    frame = pd.DataFrame(x, columns=[f"f{i}" for i in range(x.shape[1])])
    (frame if y is None else frame.assign(label=y)).to_parquet(path)


WRITERS: dict[str, Callable[[Path, np.ndarray, np.ndarray | None], None]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".pt": lambda path, x, y: torch.save(_tensors(x, y), path),
    ".pth": lambda path, x, y: torch.save(_tensors(x, y), path),
    ".safetensors": lambda path, x, y: save_file(_tensors(x, y), path),
    ".parquet": _parquet,
}
each_type = pytest.mark.parametrize("suffix", READERS)


@each_type
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip(tmp_path: Path, suffix: str, dtype: type) -> None:
    path = tmp_path / f"data{suffix}"
    WRITERS[suffix](path, X.astype(dtype), Y)
    data = load_data(str(path))
    assert isinstance(data, FiniteData) and data.labels is not None
    assert (data.name, data.shape, data.num_classes, data.points.dtype) == (str(path), (3,), 3, dtype)
    assert data.labels.dtype == np.int64
    np.testing.assert_array_equal(data.points, X)
    x, labels = data.sample((np.arange(6)[:, None] + 0.5) / 6)
    assert x.dtype == np.float64
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(labels, Y)


@each_type
def test_without_labels(tmp_path: Path, suffix: str) -> None:
    WRITERS[suffix](tmp_path / f"d{suffix}", X, None)
    data = load_data(str(tmp_path / f"d{suffix}"))
    assert data.num_classes == 0 and data.sample(np.array([[0.5]]))[1] is None


@pytest.mark.parametrize("suffix", [suffix for suffix in READERS if suffix != ".parquet"])
def test_images_keep_their_shape_and_integers_widen(tmp_path: Path, suffix: str) -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    WRITERS[suffix](tmp_path / f"d{suffix}", images, None)
    points, *_ = read_points(tmp_path / f"d{suffix}")
    assert points.shape == (2, 3, 2, 2) and points.dtype == np.float32
    np.testing.assert_array_equal(points, images)


def test_npy_takes_either_label_name(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", X)
    np.save(tmp_path / "d.labels.npy", Y.astype(np.float32))
    points, labels, _ = read_points(tmp_path / "d.npy")
    np.testing.assert_array_equal(points, X)
    np.testing.assert_array_equal(labels, Y)


def test_bare_and_narrow_tensors(tmp_path: Path) -> None:
    torch.save(torch.tensor(X, requires_grad=True), tmp_path / "bare.pt")
    np.testing.assert_array_equal(read_points(tmp_path / "bare.pt")[0], X)
    save_file({"latents": torch.tensor(X).bfloat16()}, tmp_path / "d.safetensors")
    np.testing.assert_array_equal(
        read_points(tmp_path / "d.safetensors")[0], torch.tensor(X).bfloat16().float().numpy()
    )


def test_a_single_array_may_have_any_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", whatever=X, y=Y)
    np.testing.assert_array_equal(read_points(tmp_path / "d.npz")[0], X)


def _fails(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_data(str(path))
    assert "\n" not in str(caught.value)


@each_type
def test_missing_empty_and_truncated(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d{suffix}"
    _fails(path, "No file at")
    path.touch()
    _fails(path, "is empty")
    WRITERS[suffix](path, X, None)
    path.write_bytes(path.read_bytes()[:-30])
    _fails(path, "Cannot read .* write it again|pickled")
    path.write_bytes(b"\x93NUMPY garbage that is no file of any kind" * 3)
    _fails(path, "Cannot read .* write it again|pickled")


class _Code:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return exec, ("raise SystemExit('code from a file ran')",)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt"])
def test_pickled_code_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"d{suffix}"
    hostile = np.array([_Code()], dtype=object)
    if suffix == ".npy":
        np.save(path, hostile, allow_pickle=True)
    elif suffix == ".npz":
        np.savez(path, x=hostile)
    else:
        torch.save({"x": _Code()}, path)
    _fails(path, "pickled Python objects")
    path.write_bytes(pickle.dumps(_Code()))
    _fails(path, "pickled Python objects")


@each_type
def test_values_that_are_not_finite(tmp_path: Path, suffix: str) -> None:
    x = X.copy()
    x[2, 1], x[4, 0] = np.nan, np.inf
    WRITERS[suffix](tmp_path / f"d{suffix}", x, None)
    _fails(tmp_path / f"d{suffix}", r"2 values are NaN or infinite, the first at index \(2, 1\)")


def test_first_bad_value_is_found_beyond_the_first_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfdiag.flow.data.files._CHUNK", 6)
    x = X.copy()
    x[5, 2] = -np.inf
    np.save(tmp_path / "d.npy", x)
    _fails(tmp_path / "d.npy", r"1 values are NaN or infinite, the first at index \(5, 2\)")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 3)), "at least one sample and one feature"),
        (np.zeros((3, 0)), "at least one sample and one feature"),
        (np.zeros(5), "Reshape single numbers"),
        (np.array(1.0), "expected shape \\[samples, features"),
        (np.array([["a", "b"]]), "Expected real numbers"),
        (np.ones((2, 2), dtype=complex), "Expected real numbers"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_that_cannot_be_data(tmp_path: Path, suffix: str, x: np.ndarray, message: str) -> None:
    WRITERS[suffix](tmp_path / f"d{suffix}", x, None)
    _fails(tmp_path / f"d{suffix}", message)


@each_type
@pytest.mark.parametrize(
    ("y", "message"), [(Y - 1, "smallest label is -1"), (Y + 0.5, "not all whole"), (Y * np.nan, "not all whole")]
)
def test_bad_labels(tmp_path: Path, suffix: str, y: np.ndarray, message: str) -> None:
    WRITERS[suffix](tmp_path / f"d{suffix}", X, y)
    _fails(tmp_path / f"d{suffix}", message)


@pytest.mark.parametrize("suffix", [suffix for suffix in READERS if suffix != ".parquet"])
@pytest.mark.parametrize("y", [Y[:-1], Y[:, None]])
def test_labels_of_wrong_length(tmp_path: Path, suffix: str, y: np.ndarray) -> None:
    WRITERS[suffix](tmp_path / f"d{suffix}", X, y)
    _fails(tmp_path / f"d{suffix}", "expected one label for each of 6 samples")


def test_names_and_columns(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=X, b=X)
    _fails(tmp_path / "two.npz", "expected one array, or one named .*, but the file has a, b")
    np.savez(tmp_path / "none.npz", y=Y)
    _fails(tmp_path / "none.npz", "but the file has y")
    torch.save([torch.tensor(X)], tmp_path / "list.pt")
    _fails(tmp_path / "list.pt", "Expected a tensor .* holds a list")
    pd.DataFrame({"f": [1.0], "name": ["a"]}).to_parquet(tmp_path / "text.parquet")
    _fails(tmp_path / "text.parquet", "column 'name' holds")


def test_unknown_extension_and_folder(tmp_path: Path) -> None:
    _fails(tmp_path / "d.csv", "unknown extension '.csv'; known: .npy, .npz, .pt, .pth, .safetensors, .parquet")
    (tmp_path / "d.npy").mkdir()
    _fails(tmp_path / "d.npy", "expected .npy, .npz, .pt, .pth, .safetensors files, but it holds nothing")
