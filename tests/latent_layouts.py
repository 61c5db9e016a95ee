"""The same samples and labels written in each layout that `--data` reads."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save, save_file

SHAPE = (4, 2, 3)
Z = (5 * np.random.default_rng(0).normal(size=(12, *SHAPE))).astype(np.float32)
Y = np.array([0, 2, 1, 0, 2, 1, 1, 0, 2, 2, 1, 0])
Write = Callable[[Path, np.ndarray, np.ndarray], Path]


def npy(x: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def pt(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def folder(root: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    for name, content in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def tar(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def packed(path: Path, files: Sequence[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return path


def edm(x: np.ndarray, y: np.ndarray) -> list[tuple[str, bytes]]:
    """Chunks of numbered files with dataset.json, as EDM2, REPA and Decoupled MeanFlow have them."""
    names = [f"{i // 5:05d}/img-mean-std-{i:08d}.npy" for i in range(len(x))]
    labels = json.dumps({"labels": list(zip(names, y.tolist(), strict=True))[::-1]})
    return [("dataset.json", labels.encode()), *((n, npy(z)) for n, z in zip(names, x, strict=True))]


def _class_folders(root: Path, x: np.ndarray, y: np.ndarray) -> Path:
    order = np.argsort(y, kind="stable")  # files are read in order of their names
    return folder(root, [(f"n{y[i]:02d}/{k:04d}.npy", npy(x[i])) for k, i in enumerate(order)])


def _in_items(root: Path, x: np.ndarray, y: np.ndarray) -> Path:
    content = [{"image": torch.tensor(z), "label": torch.tensor(c)} for z, c in zip(x, y, strict=True)]
    return folder(root, [(f"train/{i:08d}.pt", pt(item)) for i, item in enumerate(content)])


def _beside_items(root: Path, x: np.ndarray, y: np.ndarray) -> Path:
    samples = [(f"{i:06d}.npz", npz(latent=z)) for i, z in enumerate(x)]
    return folder(root, samples + [(f"{i:06d}.json", json.dumps({"label": int(c)}).encode()) for i, c in enumerate(y)])


def _npy_shards(root: Path, x: np.ndarray, y: np.ndarray) -> Path:
    files = []
    for k, part in enumerate(np.split(np.arange(len(x)), [5, 6])):
        files += [(f"part-{k:05d}.npy", npy(x[part])), (f"part-{k:05d}_labels.npy", npy(y[part]))]
    return folder(root, [*files, ("mean.npy", npy(np.zeros(4)))])


def _safetensors_shards(root: Path, x: np.ndarray, y: np.ndarray) -> Path:
    root.mkdir()
    for k, part in enumerate(np.split(np.arange(len(x)), [4])):
        arrays = {"latents": x[part], "latents_flip": x[part, ..., ::-1].copy(), "labels": y[part]}
        save_file({name: torch.tensor(a) for name, a in arrays.items()}, root / f"rank00_shard{k:03d}.safetensors")
    torch.save({"mean": torch.zeros(1, 4, 1, 1), "std": torch.ones(1, 4, 1, 1)}, root / "latents_stats.pt")
    return root


def _pt_shards(root: Path, x: np.ndarray, y: np.ndarray) -> Path:
    parts = np.split(np.arange(len(x)), [7])
    return folder(
        root, [(f"{k}.pt", pt({"x": torch.tensor(x[p]), "y": torch.tensor(y[p])})) for k, p in enumerate(parts)]
    )


def webdataset(x: np.ndarray, y: np.ndarray, start: int = 0) -> list[tuple[str, bytes]]:
    files = []
    for i, (z, c) in enumerate(zip(x, y, strict=True), start):
        files += [(f"./{i:06d}.npy", npy(z)), (f"./{i:06d}.cls", str(c).encode())]
    return files


def _tars(root: Path, x: np.ndarray, y: np.ndarray) -> Path:
    root.mkdir()
    tar(root / "shard-000000.tar", webdataset(x[:7], y[:7]))
    tar(root / "shard-000001.tar", webdataset(x[7:], y[7:]))  # the same keys once more
    return root


def _components(root: Path, x: np.ndarray, y: np.ndarray) -> Path:
    files = []
    for i, (z, c) in enumerate(zip(x, y, strict=True)):
        files += [(f"a.b/{i}.json", json.dumps({"label": int(c), "prompt": "a"}).encode())]
        files += [(f"a.b/{i}.text.pth", pt(torch.zeros(3))), (f"a.b/{i}.latent.pth", pt(torch.tensor(z)))]
    return tar(root.with_suffix(".tar"), files)


def _tensors_in_tar(root: Path, x: np.ndarray, y: np.ndarray) -> Path:
    items = [save({"latents": torch.tensor(z), "label": torch.tensor([c])}) for z, c in zip(x, y, strict=True)]
    return tar(root.with_suffix(".tar"), [(f"{i:03d}.safetensors", item) for i, item in enumerate(items)])


def listed(root: Path, x: np.ndarray, y: np.ndarray, noise: np.ndarray | None = None) -> Path:
    """Re-MeanFlow's list of latents and, beside each, the noise it was made from."""
    names = [f"{c}/{i}.npy" for i, c in enumerate(y)]
    folder(root / "latents", [(name, npy(z)) for name, z in zip(names, x, strict=True)])
    if noise is not None:
        folder(root / "latents", [(f"{c}/{i}_noise.npy", npy(noise[i])) for i, c in enumerate(y)])
    content = {"root": "latents", "file_list": names, "label_list": y.tolist()}
    (root / "list.json").write_text(json.dumps(content))
    return root / "list.json"


LAYOUTS: dict[str, Write] = {
    "edm": lambda root, x, y: folder(root, edm(x, y)),
    "edm zip": lambda root, x, y: packed(root.with_suffix(".zip"), edm(x, y)),
    "labels in items": _in_items,
    "labels beside items": _beside_items,
    "class folders": _class_folders,
    "npy shards": _npy_shards,
    "safetensors shards": _safetensors_shards,
    "pt shards": _pt_shards,
    "tar": lambda root, x, y: tar(root.with_suffix(".tar"), webdataset(x, y)),
    "tars": _tars,
    "tar of components": _components,
    "tar of safetensors": _tensors_in_tar,
    "list": listed,
}
