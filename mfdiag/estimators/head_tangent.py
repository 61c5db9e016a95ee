"""Head tangent: the velocity head of the network as tangent; improved MeanFlow with its auxiliary head.

The network offers the head as a method `velocity(x, r, t, labels)` that returns v, shaped as x.
"""

from mfdiag.estimators.plane import point

__all__ = ["ESTIMATOR"]

# arXiv 2512.02012: as self_tangent, with v_head(x_t, t) in the place of u(x_t,t,t). The head's own loss, which is
# |v_head - v_c|^2, is left out: it trains the head, and reaches other parameters only where they are shared.
ESTIMATOR = point(
    "head_tangent",
    "the network's velocity head as tangent, conditional target (improved MeanFlow)",
    "arXiv 2512.02012",
    1.0,
    0.0,
    proxy="head",
    formula="u + (t-r) [du/dx v_head(x_t,t) + du/dt] - v_c",
)
