"""Draws samples of digits for each beta of a grid, in 1, 2 and 32 steps, all from the same noise.

python sweeps/sample_sheet.py 'mnist/beta={},seed=0/step=3750/model.safetensors' mnist.png
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import torch

from mfdiag.models.checkpoint import load_model
from mfdiag.quality.sampling import sample

BETAS, STEPS, ROWS = ("0", "0.25", "0.5", "1"), (1, 2, 32), 2


def main(pattern: str, path: str) -> None:
    figure, axes = plt.subplots(len(STEPS), len(BETAS), figsize=(10, 3.4), layout="tight")
    labels = torch.arange(10).repeat(ROWS)
    for column, beta in enumerate(BETAS):
        loaded = load_model(pattern.format(beta), weights="ema")
        size = loaded.description.architecture.arguments["size"]
        noise = torch.randn(len(labels), 1, size, size, generator=torch.Generator().manual_seed(0))
        for row, nfe in enumerate(STEPS):
            images = sample(loaded.module.eval(), noise, nfe, labels).reshape(ROWS, 10, size, size)
            sheet = images.permute(0, 2, 1, 3).reshape(ROWS * size, 10 * size)
            axes[row, column].imshow(sheet.clamp(-1, 1), cmap="gray")
            axes[row, column].set_title(f"beta {beta}, NFE {nfe}", fontsize=8)
            axes[row, column].axis("off")
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main(*sys.argv[1:])
