"""Names of files: whatever a user or a checkpoint names, the answer is a file in its folder or one sentence."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mfdiag.errors import InputError
from mfdiag.models.formats.containers import read_container
from mfdiag.models.formats.named_files import file_beside, regular_file
from mfdiag.models.inspection import inspect_checkpoint

names = st.text(max_size=300) | st.integers() | st.none() | st.lists(st.text(max_size=2), max_size=2)


@given(names)
@example("x" * 5000)
@example("a\0b")
@example("\ud800.safetensors")
@example("../model.safetensors")
@example("/etc/passwd")
@example("..")
@example("")
@settings(max_examples=60, deadline=None)
def test_any_name_in_an_index_is_a_file_beside_it_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "index"
    folder.mkdir(exist_ok=True)
    index = folder / "model.safetensors.index.json"
    with pytest.raises(InputError) as caught:
        file_beside(index, name)
    text = str(caught.value)
    assert text.isprintable() and len(text) < len(str(index)) + 400
    if isinstance(name, str):
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(InputError, match=r"Expected the shard"):
            read_container(index, load=False)


def test_a_file_beside_the_index_is_read(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "a b..safetensors")
    assert file_beside(tmp_path / "index.json", "a b..safetensors") == tmp_path / "a b..safetensors"
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(InputError, match="it is missing"):
        file_beside(tmp_path / "index.json", "folder.safetensors")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800", "file/below", "none.pt"])
def test_any_path_of_a_user_is_read_or_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(InputError, match=r"Expected a (readable checkpoint|checkpoint file)") as caught:
        regular_file(tmp_path / name)
    assert str(caught.value).isprintable()


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(InputError, match="is a pipe or a device; save its content"):
            read_container(path, load=False)


SHAPES: dict[str, Any] = {  # names of n tensors, in the ways that could make a reader compare each with each
    "one set": lambda n: {"model": [f"blocks.{i // 8}.fc{i % 8}.weight" for i in range(n)]},
    "many sets": lambda n: {f"set{i}": ["w", "b"] for i in range(n // 2)},
    "many averages": lambda n: {f"ema{i}": ["w", "b"] for i in range(n // 2)},
    "many prefixes": lambda n: {"model": [f"b{i}.{k}.w" for i in range(n // 2) for k in ("ema", "x")]},
    "many named prefixes": lambda n: {"model": [f"{k}{i}.w" for i in range(n // 2) for k in ("ema", "x")]},
    "two copies": lambda n: {"model": [f"{k}.{i}.w" for i in range(n // 2) for k in ("net", "net_ema")]},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_four_times_the_tensors_take_about_four_times_the_time(tmp_path: Path, shape: str) -> None:
    value, seconds = torch.zeros(1), []
    for tensors in (1000, 4000):
        content = {key: dict.fromkeys(keys, value) for key, keys in SHAPES[shape](tensors).items()}
        torch.save(content, tmp_path / "file.pt")
        best = float("inf")
        for _ in range(2):
            start = time.process_time()
            inspect_checkpoint(tmp_path / "file.pt").layouts  # noqa: B018
            best = min(best, time.process_time() - start)
        seconds.append(best)
    assert seconds[1] < 9 * seconds[0]
