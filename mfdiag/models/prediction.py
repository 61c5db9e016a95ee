"""Networks that predict data, noise or Salimans and Ho's v, made to give the average velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mfdiag.errors import InputError, did_you_mean
from mfdiag.flow.paths import Path
from mfdiag.flow.specs import format_spec, parse_arguments
from mfdiag.models.networks.registry import PREDICTIONS
from mfdiag.models.wrapper import Wrapper

__all__ = ["Predicts", "as_average_velocity", "prediction_name"]

_FLOOR = 0.05  # of the divisor, as for clean-data prediction in arXiv 2511.13720


class Predicts(Wrapper):
    """u(x, r, t) of a network that predicts something else over [r, t] on `path`.

    `kind` says what: "x" data, "eps" noise, "v" alpha eps - sigma x (arXiv 2202.00512). For an average over [r, t]
    these are the pair (x, eps) whose point is x_t and whose velocity is u (pixel MeanFlow for x; r = t gives the usual
    meaning). The divisors sigma (for x) and alpha (for eps) are kept at or above `floor`.
    """

    def __init__(self, network: nn.Module, kind: str, path: Path, floor: float = _FLOOR) -> None:
        super().__init__(network)
        self.kind, self.path, self.floor = kind, path, floor
        self.num_classes = getattr(network, "num_classes", 0)

    def forward(self, x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """u, shaped as x [n, *shape], from times r and t [n] and labels y int64 [n] or None."""
        return self._velocity(x, t, self.network(x, r, t, y))

    @property
    def velocity(self) -> Callable[..., Tensor]:
        """(x, r, t, labels) -> the velocity that the network's own head, which predicts the same, stands for."""
        head: Any = self.network.velocity

        def velocity(x: Tensor, r: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return self._velocity(x, t, head(x, r, t, y))

        return velocity

    def _velocity(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        point, factor = (value.view(-1, *[1] * (x.ndim - 1)) for value in self.factors(t))
        return point * x + factor * output

    def factors(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """p and q [n] with u = p x_t + q output."""
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
    """`network` as u(x, r, t, y), given what it predicts: a key of `PREDICTIONS`, with arguments.

    Raises InputError for an unknown name or a bad argument.
    """
    kind, floor = _parse(prediction)
    return network if kind == "u" else Predicts(network, kind, path, floor)


def prediction_name(prediction: str) -> str:
    """The canonical form of a specification: the default floor is left out."""
    kind, floor = _parse(prediction)
    return kind if floor == _FLOOR else format_spec(kind, floor)


def _parse(spec: str) -> tuple[str, float]:
    kind = spec.partition(":")[0]
    if kind not in PREDICTIONS:
        raise did_you_mean("prediction", kind, PREDICTIONS)
    given = parse_arguments(spec, {"floor": _FLOOR} if kind in ("x", "eps") else {})
    floor = given.get("floor", _FLOOR)
    if not 0 <= floor < 1:
        raise InputError(f"Bad {spec!r}: floor must be in [0, 1), got {floor:g}.")
    return kind, floor
