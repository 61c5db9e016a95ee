"""A multilayer perceptron on vectors: the network of the two-dimensional experiments."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from mfdiag.errors import InputError

__all__ = ["MLP", "label_embedding", "labels_or_null"]

_LABEL_WIDTH = 16


def label_embedding(num_classes: int, width: int) -> nn.Embedding | None:
    """An embedding of `num_classes` labels and one null label, index `num_classes`; None without classes."""
    return nn.Embedding(num_classes + 1, width) if num_classes else None


def labels_or_null(y: Tensor | None, embedding: nn.Embedding, like: Tensor) -> Tensor:
    """Labels for an embedding that `label_embedding` made.

    Args:
        y: Labels int64 [n], or None.
        embedding: The embedding; its last row is the null label.
        like: A tensor [n, ...] that gives the number of rows and the device.

    Returns:
        y, or the null label for every row of `like` if y is None.
    """
    if y is not None:
        return y
    return torch.full(like.shape[:1], embedding.num_embeddings - 1, dtype=torch.int64, device=like.device)


class MLP(nn.Module):
    """Average velocity u(x, r, t) by `depth` hidden layers of `hidden` SiLU units on concat(x, r, t).

    With `num_classes` > 0, an embedding of the label is a further input; otherwise labels are ignored.
    The paper's two-dimensional experiments use depth 3 and hidden 128.

    Raises:
        InputError: If `dim`, `hidden` or `depth` is below 1, or `num_classes` is negative.
    """

    def __init__(self, dim: int, hidden: int = 128, depth: int = 3, num_classes: int = 0) -> None:
        super().__init__()
        if min(dim, hidden, depth) < 1 or num_classes < 0:
            raise InputError(
                f"MLP needs dim, hidden and depth of at least 1 and num_classes of at least 0, but got dim={dim}, "
                f"hidden={hidden}, depth={depth}, num_classes={num_classes}; correct the model's arguments."
            )
        self.num_classes = num_classes
        self.label = label_embedding(num_classes, _LABEL_WIDTH)
        sizes = [dim + 2 + (_LABEL_WIDTH if num_classes else 0), *[hidden] * depth]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, dim))

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Average velocity u.

        Args:
            x: Points x_t [n, dim].
            r: Times r [n] in [0, 1], the other end of the interval.
            t: Times t [n] in [0, 1] of the points.
            y: Labels int64 [n]; None stands for the null label.

        Returns:
            u [n, dim].
        """
        inputs = [x, r[:, None], t[:, None]]
        if self.label is not None:
            inputs.append(self.label(labels_or_null(y, self.label, x)))
        return self.layers(torch.cat(inputs, dim=1))
