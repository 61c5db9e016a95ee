"""MeanFlow: the conditional velocity in both roles, (0, 0); unbiased."""

from mfdiag.estimators.plane import plane_point

__all__ = ["ESTIMATOR"]

# arXiv 2505.13447, equations 9 to 11: e = u + (t-r) [du/dx v_c + du/dt] - v_c, where all but the leading u is under
# stop-gradient
ESTIMATOR = plane_point(
    "meanflow",
    "MeanFlow: conditional velocity as tangent and target",
    "arXiv 2505.13447",
    0.0,
    0.0,
    proxy=None,
    formula="u + (t-r) [du/dx v_c + du/dt] - v_c",
)
