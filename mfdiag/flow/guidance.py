"""Classifier-free guidance built into the objective: the velocity v_g that replaces v_c (docs/theory.md#guidance).

Every formula is affine in the conditional velocity, v_g = a v_c + b v(x_t, t, y) + c v(x_t, t, null), under
stop-gradient. Outside an interval of t, v_g = v_c, or the teacher's velocity. A fraction of the labels is null.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.specs import format_spec, parse_arguments

if TYPE_CHECKING:  # listing guidances does not need torch
    from torch import Tensor

__all__ = ["GUIDANCES", "Guidance", "GuidanceFactors", "GuidanceScale", "SoFlowGuidance", "parse_guidance"]

GUIDANCES: dict[str, str] = {
    "none": "v_c; all labels as drawn",
    "meanflow": "omega v_c + kappa u(x_t,t,t,y) + (1 - omega - kappa) u(x_t,t,t,null) if low <= t <= high, else v_c; a "
    "fraction drop of the labels is null and keeps v_c (arXiv 2505.13447, section 4.2): "
    "meanflow:omega,[kappa=0],[low=0],[high=1],[drop=0.1]",
    "meanflow_apart": "as meanflow, but pairs with r = t keep v_c (SwayStar123/MeanFlow): "
    "meanflow_apart:omega,[kappa=0],[low=0],[high=1],[drop=0.1]",
    "re_meanflow": "as meanflow with kappa = 1 - omega/scale, at all t and also for null labels (Re-MeanFlow): "
    "re_meanflow:omega,scale,[drop=0.1]",
    "model_guidance": "v_c + omega (u(x_t,t,t,y) - u(x_t,t,t,null)), interval and null labels as in meanflow (arXiv "
    "2502.12154; Decoupled MeanFlow): model_guidance:omega,[low=0],[high=1],[drop=0.1]",
    "soflow": "mix ((1 + k) v_c - k u(x_t,t,t,null)) + (1 - mix) u(x_t,t,t,y) with k = omega - 1, which decays "
    "smoothly to 0 for t from decay to 1; a fraction drop of the labels is null and keeps v_c (SoFlow's code): "
    "soflow:omega,[mix=0.25],[decay=0.8],[drop=0.1]",
    "improved": "v_c + (1 - 1/omega) (v_head(y) - v_head(null)); omega and the interval are inputs of the network "
    "(improved MeanFlow, arXiv 2512.02012): improved:omega,[low=0],[high=1],[drop=0.1]",
    "improved_power": "as improved, with omega = (1 + scale)^U and an interval drawn for each sample, all times if "
    "r = t (the setting of improved MeanFlow): improved_power:[scale=7],[drop=0.1]",
    "improved_uniform": "as improved at all t, with omega uniform in [least, most] for a fraction share of the samples "
    "and 1 for the rest and for null labels: improved_uniform:[least=1],[most=5],[share=0.75],[drop=0.1]",
    "facm": "omega v_c + (1 - omega) u(x_t,0,t,null) if low <= t <= high, else omega v_c + (1 - omega) u(x_t,0,t,y) "
    "(the code of FACM without its teacher): facm:omega,[low=0],[high=1],[drop=0]",
    "teacher": "v(x_t,t,null) + omega (v(x_t,t,y) - v(x_t,t,null)) of a teacher if low <= t <= high, else v(x_t,t,y): "
    "teacher:omega,[low=0],[high=1],[drop=0]",
}


class GuidanceScale(NamedTuple):
    """Guidance of each sample: strength omega and the interval [low, high] of t in which it applies. All [n]."""

    omega: Tensor
    low: Tensor
    high: Tensor


class GuidanceFactors(NamedTuple):
    """Factors in v_g, each [n].

    Attributes:
        data: Of the conditional velocity v_c.
        labeled: Of the network's velocity with the sample's label.
        null: Of the network's velocity with the null label.
    """

    data: Tensor
    labeled: Tensor
    null: Tensor


ScaleSampler = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Maps uniform numbers [n, 3], whether r = t [n] and whether the label is null [n] to omega, low, high, each [n]."""


