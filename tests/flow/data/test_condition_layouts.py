"""Arrays beside the samples in every layout on disk: the same rows and types, and what does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.numpy import save_file

from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import FiniteData, load_data

N = 12
X = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
ARRAYS = {
    "obs": np.random.default_rng(1).normal(size=(N, 2, 2)),
    "text": np.random.default_rng(2).integers(0, 9, (N, 5)),
    "mask": np.random.default_rng(3).random((N, 5)) < 0.5,
}


def _parquet(folder: Path) -> Path:
    columns = {"x": list(X), "text": list(ARRAYS["text"]), "mask": list(ARRAYS["mask"])}
    frame = pd.DataFrame(columns | {"obs": [rows.tolist() for rows in ARRAYS["obs"]]})
    frame.to_parquet(folder / "d.parquet")
    return folder / "d.parquet"


def _npy(folder: Path) -> Path:
    np.save(folder / "d.npy", X)
    for name, values in ARRAYS.items():
        np.save(folder / f"d_{name}.npy", values)
    return folder / "d.npy"


def _shards(folder: Path, suffix: str) -> Path:
    for part in range(3):
        rows = slice(part * 4, part * 4 + 4)
        if suffix == ".npz":
            np.savez(folder / f"part-{part}.npz", x=X[rows], **{name: a[rows] for name, a in ARRAYS.items()})
        else:
            np.save(folder / f"part-{part}.npy", X[rows])
            for name, a in ARRAYS.items():
                np.save(folder / f"part-{part}_{name}.npy", a[rows])
    return folder


def _per_sample(folder: Path) -> Path:
    for i in range(N):
        np.savez(folder / f"{i:03}.npz", x=X[i], **{name: a[i] for name, a in ARRAYS.items()})
    return folder


def _per_array(folder: Path) -> Path:
    for name, values in {"x": X, **ARRAYS}.items():
        np.save(folder / f"{name}.npy", values)
    return folder


def _file(folder: Path, suffix: str) -> Path:
    path = folder / f"d{suffix}"
    arrays = {"x": X, **ARRAYS}
    if suffix == ".npz":
        np.savez(path, **arrays)
    elif suffix == ".safetensors":
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)
    else:
        torch.save({name: torch.as_tensor(a) for name, a in arrays.items()}, path)
    return path


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "npz": lambda folder: _file(folder, ".npz"),
    "safetensors": lambda folder: _file(folder, ".safetensors"),
    "pt": lambda folder: _file(folder, ".pt"),
    "parquet": _parquet,
    "npy": _npy,
    "npz shards": lambda folder: _shards(folder, ".npz"),
    "npy shards": lambda folder: _shards(folder, ".npy"),
    "a file per sample": _per_sample,
    "a file per array": _per_array,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_conditions(layout: str, tmp_path: Path) -> None:
    place = LAYOUTS[layout](tmp_path)
    data = load_data(str(place), conditions=tuple(ARRAYS))
    assert isinstance(data, FiniteData)
    rows = np.array([7, 0, 11, 7])
    np.testing.assert_array_equal(data.points[rows], X[rows])
    assert set(data.conditions) == set(ARRAYS)
    for name, values in ARRAYS.items():
        read = data.conditions[name][rows]
        np.testing.assert_array_equal(read, values[rows])
        assert read.dtype == values.dtype
    for selected, names in (("none", set()), ("mask/obs", {"mask", "obs"})):
        part = load_data(f"{place}:conditions={selected}", conditions=tuple(ARRAYS))
        assert isinstance(part, FiniteData) and set(part.conditions) == names


def test_large_files_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfdiag.flow.data.stored_data.STREAMED_BYTES", 1)
    for suffix in (".safetensors", ".pt"):
        data = load_data(str(_file(tmp_path, suffix)))
        assert isinstance(data, FiniteData) and not isinstance(data.conditions["text"], np.ndarray)
        np.testing.assert_array_equal(data.conditions["text"][np.array([3, 1])], ARRAYS["text"][[3, 1]])


def test_mirrored_samples_are_no_conditions(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", moments=X, moments_flip=X, labels=np.zeros(N, int))
    assert not load_data(str(tmp_path / "d.npz")).conditions  # type: ignore[attr-defined]


def test_a_needed_array_with_other_rows_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, obs=np.zeros((N - 1, 2)))
    with pytest.raises(InputError, match=f"one row of 'obs' for each of {N} samples"):
        load_data(str(tmp_path / "d.npz"), conditions=("obs",))


NAMES = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=2, max_size=8).filter(
    lambda name: name not in ("labels", "label", "data", "images", "image", "latents", "latent", "moments")
)
DTYPES = st.sampled_from(["bool", "uint8", "int32", "int64", "float16", "float32", "float64"])


SHAPES = npst.array_shapes(min_dims=0, max_dims=2, max_side=3)


@settings(max_examples=25)
@given(arrays=st.dictionaries(NAMES, st.tuples(DTYPES, SHAPES), max_size=3), data=st.data())
def test_any_name_type_and_shape(
    arrays: dict[str, tuple[str, tuple[int, ...]]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values = {name: data.draw(npst.arrays(dtype, (N, *shape), elements={"min_value": 0, "max_value": 1} if "f" in dtype
                                          else None)) for name, (dtype, shape) in arrays.items()}  # fmt: skip
    path = tmp_path_factory.mktemp("drawn") / "d.npz"
    np.savez(path, x=X, **values)
    conditions = load_data(str(path)).conditions  # type: ignore[attr-defined]
    assert conditions.keys() == values.keys()
    for name, array in values.items():
        np.testing.assert_array_equal(conditions[name], array)
        assert conditions[name].dtype == array.dtype
