"""EMA tangent: the velocity of the EMA weights as tangent, the conditional velocity as target, (1, 0).

If a run has no EMA weights, `mfdiag variance` uses the proxy of the run instead; the column `proxy` says which.
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