@dataclass(frozen=True)
class Guidance:
    """One formula with its arguments.

    Attributes:
        name: The canonical specification.
        factors_inside: Maps omega [n] to the three factors inside the interval.
        sample_scale: Draws what may differ between samples.
        drop: Fraction of labels that become null, in [0, 1].
        network: Whose velocity guides: the measured network's at r = t, that of its head, or a teacher's.
        from_zero: Whether the network's average over [0, t] guides instead of its velocity at r = t.
        factors_outside: The three factors outside the interval.
        guides_null: Whether samples with the null label are guided too. If not, they keep v_c.
        changes_velocity: False if labels are dropped but v_g equals v_c.
    """

    name: str
    factors_inside: Callable[[Tensor], tuple[Tensor | float, Tensor | float, Tensor | float]]
    sample_scale: ScaleSampler
    drop: float
    network: Literal["self", "head", "teacher"] = "self"
    factors_outside: tuple[float, float, float] = (1.0, 0.0, 0.0)
    guides_null: bool = False
    changes_velocity: bool = True
    from_zero: bool = False

    def factors(self, scale: GuidanceScale, t: Tensor, dropped: Tensor) -> GuidanceFactors:
        """The factors of each sample.

        Args:
            scale: Strength and interval of each sample.
            t: Times [n].
            dropped: Whether the label is null, bool [n].

        Returns:
            Factors of v_c and of the two velocities of the guiding network.
        """
        guided = (t >= scale.low) & (t <= scale.high)
        if not self.guides_null:
            guided = guided & ~dropped
        is_guided = guided.to(t)
        pairs = zip(self.factors_inside(scale.omega), self.factors_outside, strict=True)
        return GuidanceFactors(*(is_guided * inside + (1 - is_guided) * outside for inside, outside in pairs))


@dataclass(frozen=True)
class SoFlowGuidance(Guidance):
    """A strength omega - 1 that decays from time `decay` on, and a share 1 - `mix` of the network's own velocity."""

    mix: float = 1.0
    decay: float = 1.0

    def factors(self, scale: GuidanceScale, t: Tensor, dropped: Tensor) -> GuidanceFactors:
        # the code of arXiv 2512.15657: 1 - exp(-0.025 q / (1 - q)) with q = (1 - t) / (1 - decay), 1 up to t = decay
        q = ((1 - t) / max(1 - self.decay, 1e-12)).clamp(0, 1 - 1e-6)
        k = (scale.omega - 1) * (1 - (-0.025 * q / (1 - q)).exp()).where(t > self.decay, 1.0)
        guided = (~dropped).to(t)
        return GuidanceFactors(guided * (self.mix * (1 + k) - 1) + 1, guided * (1 - self.mix), -guided * self.mix * k)


def parse_guidance(spec: str) -> Guidance | None:
    """The guidance of a specification, a key of `GUIDANCES` with arguments; None for `none`.

    Raises InputError for an unknown name or an argument outside its range.
    """
    kind = spec.partition(":")[0]
    if kind not in GUIDANCES:
        raise did_you_mean("guidance", kind, GUIDANCES)
    if kind == "none":
        parse_arguments(spec, {})
        return None
    parameters, build = _KINDS[kind]
    arguments = parse_arguments(spec, parameters)
    for name, value in arguments.items():
        if name in _FRACTIONS and not 0 <= value <= 1:
            raise InputError(f"Bad {spec!r}: {name} must be in [0, 1], got {value:g}.")
        if name in _POSITIVE and not value > 0:
            raise InputError(f"Bad {spec!r}: {name} must be above 0, got {value:g}.")
    for lower, upper in (("low", "high"), ("least", "most")):
        if lower in arguments and arguments[lower] > arguments[upper]:
            raise InputError(
                f"Bad {spec!r}: {lower} must not be above {upper}, got {arguments[lower]:g} and {arguments[upper]:g}."
            )
    return build(format_spec(kind, *arguments.values()), **arguments)


_FRACTIONS = {"low", "high", "drop", "share", "mix", "decay"}
_POSITIVE = {"omega", "scale", "least"}


