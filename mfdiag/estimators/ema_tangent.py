"""EMA tangent: the proxy as tangent, the conditional velocity as target, (1, 0)."""

from mfdiag.estimators.plane import point

__all__ = ["ESTIMATOR"]

# e = u + (t-r) [du/dx vhat + du/dt] - v_c
ESTIMATOR = point("ema_tangent", "proxy velocity as tangent, conditional target", "arXiv 2605.09235", 1.0, 0.0)
