"""Trains the classifier whose features `--features mfdiag.quality.digit_features:digit_features` uses.

    python sweeps/mnist.py && python sweeps/digit_classifier.py mfdiag/data/digit_classifier.safetensors

It takes one minute. It sees the 8,000 training digits of MNIST and four of five of scikit-learn's 1,797, all shifted by
up to one pixel. The last line is its accuracy on the digits that it has not seen.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from mfdiag.flow.data.datasets import load_data
from mfdiag.quality.digit_features import DigitClassifier

STEPS, BATCH = 1_500, 128


def arrays(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, 1, 16, 16] and labels of a data set."""
    data = load_data(name)
    images = torch.as_tensor(np.asarray(data.points[np.arange(len(data.points))]), dtype=torch.float32)
    return F.interpolate(images, size=(16, 16), mode="bilinear", antialias=True), torch.as_tensor(data.labels)


def main(path: str) -> None:
    torch.manual_seed(0)
    mnist, mnist_labels = arrays("data/mnist_train.npz")
    digits, digit_labels = arrays("digits")
    seen = torch.arange(len(digits)) % 5 != 0
    images, labels = torch.cat([mnist, digits[seen]]), torch.cat([mnist_labels, digit_labels[seen]])
    model = DigitClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(images), (BATCH,))
        shift = torch.randint(-1, 2, (2,)).tolist()
        loss = F.cross_entropy(model(images[rows].roll(shift, (2, 3))), labels[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    save_file(model.state_dict(), path)
    unseen = {"MNIST": arrays("data/mnist_heldout.npz"), "scikit-learn": (digits[~seen], digit_labels[~seen])}
    with torch.no_grad():
        shares = {name: (model(x).argmax(1) == y).double().mean().item() for name, (x, y) in unseen.items()}
    print(", ".join(f"{name} {share:.1%}" for name, share in shares.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
