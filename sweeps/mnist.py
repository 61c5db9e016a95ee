"""Writes data/mnist_train.npz and data/mnist_heldout.npz: 8,000 and 2,000 handwritten digits of 16 x 16 pixels.

    python sweeps/mnist.py                 # downloads MNIST from OpenML with scikit-learn, and takes 10,000 digits
    python sweeps/mnist.py --file my.npz   # arrays images uint8 [N, 28, 28] and labels [N], used in their order

torchvision's MNIST gives the same digits: np.savez("my.npz", images=mnist.data, labels=mnist.targets).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

TRAIN, HELD_OUT = 8_000, 2_000


def from_openml() -> tuple[np.ndarray, np.ndarray]:
    """10,000 of the 70,000 digits of MNIST, drawn with seed 0: images uint8 [10000, 28, 28] and labels."""
    from sklearn.datasets import fetch_openml

    images, labels = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False)
    rows = np.random.default_rng(0).permutation(len(images))[: TRAIN + HELD_OUT]
    return images[rows].reshape(-1, 28, 28).astype(np.uint8), labels[rows].astype(np.int64)


def smaller(images: np.ndarray) -> np.ndarray:
    """Images uint8 [N, 28, 28] as float32 [N, 1, 16, 16] in [-1, 1], averaged over areas, without aliasing."""
    pixels = torch.as_tensor(images, dtype=torch.float32)[:, None]
    small = interpolate(pixels, size=(16, 16), mode="bilinear", antialias=True)
    return (small / 127.5 - 1).clamp(-1, 1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="an .npz file with images and labels, instead of OpenML")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder of the two files")
    arguments = parser.parse_args()
    if arguments.file:
        stored = np.load(arguments.file)
        images, labels = stored["images"], stored["labels"].astype(np.int64)
    else:
        images, labels = from_openml()
    if len(images) < TRAIN + HELD_OUT:
        raise SystemExit(f"Expected at least {TRAIN + HELD_OUT:,} images, but got {len(images):,}.")
    x = smaller(images[: TRAIN + HELD_OUT])
    arguments.out.mkdir(parents=True, exist_ok=True)
    np.savez(arguments.out / "mnist_train.npz", x=x[:TRAIN], y=labels[:TRAIN])
    np.savez(arguments.out / "mnist_heldout.npz", x=x[TRAIN:], y=labels[TRAIN : TRAIN + HELD_OUT])


if __name__ == "__main__":
    main()
