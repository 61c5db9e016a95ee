"""Where samples start: uniform numbers in independent replicates, spread evenly or drawn one by one."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch.quasirandom import SobolEngine

from mfdiag.flow.seeds import uniforms

__all__ = ["REPLICATES", "independent", "spread"]

REPLICATES = 32


def independent(seed: int, stream: str, replicate: int, size: int, width: int) -> np.ndarray:
    """Uniform numbers in (0, 1), float64 [size, width]; row j depends on seed, stream, replicate and j alone."""
    return uniforms(seed, f"{stream}/{replicate}", np.arange(size), width)


def spread(seed: int, stream: str, replicate: int, size: int, width: int) -> np.ndarray:
    """The same as a scrambled Sobol sequence: each row uniform, replicates independent, rows of one evenly spread.

    Averages over them have a far smaller variance than over independent rows, and are as unbiased (Owen 1997). Beyond
    the dimensions of the tabulated sequence the rows are independent.
    """
    if width > SobolEngine.MAXDIM:
        return independent(seed, stream, replicate, size, width)
    key = np.random.SeedSequence([seed, zlib.crc32(stream.encode()), replicate]).generate_state(1)
    engine = SobolEngine(width, scramble=True, seed=int(key[0]))
    return engine.draw(size, dtype=torch.float64).numpy() + 0.5**31  # 30 bits, and never 0