def _same_for_all(omega: float, low: float = 0.0, high: float = 1.0) -> ScaleSampler:
    """The same strength and interval for every sample."""

    def sample(u: np.ndarray, equal: np.ndarray, dropped: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.full(len(u), omega), np.full(len(u), low), np.full(len(u), high)

    return sample


def _meanflow(name: str, omega: float, kappa: float, low: float, high: float, drop: float) -> Guidance:
    scale, changes_velocity = _same_for_all(omega, low, high), (omega, kappa) != (1, 0)
    return Guidance(name, lambda w: (w, kappa, 1 - w - kappa), scale, drop, changes_velocity=changes_velocity)


def _meanflow_apart(name: str, omega: float, kappa: float, low: float, high: float, drop: float) -> Guidance:
    def sample(u: np.ndarray, equal: np.ndarray, dropped: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.full(len(u), omega), np.where(equal, 2, low), np.full(len(u), high)  # no t is above 2

    return dataclasses.replace(_meanflow(name, omega, kappa, low, high, drop), sample_scale=sample)


def _re_meanflow(name: str, omega: float, scale: float, drop: float) -> Guidance:
    # the effective guidance scale is omega / (1 - kappa); the specification gives it as `scale`
    kappa = 1 - omega / scale
    return Guidance(name, lambda w: (w, kappa, 1 - w - kappa), _same_for_all(omega), drop, guides_null=True)


def _model_guidance(name: str, omega: float, low: float, high: float, drop: float) -> Guidance:
    return Guidance(name, lambda w: (1.0, w, -w), _same_for_all(omega, low, high), drop)


def _soflow(name: str, omega: float, mix: float, decay: float, drop: float) -> Guidance:
    scale = _same_for_all(omega)
    return SoFlowGuidance(name, lambda w: (mix * w, 1 - mix, mix * (1 - w)), scale, drop, mix=mix, decay=decay)


def _improved(name: str, drop: float, sample_scale: ScaleSampler) -> Guidance:
    return Guidance(name, lambda w: (1.0, 1 - 1 / w, 1 / w - 1), sample_scale, drop, network="head")


def _improved_power(name: str, scale: float, drop: float) -> Guidance:
    def sample(u: np.ndarray, equal: np.ndarray, dropped: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return (1 + scale) ** u[:, 0], np.where(equal, 0, u[:, 1] / 2), np.where(equal, 1, 0.5 + u[:, 2] / 2)

    return _improved(name, drop, sample)


def _improved_uniform(name: str, least: float, most: float, share: float, drop: float) -> Guidance:
    def sample(u: np.ndarray, equal: np.ndarray, dropped: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        omega = np.where((u[:, 0] < share) & ~dropped, least + (most - least) * u[:, 1], 1)
        return omega, np.zeros(len(u)), np.ones(len(u))

    return _improved(name, drop, sample)


def _facm(name: str, omega: float, low: float, high: float, drop: float) -> Guidance:
    # its code evaluates the network at the time of the average velocity, also with the label outside the interval
    scale, outside = _same_for_all(omega, low, high), (omega, 1 - omega, 0.0)
    return Guidance(name, lambda w: (w, 0.0, 1 - w), scale, drop, factors_outside=outside, from_zero=True)


def _teacher(name: str, omega: float, low: float, high: float, drop: float) -> Guidance:
    scale, outside = _same_for_all(omega, low, high), (0.0, 1.0, 0.0)
    return Guidance(name, lambda w: (0.0, w, 1 - w), scale, drop, "teacher", outside)


_INTERVAL: dict[str, float | None] = {"low": 0.0, "high": 1.0}
_KINDS: dict[str, tuple[dict[str, float | None], Callable[..., Guidance]]] = {
    "meanflow": ({"omega": None, "kappa": 0.0, **_INTERVAL, "drop": 0.1}, _meanflow),
    "meanflow_apart": ({"omega": None, "kappa": 0.0, **_INTERVAL, "drop": 0.1}, _meanflow_apart),
    "re_meanflow": ({"omega": None, "scale": None, "drop": 0.1}, _re_meanflow),
    "model_guidance": ({"omega": None, **_INTERVAL, "drop": 0.1}, _model_guidance),
    "soflow": ({"omega": None, "mix": 0.25, "decay": 0.8, "drop": 0.1}, _soflow),
    "improved": (
        {"omega": None, **_INTERVAL, "drop": 0.1},
        lambda name, omega, low, high, drop: _improved(name, drop, _same_for_all(omega, low, high)),
    ),
    "improved_power": ({"scale": 7.0, "drop": 0.1}, _improved_power),
    "improved_uniform": ({"least": 1.0, "most": 5.0, "share": 0.75, "drop": 0.1}, _improved_uniform),
    "facm": ({"omega": None, **_INTERVAL, "drop": 0.0}, _facm),
    "teacher": ({"omega": None, **_INTERVAL, "drop": 0.0}, _teacher),
}
"""Name -> arguments with their defaults, and the function that builds it from its canonical name and arguments."""
