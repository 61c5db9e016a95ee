"""Uniform numbers behind noise and data, in independent replicates: evenly spread, or drawn one by one."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch.quasirandom import SobolEngine

from mfdiag.flow.seeds import uniforms

__all__ = ["REPLICATES", "independent_uniforms", "sobol_uniforms"]

REPLICATES = 32
"""Number of independent replicates behind each interval."""

_HALF_STEP = 0.5**31  # Sobol numbers have 30 bits; half a step more keeps them above 0


def independent_uniforms(seed: int, stream: str, replicate: int, size: int, width: int) -> np.ndarray:
    """Independent uniform numbers; row j depends on seed, stream, replicate and j alone.

    Args:
        seed: Seed of the run.
        stream: Name of the random stream.
        replicate: Number of the replicate.
        size: Number of rows.
        width: Numbers in a row.

    Returns:
        float64 [size, width], in (0, 1).
    """
    return uniforms(seed, f"{stream}/{replicate}", np.arange(size), width)


def sobol_uniforms(seed: int, stream: str, replicate: int, size: int, width: int) -> np.ndarray:
    """Rows of a scrambled Sobol sequence, which are evenly spread together.

    Each row is uniform, and replicates are independent. So means over the rows are unbiased, and their variance is far
    smaller than for independent rows (Owen 1997). Above the dimensions of the tabulated sequence the rows are
    independent.

    Args:
        seed: Seed of the run.
        stream: Name of the random stream.
        replicate: Number of the replicate.
        size: Number of rows.
        width: Numbers in a row.

    Returns:
        float64 [size, width], in (0, 1); the first rows do not depend on `size`.
    """
    if width > SobolEngine.MAXDIM:
        return independent_uniforms(seed, stream, replicate, size, width)
    key = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), replicate]).generate_state(1)
    engine = SobolEngine(width, scramble=True, seed=int(key[0]))
    return engine.draw(size, dtype=torch.float64).numpy() + _HALF_STEP
