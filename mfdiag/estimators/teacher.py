"""Teacher: the velocity of a flow-matching teacher in both roles, (1, 1); no conditional noise, bias J b."""

from mfdiag.estimators.plane import plane_point

__all__ = ["ESTIMATOR"]

# docs/theory.md#plane with vhat = u_teacher(x_t,t,t). The first stage of MF-RAE uses a teacher in both roles.
ESTIMATOR = plane_point(
    "teacher",
    "a teacher's velocity as tangent and target",
    "MF-RAE",
    1.0,
    1.0,
    proxy="teacher",
    formula="u + (t-r) [du/dx v_teacher + du/dt] - v_teacher",
)
