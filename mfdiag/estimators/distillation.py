"""Distillation: the run's proxy in both roles, (1, 1); no conditional noise, bias J b."""

from mfdiag.estimators.plane import point

__all__ = ["ESTIMATOR"]

# e = u + (t-r) [du/dx vhat + du/dt] - vhat
ESTIMATOR = point(
    "distillation",
    "proxy velocity as tangent and target",
    "arXiv 2605.09235, section 2",
    1.0,
    1.0,
    formula="u + (t-r) [du/dx vhat + du/dt] - vhat",
)
