"""Teacher tangent: the velocity of a flow-matching teacher as tangent, (1, 0); bias A b."""

from mfdiag.estimators.plane import point

__all__ = ["ESTIMATOR"]

# theory, section 2, with vhat = u_teacher(x_t, t, t); the teacher of MF-RAE's first stage stands in both roles
ESTIMATOR = point(
    "teacher_tangent",
    "a teacher's velocity as tangent, conditional target",
    "MF-RAE; theory, section 2",
    1.0,
    0.0,
    proxy="teacher",
    formula="u + (t-r) [du/dx v_teacher + du/dt] - v_c",
)
