"""MeanFlow: the conditional velocity in both roles, (0, 0); unbiased."""

from mfdiag.estimators.plane import point

__all__ = ["ESTIMATOR"]

# arXiv 2505.13447, equations 9 to 11: e = u + (t-r) [du/dx v_c + du/dt] - v_c, all but the leading u under
# stop-gradient
ESTIMATOR = point(
    "meanflow",
    "MeanFlow: conditional velocity as tangent and target",
    "arXiv 2505.13447",
    0.0,
    0.0,
    proxy=None,
    formula="u + (t-r) [du/dx v_c + du/dt] - v_c",
)
