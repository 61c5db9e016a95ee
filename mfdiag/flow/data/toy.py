"""The six two-dimensional toy data sets, each with 100,000 points from one fixed seed.

Formulas follow FFJORD (Grathwohl et al., arXiv 1810.01367) and, for the roll and the moons, scikit-learn. Training and
measuring use the same points. One shift and one scale give each set zero mean and unit overall standard deviation,
which keeps its aspect ratio.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import ndtri

from mfdiag.flow.seeds import uniforms

__all__ = ["POINTS", "SEED", "TOYS", "toy_points"]

POINTS = 100_000
SEED = 0
_WIDTH = 4  # uniform numbers per point for every set: one step of the counter


def toy_points(name: str) -> np.ndarray:
    """Points of the set `name` (a key of `TOYS`), float64 [100000, 2]. Before scaling, point i depends on (SEED, i)."""
    points = TOYS[name](uniforms(SEED, f"toy/{name}", np.arange(POINTS), _WIDTH))
    points -= points.mean(axis=0)
    return points / np.sqrt(np.mean(points**2))


def _swiss_roll(u: np.ndarray) -> np.ndarray:
    angle = 1.5 * np.pi * (1 + 2 * u[:, 0])
    return angle[:, None] * _unit(angle) + ndtri(u[:, 1:3])


def _checkerboard(u: np.ndarray) -> np.ndarray:
    x = 4 * u[:, 0] - 2
    y = u[:, 1] - 2 * (u[:, 2] < 0.5) + np.floor(x) % 2
    return np.stack([x, y], axis=1)


def _pinwheel(u: np.ndarray) -> np.ndarray:
    arm = np.floor(5 * u[:, 0])
    radial, tangential = 1 + 0.3 * ndtri(u[:, 1]), 0.1 * ndtri(u[:, 2])
    direction = _unit(2 * np.pi * arm / 5 + 0.25 * np.exp(radial))
    normal = np.stack([-direction[:, 1], direction[:, 0]], axis=1)
    return radial[:, None] * direction + tangential[:, None] * normal


def _eight_gaussians(u: np.ndarray) -> np.ndarray:
    return 4 * _unit(np.pi * np.floor(8 * u[:, 0]) / 4) + 0.5 * ndtri(u[:, 1:3])


def _two_moons(u: np.ndarray) -> np.ndarray:
    upper = _unit(np.pi * u[:, 0])
    moons = np.where(u[:, 1:2] < 0.5, upper, [1.0, 0.5] - upper)
    return moons + 0.1 * ndtri(u[:, 2:4])


def _two_spirals(u: np.ndarray) -> np.ndarray:
    angle = 3 * np.pi * np.sqrt(u[:, 0])
    arm = angle[:, None] * _unit(np.pi - angle) / 3
    sign = np.where(u[:, 1:2] < 0.5, -1.0, 1.0)
    return sign * arm + 0.1 * ndtri(u[:, 2:4])


def _unit(angle: np.ndarray) -> np.ndarray:
    """Unit vectors [n, 2] at `angle` [n] radians."""
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


TOYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "swiss_roll": _swiss_roll,
    "checkerboard": _checkerboard,
    "pinwheel": _pinwheel,
    "eight_gaussians": _eight_gaussians,
    "two_moons": _two_moons,
    "two_spirals": _two_spirals,
}
