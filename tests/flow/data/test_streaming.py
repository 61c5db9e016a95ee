"""Memory and open files do not grow with the data: what is not drawn is not read."""

from __future__ import annotations

import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from latent_layouts import npy, tar

from mfdiag.flow.data.datasets import Data, FiniteData, load_data
from mfdiag.flow.seeds import uniforms

SHAPE = (4, 32, 32)  # 16 KiB of float32


@contextmanager
def at_most(mebibytes: float) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes * 2**20
    finally:
        tracemalloc.stop()


def drawn(data: Data, count: int = 32) -> np.ndarray:
    return data.sample(uniforms(0, "data", np.arange(count), data.width))[0]


@pytest.mark.parametrize("words", ["", ":scale=0.5", ":moments=std"])
def test_a_file_of_many_gigabytes(tmp_path: Path, words: str) -> None:
    points = np.lib.format.open_memmap(tmp_path / "d.npy", "w+", np.float32, (2**18, *SHAPE))  # 4 GiB, sparse on disk
    points[2**18 - 1] = 3
    del points
    with at_most(8):
        data = load_data(f"{tmp_path / 'd.npy'}{words}")
        assert drawn(data).shape == (32, *data.shape)
        if isinstance(data, FiniteData):
            assert data.points[-1:].max() == (1.5 if words else 3)


def test_a_folder_of_one_large_shard(tmp_path: Path) -> None:
    np.lib.format.open_memmap(tmp_path / "part-0.npy", "w+", np.float32, (2**16, *SHAPE))  # 1 GiB, sparse on disk
    with at_most(8):
        assert drawn(load_data(str(tmp_path))).shape == (32, *SHAPE)


def test_many_shards_keep_no_file_open(tmp_path: Path) -> None:
    for k in range(200):
        np.lib.format.open_memmap(tmp_path / f"part-{k:05d}.npy", "w+", np.float16, (64, *SHAPE))[:] = k
        np.save(tmp_path / f"part-{k:05d}_labels.npy", np.full(64, k))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        with at_most(8):
            data = load_data(str(tmp_path))
            assert (drawn(data)[:, 0, 0, 0] == data.sample(uniforms(0, "data", np.arange(32), 1))[1]).all()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_archive_is_not_read_whole(tmp_path: Path) -> None:
    sample = npy(np.ones(SHAPE, np.float32))
    files = [
        (f"{i:06d}.{ending}", content) for i in range(2000) for ending, content in (("npy", sample), ("cls", b"7"))
    ]
    tar(tmp_path / "d.tar", files)
    with at_most(6):  # 32 MiB on disk; the draws alone are 1 MiB
        data = load_data(str(tmp_path / "d.tar"))
        assert (drawn(data) == 1).all() and data.num_classes == 8
