"""What labels do to a network's velocity: is the null label trained, do labels matter, how far does it guide?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mfdiag.diagnosis.measured import Measured, blocks, ratio, squares
from mfdiag.errors import NETWORK_ERRORS
from mfdiag.flow.conditions import null_of
from mfdiag.flow.draw import Draws
from mfdiag.gradients.intervals import jackknife, skewed_jackknife
from mfdiag.gradients.moments import scalar_replicates

__all__ = ["probe_labels"]


def probe_labels(
    network: Callable[..., Tensor], draws: Draws, samples: int, keys: Mapping[str, Any], *, exact: bool
) -> Iterator[Measured]:
    """Measure a network with the samples' labels and with the null label.

    Args:
        network: u(x, r, t, condition) in float64.
        draws: The distribution of the samples.
        samples: Number of samples.
        keys: Values of key columns.
        exact: Whether to compute the posterior over the data too.

    Yields:
        Measurements of table `doctor`; none for a network or data without labels.
    """
    batch = draws.batch(np.arange(samples))
    if not draws.conditional or batch.condition is None or not draws.data.num_classes:
        return
    v_c = draws.path.velocity(batch.x0, batch.x1, batch.t)
    try:
        own, null = (
            network(batch.x_t, batch.t, batch.t, condition)
            for condition in (batch.condition, null_of(batch.condition, draws.null_label))
        )
    except NETWORK_ERRORS:  # it has no null label
        return
    # 1 - cos^2 does not see the length of u, which guidance changes
    parts = [squares(own), squares(null), squares(v_c), _products(own, v_c), _products(null, v_c)]
    means, count = scalar_replicates(np.stack(parts, axis=1), *blocks(samples))
    by_own, by_null, all_of_it, along_own, along_null = means.T
    left = (1 - along_null**2 / (by_null * all_of_it)) / (1 - along_own**2 / (by_own * all_of_it))
    yield Measured("null_label_error", skewed_jackknife(left, count, nonnegative=True), keys=keys)
    explained = along_own**2 / (by_own * all_of_it)
    yield Measured("label_explained", skewed_jackknife(explained, count, nonnegative=True), keys=keys)
    effect = squares(own - null)
    known = draws.velocity_posterior(batch) if exact else None
    unknown = draws.velocity_posterior(replace(batch, dropped=torch.ones(samples, dtype=torch.bool))) if exact else None
    if known is not None and unknown is not None:
        yield Measured("label_effect", ratio(effect, squares(known.mean - unknown.mean)), keys=keys)
    # where u_y - u_null = omega (v_y - v): E[<v_c - u_null, u_y - u_null>] = E|u_y - u_null|^2 / omega
    means, count = scalar_replicates(np.stack([effect, _products(own - null, v_c - null)], axis=1), *blocks(samples))
    yield Measured("guidance_scale", jackknife(means[:, 0] / means[:, 1], count), keys=keys)


def _products(a: Tensor, b: Tensor) -> np.ndarray:
    """Inner products [n] of a and b, each [n, *shape]."""
    return (a * b).flatten(1).sum(1).numpy()
