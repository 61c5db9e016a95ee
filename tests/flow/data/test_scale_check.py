"""Notes on data that do not look like what a model was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mfdiag.flow.data.datasets import Data, FiniteData, load_data
from mfdiag.flow.data.scale_check import check_scale, shape_hint, whole_numbers_note

N = np.random.default_rng(0).normal(size=(300, 4, 4, 4))


def notes(data: Data, std: float = 1.0) -> list[str]:
    said: list[str] = []
    check_scale(data, said.append, std=std)
    return said


@pytest.mark.parametrize(
    ("points", "std"),
    [(N, 1.0), (0.5 * N, 0.5), (2 * N, 1.0), (np.tanh(N), 1.0), (0.45 * N, 1.0), (N[:, 0, 0], 1.0)],
)
def test_what_fits_goes_without_a_note(points: np.ndarray, std: float) -> None:
    assert not notes(FiniteData("d", points), std)


@pytest.mark.parametrize(
    ("points", "std", "words"),
    [
        (
            5.5 * N,
            1.0,
            ["of about 1, but", "standard deviation 5.", "With scale=0.18215, the factor of Stable Diffusion 1 and 2"],
        ),
        (5.5 * N, 0.5, ["of about 0.5, but", "With scale=0.09", "it would be 0.5"]),
        (0.18215 * N, 1.0, ["With scale=5.", "if the data include an encoder's factor already, pass scale=1"]),
        (50 * N, 1.0, ["With scale=0.02", "it would be 1"]),
        (np.abs(np.sin(N)) / 2, 1.0, ["images in [0, 1]: add mean=0.5,std=0.5"]),
        (np.round(200 * np.abs(np.sin(N))), 1.0, ["images in [0, 255]: add mean=127.5,std=127.5"]),
        (0 * N, 1.0, ["All numbers are equal"]),
    ],
)
def test_what_does_not_fit_is_told_with_a_remedy(points: np.ndarray, std: float, words: list[str]) -> None:
    (note,) = notes(FiniteData("d", points), std)
    assert note.startswith("d: the model card implies") and "256 samples have mean" in note and "by channel" in note
    for word in words:
        assert word in note


def test_the_remedy_works(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", 5.5 * N)
    (note,) = notes(load_data(str(tmp_path / "d.npy")))
    scale = note.partition("scale=")[2].partition(",")[0]
    assert not notes(load_data(f"{tmp_path / 'd.npy'}:scale={scale}"))
    np.save(tmp_path / "u.npy", np.round(255 * np.abs(np.sin(N))).astype(np.uint8))
    (note,) = notes(load_data(str(tmp_path / "u.npy")))
    words = note.partition("add ")[2].partition(" ")[0]
    data = load_data(f"{tmp_path / 'u.npy'}:{words}")
    assert not notes(data) and isinstance(data, FiniteData)
    assert data.points[:].min() >= -1 and data.points[:].max() <= 1


def test_closed_forms_are_not_looked_at() -> None:
    assert not notes(load_data("gaussian:2,0,50"))


def test_hints_for_shapes() -> None:
    assert "layout=nhwc" in shape_hint((32, 32, 4), (4, 32, 32))
    assert "moments" in shape_hint((8, 32, 32), (4, 32, 32))
    assert shape_hint((3, 32, 32), (4, 32, 32)) == shape_hint((2,), (3,)) == ""


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_whole_numbers_up_to_255_are_reported_with_the_remedy(dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4)).astype(dtype)
    note = whole_numbers_note(FiniteData("pixels.npy", pixels))
    assert note is not None and "add mean=127.5,std=127.5 to --data" in note and "std=255 if on [0, 1]" in note
    for other in (pixels / 255, pixels - 128.0, pixels % 10, pixels * 2.0):
        assert whole_numbers_note(FiniteData("other", np.asarray(other, np.float32))) is None
    assert whole_numbers_note(load_data("gaussian:2,0,1")) is None
