"""Classifier-free guidance built into the objective: the velocity v_g that is trained on in the place of v_c.

Every formula is affine in the conditional velocity, v_g = a v_c + b v(x_t, t, y) + c v(x_t, t, null), all under
stop-gradient, with a = 1 and b = c = 0 outside an interval of t. A share of the labels is null.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.specs import format_spec, parse_arguments

if TYPE_CHECKING:  # listing guidances needs no torch
    from torch import Tensor

__all__ = ["GUIDANCES", "Guidance", "GuidanceFactors", "Scale", "parse_guidance"]

GUIDANCES: dict[str, str] = {
    "none": "v_c, and every label as it is drawn",
    "meanflow": "omega v_c + kappa u(x_t,t,t,y) + (1 - omega - kappa) u(x_t,t,t,null) where low <= t <= high, v_c "
    "elsewhere and for the share drop of null labels (arXiv 2505.13447, section 4.2): "
    "meanflow:omega,[kappa=0],[low=0],[high=1],[drop=0.1]",
    "re_meanflow": "the same with kappa = 1 - omega/scale for all t, null labels too (Re-MeanFlow): "
    "re_meanflow:omega,scale,[drop=0.1]",
    "model_guidance": "v_c + omega (u(x_t,t,t,y) - u(x_t,t,t,null)), interval and null labels as in meanflow (arXiv "
    "2502.12154; Decoupled MeanFlow): model_guidance:omega,[low=0],[high=1],[drop=0.1]",
    "improved": "v_c + (1 - 1/omega) (v_head(y) - v_head(null)), the network being told omega and interval (improved "
    "MeanFlow, arXiv 2512.02012): improved:omega,[low=0],[high=1],[drop=0.1]",
    "improved_power": "the same with omega = (1 + scale)^U and an interval drawn for each sample, all times where "
    "r = t (improved MeanFlow's own): improved_power:[scale=7],[drop=0.1]",
    "improved_uniform": "the same for all t with omega uniform from least to most for a share, 1 for the rest and for "
    "null labels: "
    "improved_uniform:[least=1],[most=5],[share=0.75],[drop=0.1]",
    "teacher": "v(x_t,t,null) + omega (v(x_t,t,y) - v(x_t,t,null)) of a teacher where low <= t <= high, v(x_t,t,y) "
    "elsewhere: teacher:omega,[low=0],[high=1],[drop=0]",
}


class Scale(NamedTuple):
    """Strength omega and interval [low, high] of t for each sample, all [n]."""

    omega: Tensor
    low: Tensor
    high: Tensor


class GuidanceFactors(NamedTuple):
    """Factors of v_c and of the network's velocity with the sample's label and with the null label: each [n]."""

    data: Tensor
    own: Tensor
    null: Tensor


Law = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""uniform numbers [n, 3], whether r = t and whether the label is null, both [n] -> omega, low, high, each [n]."""


@dataclass(frozen=True)
class Guidance:
    """One formula with its arguments; `inside` gives its factors from omega [n], `outside` those beyond the interval.

    `network` says whose velocity it is: the measured one's at r = t, that of its head, or a teacher's. A share `drop`
    of the labels becomes null; these keep v_c unless `null_too`. `scale` draws what may differ between samples.
    """

    name: str
    inside: Callable[[Tensor], tuple[Tensor | float, Tensor | float, Tensor | float]]
    scale: Law
    drop: float
    network: Literal["self", "head", "teacher"] = "self"
    outside: tuple[float, float, float] = (1.0, 0.0, 0.0)
    null_too: bool = False
    changes: bool = True  # False where labels are dropped and v_c stays what it is

    def factors(self, scale: Scale, t: Tensor, dropped: Tensor) -> GuidanceFactors:
        """At times t [n], `dropped` [n] telling the null labels."""
        guided = (t >= scale.low) & (t <= scale.high)
        if not self.null_too:
            guided = guided & ~dropped
        share = guided.to(t)
        pairs = zip(self.inside(scale.omega), self.outside, strict=True)
        return GuidanceFactors(*(share * within + (1 - share) * beyond for within, beyond in pairs))


