"""Head tangent: the network's velocity head as tangent, (1, 0); improved MeanFlow with its auxiliary head.

The head is a method `velocity(x, r, t, labels)` of the network that returns v, shaped as x.
"""

from mfdiag.estimators.plane import plane_point

__all__ = ["ESTIMATOR"]

# arXiv 2512.02012: as self_tangent, with v_head(x_t,t) in place of u(x_t,t,t). The paper adds the head's own loss
# |v_head - v_c|^2, which is left out here: it trains the head, and other parameters only if the two share them.
ESTIMATOR = plane_point(
    "head_tangent",
    "the network's velocity head as tangent, conditional target (improved MeanFlow)",
    "arXiv 2512.02012",
    1.0,
    0.0,
    proxy="head",
    formula="u + (t-r) [du/dx v_head(x_t,t) + du/dt] - v_c",
)
