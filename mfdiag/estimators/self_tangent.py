"""Self tangent: the network's own velocity u(x_t,t,t) as tangent; improved MeanFlow without a velocity head."""

from mfdiag.estimators.plane import point

__all__ = ["ESTIMATOR"]

# arXiv 2512.02012: the loss |u + (t-r) sg(du/dx u(x_t,t,t) + du/dt) - v_c|^2 is stated for a compound prediction; its
# gradient is that of u regressed on a target under stop-gradient
ESTIMATOR = point(
    "self_tangent",
    "the network's own u(x_t,t,t) as tangent, conditional target (improved MeanFlow)",
    "arXiv 2512.02012",
    1.0,
    0.0,
    proxy="self",
    formula="u + (t-r) [du/dx u(x_t,t,t) + du/dt] - v_c",
)
