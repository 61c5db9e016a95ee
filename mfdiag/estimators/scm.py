"""sCM, continuous-time consistency training: r = 0, and a tangent that is normalized by its own norm.

The consistency function is x_t - t u(x_t, 0, t), the end of the step to r = 0; the sample's own r is not used. The
paper's TrigFlow multiplies the tangent by cos t before it is normalized, which only changes how much the constant
matters; here that factor is 1, on any path. The paper's learned weight of each t is left out. `warmup` is the factor of
the tangent's second part, which the paper raises from 0 to 1 during the first 10,000 steps. The norm runs over all
coordinates; some code divides it by sqrt(d), which is a constant sqrt(d) times as large. For distillation,
`eulerian_distillation` has the same tangent with a teacher's velocity.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mfdiag.estimators._arguments import require, with_arguments
from mfdiag.estimators._base import Estimator, Needs, squared_norm
from mfdiag.estimators._tangents import normalized_tangent

if TYPE_CHECKING:
    from torch import Tensor

    from mfdiag.fields import DifferentiableNetwork, Fields

__all__ = ["ESTIMATOR"]


def loss(fields: Fields, network: DifferentiableNetwork, constant: float, warmup: float) -> Tensor:
    # arXiv 2410.11081: the gradient of <f, sg df/dt> with f = x_t - t u(x_t,0,t) is that of regressing u on u - g with
    # g = -df/dt = u - v_c + t (du/dx v_c + du/dt), and g is replaced by g / (|g| + c) (docs/theory.md#family-losses)
    zero = 0 * fields.t
    u = network(fields.x, zero, fields.t)
    tangent = u.detach() - fields.v_c + warmup * fields.t * fields.jvp_v_c_at(zero)
    return squared_norm(u - u.detach() + normalized_tangent(tangent, constant))


def build(name: str, constant: float, warmup: float) -> Estimator:
    require(constant > 0, name, "constant must be above 0")
    require(0 <= warmup <= 1, name, "warmup must be between 0 and 1")
    return Estimator(
        name,
        "sCM: consistency training with a normalized tangent, r = 0: scm:[constant=0.1],[warmup=1]",
        "arXiv 2410.11081",
        "|u - sg(u - g/(|g| + c))|^2, g = u - v_c + w t [du/dx v_c + du/dt], all at (x_t,0,t)",
        needs=Needs(jvps=1),
        loss=partial(loss, constant=constant, warmup=warmup),
    )


ESTIMATOR = with_arguments("scm", {"constant": 0.1, "warmup": 1.0}, build)
