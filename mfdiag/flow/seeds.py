"""Counter-based random numbers. Sample i depends on (seed, stream, i) alone, never on chunk, order or process."""

from __future__ import annotations

import zlib

import numpy as np
from scipy.special import ndtri

__all__ = ["normals", "uniforms"]

_WORDS = 4  # one step of Philox's counter yields four 64-bit words


def uniforms(seed: int, stream: str, index: np.ndarray, width: int) -> np.ndarray:
    """Uniform numbers in (0, 1) for the samples `index`.

    There is one Philox stream per (seed, stream). Sample i starts at counter i * ceil(width / 4), and each run of
    consecutive indices is one call.

    Args:
        seed: The seed of the run.
        stream: The purpose, such as "data", "noise" or "times". Numbers of different purposes are independent.
        index: Sample numbers, int64 [n], in any order.
        width: Uniform numbers per sample.

    Returns:
        float64 [n, width], never 0 and never 1.
    """
    key = np.random.SeedSequence([seed, zlib.crc32(stream.encode())]).generate_state(2, np.uint64)
    steps = -(-width // _WORDS)
    index = np.asarray(index, dtype=np.int64)
    out = np.empty((len(index), width))
    starts = np.flatnonzero(np.diff(index, prepend=index[:1] - 2) != 1)
    if not len(index):
        return out
    for start, stop in zip(starts, [*starts[1:], len(index)], strict=True):
        bits = np.random.Philox(key=key, counter=int(index[start]) * steps)
        raw = bits.random_raw((stop - start) * steps * _WORDS).reshape(stop - start, steps * _WORDS)
        out[start:stop] = ((raw[:, :width] >> np.uint64(12)) + 0.5) * 2.0**-52  # never 0, never 1
    return out


def normals(seed: int, stream: str, index: np.ndarray, width: int) -> np.ndarray:
    """Standard normal numbers for the samples `index`: the normal quantiles of `uniforms`.

    Args:
        seed: The seed of the run.
        stream: The purpose, see `uniforms`.
        index: Sample numbers, int64 [n], in any order.
        width: Normal numbers per sample.

    Returns:
        float64 [n, width].
    """
    return ndtri(uniforms(seed, stream, index, width))
