"""The batch that a monitor stored beside a spike: which of its samples the gradient came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mfdiag.errors import InputError
from mfdiag.flow.paths import Path as FlowPath
from mfdiag.models.formats.containers import read_container
from mfdiag.models.precision import measured_copy

__all__ = ["Spike", "SpikeBatch", "examine_batch", "stored_batch"]

_NEEDED = ("x0", "x1", "r", "t")
_STEP = 2.0**-14  # of the difference along the path, in float64


class SpikeBatch(NamedTuple):
    """What a training step saw.

    Attributes:
        x0: Data [n, *shape].
        x1: Noise [n, *shape].
        r: Start times [n].
        t: End times [n].
        labels: Labels [n], or None.
    """

    x0: Tensor
    x1: Tensor
    r: Tensor
    t: Tensor
    labels: Tensor | None = None


class Spike(NamedTuple):
    """Where the squared gradient norm of a batch comes from.

    Attributes:
        share: Each sample's share [n].
        r: Start times [n].
        t: End times [n].
    """

    share: Tensor
    r: Tensor
    t: Tensor

    def largest(self, count: int = 3) -> list[tuple[int, float, float, float]]:
        """Number in the batch, share, r and t of the samples with the largest shares."""
        order = self.share.argsort(descending=True)[:count].tolist()
        return [(k, float(self.share[k]), float(self.r[k]), float(self.t[k])) for k in order]


def stored_batch(path: Path) -> SpikeBatch | None:
    """The batch that `mfdiag.Monitor` stored with a spike.

    Args:
        path: A checkpoint.

    Returns:
        The batch; None for a file without one, or where the training loop did not pass x0, x1, r and t.

    Raises:
        InputError: The tensors do not fit each other.
    """
    if path.is_dir() or path.parent.name != "spikes":
        return None
    entry = read_container(path, load=True).tree.get("batch")
    if not isinstance(entry, Mapping) or not all(isinstance(entry.get(name), Tensor) for name in _NEEDED):
        return None
    x0, x1, r, t = (entry[name].double() for name in _NEEDED)
    if x0.shape != x1.shape or r.shape != t.shape or r.shape != x0.shape[:1]:
        raise InputError(
            f"Expected x0 and x1 of one shape [n, ...] and r and t of shape [n] in the batch of {path}, got "
            f"{list(x0.shape)}, {list(x1.shape)}, {list(r.shape)} and {list(t.shape)}; pass these to Monitor.step."
        )
    labels = entry.get("labels")
    return SpikeBatch(x0, x1, r, t, labels if isinstance(labels, Tensor) else None)


def examine_batch(module: nn.Module, path: FlowPath, batch: SpikeBatch) -> Spike:
    """Squared norm of MeanFlow's gradient of each sample, by one backward pass each.

    Args:
        module: u(x, r, t, labels).
        path: The path from data to noise.
        batch: The samples.

    Returns:
        Their shares.
    """
    network = measured_copy(module, "cpu", torch.float64)
    parameters = [p.requires_grad_() for p in network.parameters()]
    norms = []
    for k in range(len(batch.t)):
        rows = slice(k, k + 1)
        x0, x1, r, t = (values[rows] for values in batch[:4])
        labels = None if batch.labels is None else batch.labels[rows]
        gap = (t - r).view(-1, *[1] * (x0.ndim - 1))
        with torch.no_grad():
            # along the path, x_t moves with v_c: a step of it is a step of t
            low, high = ((t + end * _STEP).clamp(0, 1) for end in (-1, 1))
            v_c, x = path.velocity(x0, x1, t), path.point(x0, x1, t)
            ends = [network(x + (s - t).view(gap.shape) * v_c, r, s, labels) for s in (low, high)]
            derivative = (ends[1] - ends[0]) / (high - low).view(gap.shape)
        u = network(x, r, t, labels)
        residual = (u - v_c + gap * derivative).detach()
        gradients = torch.autograd.grad((2 * u * residual).sum(), parameters, allow_unused=True)
        norms.append(sum((g.square().sum() for g in gradients if g is not None), torch.zeros((), dtype=torch.float64)))
    squares = torch.stack(norms)
    return Spike(squares / squares.sum().clamp_min(1e-300), batch.r, batch.t)
