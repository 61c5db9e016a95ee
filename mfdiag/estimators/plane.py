"""Any point of the coefficient plane: plane:beta,gamma."""

from __future__ import annotations

from functools import partial
from math import isfinite
from typing import TYPE_CHECKING

from mfdiag.errors import InputError
from mfdiag.estimators._base import Estimator, Needs

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import Fields

__all__ = ["ESTIMATOR", "plane_point"]


def residual(fields: Fields, beta: float = 0.0, gamma: float = 0.0, proxy: str | None = "run") -> Tensor:
    # docs/theory.md#plane: e = u + (t-r) [du/dx (v_c + beta (vhat - v_c)) + du/dt] - (v_c + gamma (vhat - v_c))
    e_0, e_b, e_g = fields.with_proxy(proxy).plane
    return e_0 + beta * e_b + gamma * e_g


def plane_point(
    name: str, title: str, paper: str, beta: float, gamma: float, *, proxy: str | None = "run", formula: str = ""
) -> Estimator:
    """The estimator at one point of the plane.

    Args:
        name: As in `Estimator`.
        title: As in `Estimator`.
        paper: As in `Estimator`.
        beta: Tangent coefficient.
        gamma: Target coefficient.
        proxy: The network that gives vhat: "ema", "head", "self", "teacher", the run's own proxy ("run"), or None at
            (0, 0), which needs no proxy.
        formula: As in `Estimator`; "(beta, gamma) = ..." by default.

    Returns:
        The estimator, whose needs follow from `proxy`.
    """
    return Estimator(
        name,
        title,
        paper,
        formula or f"(beta, gamma) = ({beta:g}, {gamma:g})",
        partial(residual, beta=beta, gamma=gamma, proxy=proxy),
        (beta, gamma),
        needs=Needs(
            forwards=0 if proxy is None else 1,
            jvps=1,
            networks=(proxy,) if proxy in ("ema", "head", "teacher") else (),
        ),
    )


def parse(text: str) -> Estimator:
    try:
        beta, gamma = (float(part) for part in text.split(","))
        if not (isfinite(beta) and isfinite(gamma)):
            raise ValueError
    except ValueError:
        raise InputError(f"plane takes two finite numbers, as in plane:0.5,0; got {text!r}.") from None
    return plane_point(f"plane:{beta:g},{gamma:g}", "point of the coefficient plane", "arXiv 2605.09235", beta, gamma)


ESTIMATOR = Estimator(
    "plane",
    "any point of the coefficient plane, as plane:beta,gamma",
    "arXiv 2605.09235 (beta); gamma beyond",
    "e_0 + beta e_b + gamma e_g",
    residual,
    parse=parse,
    needs=Needs(forwards=1, jvps=1),
    template=True,
)
