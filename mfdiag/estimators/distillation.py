"""Distillation: the proxy of the run in both roles, (1, 1); no conditional noise, bias J b."""

from mfdiag.estimators.plane import plane_point

__all__ = ["ESTIMATOR"]

# arXiv 2605.09235, section 2, and docs/theory.md#plane: e = u + (t-r) [du/dx vhat + du/dt] - vhat
ESTIMATOR = plane_point(
    "distillation",
    "proxy velocity as tangent and target",
    "arXiv 2605.09235, section 2",
    1.0,
    1.0,
    formula="u + (t-r) [du/dx vhat + du/dt] - vhat",
)
