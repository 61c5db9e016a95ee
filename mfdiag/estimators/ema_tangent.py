"""EMA tangent: the velocity of the EMA weights as tangent, the conditional velocity as target, (1, 0).

It needs EMA weights. If a checkpoint has none, the default of `mfdiag variance` is the tangent of the run's own proxy:
`self_tangent`, `teacher_tangent` or, for the proxy exact, `plane:1,0`.
"""

from mfdiag.estimators.plane import plane_point

__all__ = ["ESTIMATOR"]

# arXiv 2605.09235, Algorithm 1 without its anchor: e = u + (t-r) [du/dx u_ema(x_t,t,t) + du/dt] - v_c
ESTIMATOR = plane_point(
    "ema_tangent",
    "velocity of the EMA weights as tangent, conditional target",
    "arXiv 2605.09235",
    1.0,
    0.0,
    proxy="ema",
    formula="u + (t-r) [du/dx u_ema(x_t,t,t) + du/dt] - v_c",
)
