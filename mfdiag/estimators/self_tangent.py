"""Self tangent: the network's own velocity u(x_t,t,t) as tangent, (1, 0); improved MeanFlow without a velocity head."""

from mfdiag.estimators.plane import plane_point

__all__ = ["ESTIMATOR"]

# arXiv 2512.02012: |u + (t-r) sg(du/dx u(x_t,t,t) + du/dt) - v_c|^2. The paper regresses this compound prediction on
# v_c; its gradient is that of u regressed on a target under stop-gradient (docs/theory.md#family-targets).
ESTIMATOR = plane_point(
    "self_tangent",
    "the network's own u(x_t,t,t) as tangent, conditional target (improved MeanFlow)",
    "arXiv 2512.02012",
    1.0,
    0.0,
    proxy="self",
    formula="u + (t-r) [du/dx u(x_t,t,t) + du/dt] - v_c",
)
