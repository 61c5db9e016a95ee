"""The average velocity of networks that predict data, noise, or the v of Salimans and Ho (arXiv 2202.00512)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.conditions import Condition
from mfdiag.flow.paths import Path
from mfdiag.flow.specs import format_spec, parse_arguments
from mfdiag.models.networks.registry import PREDICTIONS
from mfdiag.models.wrapper import Wrapper

__all__ = ["PredictionAdapter", "as_average_velocity", "prediction_name"]

_FLOOR = 0.05  # of the divisor, as in clean-data prediction of arXiv 2511.13720


class PredictionAdapter(Wrapper):
    """u(x, r, t) of a network that predicts something else over [r, t] on `path`.

    `kind` says what the network predicts: "x" is data, "eps" is noise, "v" is alpha eps - sigma x (arXiv 2202.00512).
    Over an interval [r, t], x and eps are the pair whose point at t is x_t and whose velocity is u (for x, this is
    pixel MeanFlow); at r = t they have their usual meaning. The divisors, sigma for x and alpha for eps, are clamped to
    at least `floor`.
    """

    def __init__(self, network: nn.Module, kind: str, path: Path, floor: float = _FLOOR) -> None:
        super().__init__(network)
        self.kind, self.path, self.floor = kind, path, floor
        self.num_classes = getattr(network, "num_classes", 0)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Condition = None) -> Tensor:
        """Average velocity u.

        Args:
            x: Points x_t [n, *shape].
            r: Times r [n] in [0, 1], the other end of the interval.
            t: Times t [n] in [0, 1] of the points.
            y: Labels int64 [n], `Conditions`, or None.

        Returns:
            u, shaped as x.
        """
        return self._velocity(x, t, self.network(x, r, t, y))

    @property
    def specification(self) -> str:
        """What the network predicts, as --prediction."""
        return self.kind if self.floor == _FLOOR else format_spec(self.kind, self.floor)

    @property
    def velocity(self) -> Callable[..., Tensor]:
        """(x, r, t, labels) -> the velocity of the network's velocity head, which predicts the same kind."""
        head: Any = self.network.velocity

        def velocity(x: Tensor, r: Tensor, t: Tensor, y: Condition = None) -> Tensor:
            return self._velocity(x, t, head(x, r, t, y))

        return velocity

    def _velocity(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        point, factor = (value.view(-1, *[1] * (x.ndim - 1)) for value in self.factors(t))
        return point * x + factor * output

    def factors(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients p and q [n] of u = p x_t + q output, for times t [n]."""
        a, s, (da, ds) = self.path.alpha(t), self.path.sigma(t), self.path.rates(t)
        # x_t = a x + s e and u = a' x + s' e; eliminate what is not predicted, with D = a s' - a' s:
        d = a * ds - da * s
        if self.kind == "x":  # e = (x_t - a x) / s, u = (s' x_t - D x) / s
            divisor = s.clamp_min(self.floor)
            return ds / divisor, -d / divisor
        if self.kind == "eps":  # x = (x_t - s e) / a, u = (a' x_t + D e) / a
            divisor = a.clamp_min(self.floor)
            return da / divisor, d / divisor
        # v = a e - s x: (a^2 + s^2) x = a x_t - s v and (a^2 + s^2) e = s x_t + a v
        square = a.square() + s.square()
        return (a * da + s * ds) / square, d / square


def as_average_velocity(network: nn.Module, prediction: str, path: Path) -> nn.Module:
    """Turn a network into u(x, r, t, y).

    Args:
        network: The network.
        prediction: What it predicts: a name in `PREDICTIONS`, with arguments.
        path: The path it was trained on.

    Returns:
        `network` itself if it predicts u, else a `PredictionAdapter` around it.

    Raises:
        InputError: If the name is unknown or an argument is wrong.
    """
    kind, floor = _parse(prediction)
    return network if kind == "u" else PredictionAdapter(network, kind, path, floor)


def prediction_name(prediction: str) -> str:
    """The canonical form of a specification of --prediction, without a floor that is the default."""
    kind, floor = _parse(prediction)
    return kind if floor == _FLOOR else format_spec(kind, floor)


def _parse(spec: str) -> tuple[str, float]:
    kind = spec.partition(":")[0]
    if kind not in PREDICTIONS:
        raise did_you_mean("prediction", kind, PREDICTIONS)
    arguments = parse_arguments(spec, {"floor": _FLOOR} if kind in ("x", "eps") else {})
    floor = arguments.get("floor", _FLOOR)
    if not 0 <= floor < 1:
        raise InputError(f"Expected a floor in [0, 1) in {spec!r}, but got {floor:g}; correct it.")
    return kind, floor
