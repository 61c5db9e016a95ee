"""Teacher: the velocity of a flow-matching teacher in both roles, (1, 1); no conditional noise, bias J b."""

from mfdiag.estimators.plane import point

__all__ = ["ESTIMATOR"]

# theory, section 2, with vhat = u_teacher(x_t, t, t); the teacher of MF-RAE's first stage stands in both roles
ESTIMATOR = point(
    "teacher",
    "a teacher's velocity as tangent and target",
    "MF-RAE; theory, section 2",
    1.0,
    1.0,
    proxy="teacher",
    formula="u + (t-r) [du/dx v_teacher + du/dt] - v_teacher",
)
