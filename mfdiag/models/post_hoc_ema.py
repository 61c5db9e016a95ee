"""Post-hoc averages (EDM2, arXiv 2312.02696, section 3): an average of any width from stored ones of other widths."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mfdiag.errors import InputError
from mfdiag.models.formats.containers import StateDict
from mfdiag.models.formats.weight_names import is_bookkeeping, split_copies

__all__ = ["Synthesis", "combination", "exponent_of_width", "is_request", "synthesis"]

_REQUEST = re.compile(r"ema:(?P<width>\d*\.?\d+)(?::(?P<profiles>\d*\.?\d+(?:,\d*\.?\d+)*))?")
_STATED = re.compile(r"(?:^|\.)emas\.(\d+\.\d+)$")  # EDM2's training state, where the file has the widths
_NUMBERED = re.compile(r"(?:^|\.)(?:emas|ema_models)\.(\d+)$")
_SNAPSHOT = re.compile(r"^(\d+)\.(\d+)(?:\.ema_model)?$")  # ema-pytorch's files: number of the profile, and step
_WIDEST = 0.288675  # 1 / sqrt(12), the width of the average over all steps: exponent 0
_MOST_ERROR = 0.2  # of a combined profile, beyond which it is another average
_SAME = 1e-3  # relative difference of widths that are the same, as files round them


class Synthesis(NamedTuple):
    """Averaged weights of a width: a weighted sum of stored averages.

    `error` is the distance of its profile from the requested one, relative to the norm of that one; 0 for one stored
    average.
    """

    width: float
    sets: list[StateDict]
    weights: list[float]
    error: float

    def tensors(self) -> StateDict:
        """The sum, computed in float64; whole numbers are those of the last average."""
        import torch

        if len(self.sets) == 1:
            return self.sets[0]
        total = {}
        for name, first in self.sets[0].items():
            if is_bookkeeping(name) or not first.is_floating_point():
                total[name] = self.sets[-1].get(name, first)
                continue
            value = torch.zeros(first.shape, dtype=torch.float64)
            for tensors, weight in zip(self.sets, self.weights, strict=True):
                value += weight * tensors[name].double()
            total[name] = value.to(torch.promote_types(first.dtype, torch.float32))
        return total


def is_request(key: str) -> bool:
    """Whether `--weights KEY` asks for an average of a width, as ema:0.1 or ema:0.1:0.05,0.28."""
    return _REQUEST.fullmatch(key) is not None


def exponent_of_width(width: float) -> float:
    """The exponent gamma of the profile p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t].

    Its standard deviation is width * t: width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

    Args:
        width: The standard deviation relative to the length of training, above 0 and at most 1 / sqrt(12).

    Returns:
        gamma >= 0.

    Raises:
        InputError: If no profile has this width.
    """
    if not 0 < width <= _WIDEST * (1 + _SAME):
        raise InputError(
            f"Expected a width above 0 and at most {_WIDEST:.3f}, which is the average over all of training, but got "
            f"{width:g}; pass another width in --weights ema:WIDTH."
        )
    # (gamma + 2)^2 (gamma + 3) width^2 = gamma + 1 is a cubic with one root above -1
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return max(0.0, float(roots.real.max()))


def combination(
    times: Sequence[float], exponents: Sequence[float], time: float, exponent: float
) -> tuple[np.ndarray, float]:
    """Weights of stored averages whose sum has the profile closest to a requested one, in the mean square.

    Args:
        times: The training time of each stored average.
        exponents: The exponent of the profile of each.
        time: The requested training time.
        exponent: The requested exponent.

    Returns:
        A weight for each average, and the distance of the combined profile from the requested one, relative to the
        norm of that one.
    """
    t, g = (np.asarray(values, dtype=np.float64) for values in (times, exponents))
    gram = _inner(t[:, None], g[:, None], t[None, :], g[None, :])
    t_r, g_r = np.asarray(float(time)), np.asarray(float(exponent))
    target = _inner(t, g, t_r, g_r)
    weights = np.linalg.lstsq(gram, target, rcond=None)[0]
    norm = float(_inner(t_r, g_r, t_r, g_r))
    # |p - sum w p_i|^2 = |p|^2 - 2 w.target + w.gram.w
    squared = norm - 2 * weights @ target + weights @ gram @ weights
    return weights, float(np.sqrt(max(0.0, squared) / norm))


def _inner(t_a: np.ndarray, g_a: np.ndarray, t_b: np.ndarray, g_b: np.ndarray) -> np.ndarray:
    """The integral of two profiles over the time that both cover.

    int_0^m (a+1) tau^a / s^(a+1) (b+1) tau^b / t^(b+1) = (a+1)(b+1) / (a+b+1) (m/s)^a (m/t)^b m / (s t), m = min(s, t)
    """
    least = np.minimum(t_a, t_b)
    ratio = (least / t_a) ** g_a * (least / t_b) ** g_b * least / (t_a * t_b)
    return (g_a + 1) * (g_b + 1) / (g_a + g_b + 1) * ratio


def synthesis(state: Mapping[str, StateDict], key: str, path: Path) -> Synthesis:
    """The average that `--weights ema:WIDTH[:PROFILES]` asks for.

    Args:
        state: Every set of weights of the file, by its dotted place.
        key: The request. PROFILES are the widths of the stored averages in their order, for files that do not record
            them, as those of ema-pytorch.
        path: The file, for errors.

    Returns:
        The stored average of that width at the last step, or the combination of all stored averages closest to it.

    Raises:
        InputError: If the file has no such averages, or if their widths are not known.
    """
    match = _REQUEST.fullmatch(key)
    assert match is not None
    width = float(match["width"])
    stated = [float(text) for text in (match["profiles"] or "").split(",") if text]
    places = split_copies(state)
    averages = [
        (place, profile, time)
        for place in places
        for profile, time in [_profile_and_time(place, stated, key, path)]
        if profile is not None
    ]
    if not averages:
        raise InputError(
            f"Expected averages of several widths in {path}, as ema-pytorch's PostHocEMA and EDM2 write them, but it "
            "has none; pass --weights ema or another set."
        )
    exponent = exponent_of_width(width)
    last = max(time for _, _, time in averages)
    for place, profile, time in averages:
        if time == last and abs(profile - width) <= _SAME * width:
            return Synthesis(width, [places[place]], [1.0], 0.0)
    exponents = [exponent_of_width(profile) for _, profile, _ in averages]
    weights, error = combination([time for _, _, time in averages], exponents, last, exponent)
    sets = [places[place] for place, _, _ in averages]
    if error > _MOST_ERROR:
        stored = ", ".join(f"{profile:g}" for profile in sorted({profile for _, profile, _ in averages}))
        raise InputError(
            f"Expected averages in {path} that combine to one of width {width:g}, but the closest combination differs "
            f"from it by {error:.0%} of its norm; pass a stored width ({stored}), or the folder with averages of all "
            "steps."
        )
    if len({(frozenset(tensors)) for tensors in sets}) > 1:
        raise InputError(
            f"Expected averages of one network in {path}, but their tensors have different names; remove those of "
            "other networks."
        )
    return Synthesis(width, sets, weights.tolist(), error)


def _profile_and_time(place: str, stated: Sequence[float], key: str, path: Path) -> tuple[float | None, float]:
    """Width and training time of the average at a place; None if it is no such average."""
    if match := _STATED.search(place):
        return float(match[1]), 1.0
    snapshot, numbered = _SNAPSHOT.search(place), _NUMBERED.search(place)
    match = snapshot or numbered
    if match is None:
        return None, 1.0
    number = int(match[1])
    if number >= len(stated):
        raise InputError(
            f"Expected the width of average {number}, which {path} does not record; pass the widths in the order of "
            f"training, as in --weights ema:{key.split(':')[1]}:0.05,0.28."
        )
    return stated[number], max(1.0, float(match[2])) if snapshot else 1.0
