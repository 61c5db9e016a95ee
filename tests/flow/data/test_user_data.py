"""Data sets of the user's own code: every form gives the same arrays, and what is random or ragged is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from mfdiag.errors import InputError
from mfdiag.flow.data.datasets import FiniteData, as_data, load_data
from mfdiag.flow.data.user_data import is_user_data

N = 12
X = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
Y = np.arange(N) % 4
OBS = np.random.default_rng(1).normal(size=(N, 2, 2))
TOKENS = np.random.default_rng(2).integers(0, 9, (N, 5))
MASK = np.random.default_rng(3).random((N, 5)) < 0.5


class Items(Dataset[Any]):
    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        if i >= N:
            raise IndexError
        return self.item(i)


class Stream(IterableDataset[Any]):
    def __init__(self, item: Callable[[int], Any], ends: bool = True) -> None:
        self.item, self.ends = item, ends

    def __iter__(self) -> Iterator[Any]:
        i = 0
        while i < N or not self.ends:
            yield self.item(i % N)
            i += 1


def whole(i: int) -> dict[str, Any]:
    return {
        "x": torch.as_tensor(X[i]),
        "label": int(Y[i]),
        "obs": OBS[i],
        "text": {"tokens": TOKENS[i], "mask": MASK[i]},
    }


ALL = {"obs": OBS, "text.tokens": TOKENS, "text.mask": MASK}
SOURCES: dict[str, tuple[Callable[[], Any], bool, dict[str, np.ndarray]]] = {
    "tensor": (lambda: torch.as_tensor(X), False, {}),
    "pair of tensors": (lambda: (torch.as_tensor(X), torch.as_tensor(Y)), True, {}),
    "mapping of arrays": (lambda: {"x": X, "y": Y, "obs": OBS}, True, {"obs": OBS}),
    "items": (lambda: Items(lambda i: X[i]), False, {}),
    "pairs": (lambda: TensorDataset(torch.as_tensor(X), torch.as_tensor(Y)), True, {}),
    "dictionaries": (lambda: Items(whole), True, ALL),
    "sample and conditions": (lambda: Items(lambda i: (X[i], {"obs": OBS[i]})), False, {"obs": OBS}),
    "list": (lambda: [X[i] for i in range(N)], False, {}),
    "stream": (lambda: Stream(whole), True, ALL),
    "generator": (lambda: (whole(i) for i in range(N)), True, ALL),
}


def _spec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: Callable[[], Any]) -> str:
    """A factory in a file that calls `make`."""
    monkeypatch.setattr("builtins.make_test_data", make, raising=False)
    path = tmp_path / "own.py"
    path.write_text("def data():\n    return make_test_data()\n", encoding="utf-8")
    return f"{path}:data"


@pytest.mark.parametrize("form", SOURCES)
def test_every_form_gives_the_same_arrays(form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make, labeled, conditions = SOURCES[form]
    for data in (load_data(_spec(monkeypatch, tmp_path, make)), as_data(make())):
        assert isinstance(data, FiniteData)
        np.testing.assert_array_equal(data.points, X)
        assert (data.labels is not None) == labeled
        if data.labels is not None:
            np.testing.assert_array_equal(data.labels, Y)
        assert data.conditions.keys() == conditions.keys()
        for name, values in conditions.items():
            np.testing.assert_array_equal(data.conditions[name], values)
            assert np.asarray(data.conditions[name]).dtype == values.dtype


def test_progress_limit_and_scale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    spec = _spec(monkeypatch, tmp_path, lambda: Stream(whole, ends=False))
    data = load_data(f"{spec}:limit=5,mean=1,std=2,conditions=obs,labels=none", advance=lambda *done: seen.append(done))
    assert isinstance(data, FiniteData)
    np.testing.assert_allclose(data.points[:], (X[:5] - 1) / 2, rtol=1e-6)
    assert seen == [(i + 1, 5) for i in range(5)]
    assert data.labels is None and list(data.conditions) == ["obs"]


def test_an_endless_data_set_needs_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mfdiag.flow.data.user_data._MOST_ITEMS", 100)
    with pytest.raises(InputError, match=r"to end.*limit=NUMBER"):
        load_data(_spec(monkeypatch, tmp_path, lambda: Stream(whole, ends=False)))


RANDOM = np.random.default_rng(5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Items(lambda i: X[i] + 0.1 * RANDOM.normal(size=3)),
        lambda: Items(lambda i, order=RANDOM.permutation(N): X[order[i]]),
        lambda: torch.utils.data.Subset(Items(lambda i: X[i]), RANDOM.permutation(N).tolist()),
        lambda: Stream(lambda i: X[RANDOM.integers(N)]),
        lambda: (X[i] for i in RANDOM.permutation(N)),
        lambda: X[RANDOM.permutation(N)],
    ],
)
def test_random_and_shuffled_data_are_refused(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"same items in the same order.*Seed it"):
        load_data(_spec(monkeypatch, tmp_path, make))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: DataLoader(Items(whole), batch_size=4), "Return its dataset"),
        (
            lambda: Items(lambda i: {"x": X[i], "obs": OBS[i][: 1 + i % 2]}),
            r"'obs' is float64 \[2, 2\] in item 1.*mask",
        ),
        (lambda: Items(lambda i: {"x": X[i], "text": "left"}), "numbers in 'text'.*conditions="),
        (lambda: Items(lambda i: {"x": X[i], **({"obs": 1} if i else {})}), "'obs' in all items"),
        (lambda: Items(lambda i: (X[i], Y[i], OBS[i])), "3 parts.*dictionary"),
        (lambda: Items(lambda i: {"a": X[i], "b": X[i]}), "samples=NAME"),
        (lambda: Items(lambda i: 1 / 0), "ZeroDivisionError"),
        (lambda: [], "makes none"),
        (lambda: 3, "makes a int"),
    ],
)
def test_what_is_no_data_set_is_refused(
    make: Callable[[], Any], problem: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=problem):
        load_data(_spec(monkeypatch, tmp_path, make))


@pytest.mark.parametrize(
    ("spec", "is_code"),
    [("own.py:make", True), ("a.b:make", True), ("own.py:make:limit=3", True), ("d.npz:labels=none", False),
     ("d.npz:labels", False), ("mixture:2,3", False), ("folder/d.npy", False), ("./x/own.py:make", True)],
)  # fmt: skip
def test_code_is_told_from_files(spec: str, is_code: bool) -> None:
    assert is_user_data(spec) == is_code