def parse_guidance(spec: str) -> Guidance | None:
    """The guidance of a specification, a key of `GUIDANCES` with arguments; None for `none`.

    Raises InputError for an unknown name or a bad argument.
    """
    kind = spec.partition(":")[0]
    if kind not in GUIDANCES:
        raise did_you_mean("guidance", kind, GUIDANCES)
    if kind == "none":
        parse_arguments(spec, {})
        return None
    parameters, make = _KINDS[kind]
    given = parse_arguments(spec, parameters)
    for name, value in given.items():
        if name in _SHARES and not 0 <= value <= 1:
            raise InputError(f"Bad {spec!r}: {name} must be in [0, 1], got {value:g}.")
        if name in _POSITIVE and not value > 0:
            raise InputError(f"Bad {spec!r}: {name} must be above 0, got {value:g}.")
    for below, above in (("low", "high"), ("least", "most")):
        if below in given and given[below] > given[above]:
            raise InputError(f"Bad {spec!r}: {below} must not be above {above}.")
    return make(format_spec(kind, *given.values()), **given)


_SHARES = {"low", "high", "drop", "share"}
_POSITIVE = {"omega", "scale", "least"}


def _fixed(omega: float, low: float = 0.0, high: float = 1.0) -> Law:
    """The same for every sample."""

    def law(u: np.ndarray, equal: np.ndarray, dropped: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.full(len(u), omega), np.full(len(u), low), np.full(len(u), high)

    return law


def _meanflow(name: str, omega: float, kappa: float, low: float, high: float, drop: float) -> Guidance:
    scale, changes = _fixed(omega, low, high), (omega, kappa) != (1, 0)
    return Guidance(name, lambda w: (w, kappa, 1 - w - kappa), scale, drop, changes=changes)


def _re_meanflow(name: str, omega: float, scale: float, drop: float) -> Guidance:
    # omega / (1 - kappa) is the strength that guides in effect, here called scale
    kappa = 1 - omega / scale
    return Guidance(name, lambda w: (w, kappa, 1 - w - kappa), _fixed(omega), drop, null_too=True)


def _model_guidance(name: str, omega: float, low: float, high: float, drop: float) -> Guidance:
    return Guidance(name, lambda w: (1.0, w, -w), _fixed(omega, low, high), drop)


def _improved(name: str, drop: float, scale: Law) -> Guidance:
    return Guidance(name, lambda w: (1.0, 1 - 1 / w, 1 / w - 1), scale, drop, network="head")


def _improved_power(name: str, scale: float, drop: float) -> Guidance:
    def law(u: np.ndarray, equal: np.ndarray, dropped: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return (1 + scale) ** u[:, 0], np.where(equal, 0, u[:, 1] / 2), np.where(equal, 1, 0.5 + u[:, 2] / 2)

    return _improved(name, drop, law)


def _improved_uniform(name: str, least: float, most: float, share: float, drop: float) -> Guidance:
    def law(u: np.ndarray, equal: np.ndarray, dropped: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        omega = np.where((u[:, 0] < share) & ~dropped, least + (most - least) * u[:, 1], 1)
        return omega, np.zeros(len(u)), np.ones(len(u))

    return _improved(name, drop, law)


def _teacher(name: str, omega: float, low: float, high: float, drop: float) -> Guidance:
    scale, beyond = _fixed(omega, low, high), (0.0, 1.0, 0.0)
    return Guidance(name, lambda w: (0.0, w, 1 - w), scale, drop, "teacher", beyond)


_INTERVAL: dict[str, float | None] = {"low": 0.0, "high": 1.0}
_KINDS: dict[str, tuple[dict[str, float | None], Callable[..., Guidance]]] = {
    "meanflow": ({"omega": None, "kappa": 0.0, **_INTERVAL, "drop": 0.1}, _meanflow),
    "re_meanflow": ({"omega": None, "scale": None, "drop": 0.1}, _re_meanflow),
    "model_guidance": ({"omega": None, **_INTERVAL, "drop": 0.1}, _model_guidance),
    "improved": (
        {"omega": None, **_INTERVAL, "drop": 0.1},
        lambda name, omega, low, high, drop: _improved(name, drop, _fixed(omega, low, high)),
    ),
    "improved_power": ({"scale": 7.0, "drop": 0.1}, _improved_power),
    "improved_uniform": ({"least": 1.0, "most": 5.0, "share": 0.75, "drop": 0.1}, _improved_uniform),
    "teacher": ({"omega": None, **_INTERVAL, "drop": 0.0}, _teacher),
}
"""Name -> its arguments with their defaults, and what makes the guidance of its canonical name and arguments."""
